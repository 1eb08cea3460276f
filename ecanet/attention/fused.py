"""Fuses a pooled gate into the end of a residual branch, without extra passes over the feature map.

A branch ends in a convolution, a batch norm, a gate, an addition and usually a ReLU. Run separately, a
gate reads the branch's widest tensor for the moments, reads and writes it for the product, and saves one
more tensor for backward. All of this can be avoided without approximation:

* In evaluation the batch norm is affine, so the moments of its output follow from those of its input;
  and a mean commutes with a convolution, so the means can be computed from the convolution's *input*,
  which has a quarter of the channels in a bottleneck: :func:`mean_of_conv`.
* In training the batch norm reads its input once for its statistics. Computed per image, the same sums
  give the statistics of the batch, by the law of total variance, and the moments of every image. One
  more pass computes the output, ``relu((x - center) · scale + shift + residual)``, with the gate in
  the (N, C) factors ``scale`` and ``shift``. Backward is the same: one pass for the sums, one for the
  gradient, and x is the only large tensor saved: :func:`gated_norm`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backend import in_memory_format, usable_kernels
from .gate import channel_moments

Factors = Callable[..., Tensor]
"""Computes the gate, (N, C), from the moments of the gated tensor, (N, C) each."""


def keeps_size(conv: nn.Conv2d) -> bool:
    """Whether ``conv`` has stride 1 and zero padding that keeps the image's size."""
    wanted = tuple(d * (k - 1) // 2 for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    return conv.stride == (1, 1) and conv.padding == wanted and conv.padding_mode == "zeros"


def mean_of_conv(conv: nn.Conv2d, z: Tensor) -> Tensor:
    """Return the channel means of ``conv(z)``, (N, C'), without computing ``conv(z)``.

    A mean commutes with a linear map. With padding, each weight of the kernel is applied to all pixels but
    the rows and columns that it shifts out of the image, which are subtracted.

    Args:
        conv: an odd kernel for which :func:`keeps_size` holds.
        z: its input, (N, C, H, W).
    """
    view = z.permute(0, 2, 3, 1)  # the memory order, if channels last
    if conv.kernel_size == (1, 1):
        sums = _sum(view.flatten(1, 2), 1)[:, None, None]
    else:
        # (N, H, W, C) to (kw, N, H, C) to (kh, kw, N, C)
        columns = _window_sums(view, 2, conv.kernel_size[1], conv.dilation[1])
        sums = _window_sums(columns, 2, conv.kernel_size[0], conv.dilation[0]).permute(2, 0, 1, 3)
    with _full_precision(z.device.type):
        mean = (sums / (z.shape[2] * z.shape[3])).to(conv.weight.dtype)
        if conv.groups > 1:
            mean = mean.permute(0, 3, 1, 2)
            return F.conv2d(mean, conv.weight, conv.bias, groups=conv.groups)[:, :, 0, 0]
        # A convolution of a single window equals a linear layer, but takes more than twice as long.
        weight = conv.weight.permute(0, 2, 3, 1)
        return F.linear(mean.flatten(1), weight.flatten(1), conv.bias)


def _window_sums(x: Tensor, dim: int, kernel: int, dilation: int) -> Tensor:
    """Return, along a new first axis, the sum over ``dim`` of the values that each kernel weight sees."""
    total, length = _sum(x, dim), x.shape[dim]
    sums = []
    for offset in range(-(kernel // 2) * dilation, (kernel // 2) * dilation + 1, dilation):
        missed = min(abs(offset), length)
        start = 0 if offset > 0 else length - missed
        sums.append(total - _sum(x.narrow(dim, start, missed), dim) if missed else total)
    return torch.stack(sums)


def _sum(x: Tensor, dim: int) -> Tensor:
    # A CPU sums bfloat16 four times faster into bfloat16, and the mean of a bfloat16 image is no more
    # precise. A sum in float16 overflows.
    narrow = x.dtype == torch.float16 or (x.dtype == torch.bfloat16 and x.device.type != "cpu")
    return x.sum(dim, dtype=torch.float32 if narrow else None)


def means_are_cheaper_before(conv: nn.Conv2d, z: Tensor) -> bool:
    """Whether :func:`mean_of_conv` reads fewer values than the means of ``conv(z)`` would.

    When compiled, reading ``z`` costs nothing: the kernel that computes it also sums it.
    """
    if not keeps_size(conv):
        return False
    pixels = z.shape[0] * z.shape[2] * z.shape[3]
    inputs = 0 if torch.compiler.is_compiling() else pixels * conv.in_channels
    return inputs + conv.weight.numel() < pixels * conv.out_channels


def gated_norm_in_evaluation(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, factors: Factors, moments: int, z: Tensor,
    shortcut: Tensor | None, relu: bool,
) -> Tensor:  # fmt: skip
    """Return ``relu(y * factors(moments of y) + shortcut)`` with ``y = norm(conv(z))``, (N, C', H, W).

    Args:
        conv: the branch's last convolution.
        norm: its batch norm, in evaluation, with weights and running statistics.
        factors: of the pooled gate.
        moments: how many moments it takes.
        z: the convolution's input.
        shortcut: the summand, (N, C', H, W), or None.
        relu: whether a ReLU ends it.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    center, spread = _wide(norm.running_mean), _wide(norm.running_var)
    before = moments == 1 and means_are_cheaper_before(conv, z)
    # Before the convolution, whose output is then still in the cache when it is read next.
    means = _wide(mean_of_conv(conv, z)) if before else None
    x, kernels = conv(z), usable_kernels(z)
    eager = kernels is None and not torch.compiler.is_compiling()
    if eager and x.dtype in (torch.float16, torch.bfloat16):
        # The norm computes in float32 internally; separate steps here would not.
        y = norm(x)
        if means is not None:
            pooled: tuple[Tensor, ...] = ((means - center) * _gain(norm, spread) + norm.bias,)
        else:
            pooled = channel_moments(y, moments)
        gate = factors(*pooled)
        y = _multiply_add(y, gate.to(y.dtype)[:, :, None, None], shortcut)
        return y.relu_() if relu else y
    if means is not None:
        per_image: tuple[Tensor, ...] = (means,)
    elif kernels is None:
        per_image = channel_moments(_wide(x), moments)
    else:
        per_image = kernels.image_moments(in_memory_format(x))[:moments]
    scale, shift = _scale_and_shift(norm, center, spread, per_image, factors)
    if kernels is not None:
        return kernels.scale_shift_add(in_memory_format(x), center, scale, shift, shortcut, relu)
    shift = shift - center * scale
    if eager:
        # In few steps without new memory, as in the norm alone.
        y = _multiply_add(x, scale[:, :, None, None], shortcut).add_(shift[:, :, None, None])
        return y.relu_() if relu else y
    # Stacked in memory; otherwise a compiler recomputes them, with the square root, for every pixel.
    scale, shift = torch.stack((scale, shift)).unbind()
    return _add(x * scale[:, :, None, None] + shift[:, :, None, None], shortcut, relu, x.dtype)


def gated_norm(
    x: Tensor, norm: nn.BatchNorm2d, factors: Factors, moments: int, shortcut: Tensor | None,
    relu: bool,
) -> Tensor:  # fmt: skip
    """Return ``relu(y * factors(moments of y) + shortcut)`` with ``y = norm(x)`` over this batch.

    ``norm`` is a batch norm in training: its running statistics are updated as by nn.BatchNorm2d.
    All arithmetic is in float32 at least.

    Args:
        x: the convolution's output, (N, C, H, W).
        norm: with weights, and more than one value per channel to normalize over.
        factors: of the pooled gate.
        moments: how many moments it takes.
        shortcut: the summand, (N, C, H, W), or None.
        relu: whether a ReLU ends it.
    """
    kernels, grad_route = usable_kernels(x), []
    if kernels is None:
        mean, variance = channel_moments(_wide(x), 2)
    else:
        x = in_memory_format(x)
        mean, variance, *grad_route = kernels.image_moments(x)
    # Over all images, by the laws of total expectation and variance.
    center = mean.mean(0)
    spread = variance.mean(0) + (mean - center).square().mean(0)
    _update_running_statistics(norm, center, spread, x.numel() // x.shape[1])
    scale, shift = _scale_and_shift(norm, center, spread, (mean, variance)[:moments], factors)
    if kernels is not None:
        return kernels.scale_shift_add(x, center, scale, shift, shortcut, relu, *grad_route)
    y = (x - center[:, None, None]) * scale[:, :, None, None] + shift[:, :, None, None]
    return _add(y, shortcut, relu, x.dtype)


def _scale_and_shift(
    norm: nn.BatchNorm2d, center: Tensor, spread: Tensor, per_image: tuple[Tensor, ...],
    factors: Factors,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the (N, C) factors with which ``(x - center) * scale + shift`` is normalized and gated.

    Args:
        center, spread: (C,), the norm's mean and variance.
        per_image: the moments of ``x``, (N, C) each.
    """
    gain = _gain(norm, spread)
    pooled = [(per_image[0] - center) * gain + norm.bias]
    if len(per_image) == 2:
        pooled.append(per_image[1] * gain.square())
    gate = factors(*pooled).to(gain.dtype)
    return gate * gain, gate * norm.bias


def _add(y: Tensor, shortcut: Tensor | None, relu: bool, dtype: torch.dtype) -> Tensor:
    if shortcut is not None:
        y = y + shortcut
    return (torch.relu(y) if relu else y).to(dtype)


def _gain(norm: nn.BatchNorm2d, spread: Tensor) -> Tensor:
    return norm.weight * torch.rsqrt(spread + norm.eps)


def _multiply_add(y: Tensor, gate: Tensor, shortcut: Tensor | None) -> Tensor:
    """Return ``y * gate + shortcut``, in place if possible: on a CPU, new memory costs the most time."""
    if shortcut is None:
        return y.mul_(gate)
    if shortcut.dtype != y.dtype:
        return torch.addcmul(shortcut, y, gate)
    return torch.addcmul(shortcut, y, gate, out=y)


@torch.no_grad()
def _update_running_statistics(
    norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, values: int
) -> None:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    # Without momentum, the statistics are averages over all batches so far.
    share = norm.momentum if norm.momentum is not None else 1 / norm.num_batches_tracked.double()
    for running, value in (
        (norm.running_mean, mean),
        (norm.running_var, variance * (values / (values - 1))),
    ):
        running.mul_(1 - share).add_(value.to(running.dtype) * share)


def _full_precision(device: str) -> AbstractContextManager[Any]:
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _wide(x: Tensor) -> Tensor:
    """Return ``x`` in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
