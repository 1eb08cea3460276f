"""The end of a residual branch with a pooled gate in it, in the passes that it takes without one.

A branch ends in a convolution, a batch norm, a gate, an addition and, as a rule, a ReLU. Taken one by
one, a gate costs a read of the branch's widest tensor for the moments, a read and a write for the product
and one more tensor kept for backward. None of it is needed, and nothing is approximated:

* In evaluation the batch norm is affine, so the moments of its output follow from those of its input;
  and a mean commutes with a convolution, so the means can be taken of what goes *into* the convolution,
  a quarter of the channels in a bottleneck: :func:`mean_after`.
* In training a batch norm reads its input once for its statistics. Taken for each image, the same sums
  give the batch's statistics, by the law of total variance, and every image's moments as well. One
  more pass makes the output, ``relu((x - centre) · scale + shift + residual)``, where the gate is in
  the (N, C) factors ``scale`` and ``shift``. Backward likewise: one pass for the sums, one for the
  gradient, and x is the only large tensor kept: :func:`gated_norm`.
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
"""Gives the gate, (N, C), from the moments of what is to be gated, (N, C) each."""


def keeps_size(conv: nn.Conv2d) -> bool:
    """Whether ``conv`` has stride 1 and pads with as many zeros as keep the image's size."""
    wanted = tuple(d * (k - 1) // 2 for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    return conv.stride == (1, 1) and conv.padding == wanted and conv.padding_mode == "zeros"


def mean_after(conv: nn.Conv2d, z: Tensor) -> Tensor:
    """Return the channel means of ``conv(z)``, (N, C'), without computing ``conv(z)``.

    A mean commutes with a linear map. Where the convolution pads, each weight of its kernel meets all
    pixels but the rows and columns that it moves out of the image, and those are taken off.

    Args:
        conv: an odd kernel for which :func:`keeps_size` holds.
        z: its input, (N, C, H, W).
    """
    view = z.permute(0, 2, 3, 1)  # the order in memory, if it is channels last
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
        # A convolution of a single window is a linear layer, and more than twice as slow.
        weight = conv.weight.permute(0, 2, 3, 1)
        return F.linear(mean.flatten(1), weight.flatten(1), conv.bias)


def _window_sums(x: Tensor, dim: int, kernel: int, dilation: int) -> Tensor:
    """Return the sum over ``dim`` of what each of a kernel's weights meets, along a new first axis."""
    total, length = _sum(x, dim), x.shape[dim]
    sums = []
    for offset in range(-(kernel // 2) * dilation, (kernel // 2) * dilation + 1, dilation):
        missed = min(abs(offset), length)
        start = 0 if offset > 0 else length - missed
        sums.append(total - _sum(x.narrow(dim, start, missed), dim) if missed else total)
    return torch.stack(sums)


def _sum(x: Tensor, dim: int) -> Tensor:
    # A CPU sums bfloat16 four times as fast when the result is bfloat16 too; a mean that is read off
    # a bfloat16 image is no better. A sum in float16 overflows.
    narrow = x.dtype == torch.float16 or (x.dtype == torch.bfloat16 and x.device.type != "cpu")
    return x.sum(dim, dtype=torch.float32 if narrow else None)


def means_are_cheaper_before(conv: nn.Conv2d, z: Tensor) -> bool:
    """Whether :func:`mean_after` reads fewer values than the means of ``conv(z)`` would.

    Compiled, reading ``z`` costs nothing: the kernel that makes it sums it up on the way.
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
        moments: how many it takes.
        z: the convolution's input.
        shortcut: what is added, (N, C', H, W), or nothing.
        relu: whether a ReLU ends it.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    centre, spread = _wide(norm.running_mean), _wide(norm.running_var)
    before = moments == 1 and means_are_cheaper_before(conv, z)
    # Before the convolution: what that writes is still in the cache when it is read next.
    means = _wide(mean_after(conv, z)) if before else None
    x, kernels = conv(z), usable_kernels(z)
    eager = kernels is None and not torch.compiler.is_compiling()
    if eager and x.dtype in (torch.float16, torch.bfloat16):
        # The norm computes in float32, and what is computed step by step here would not.
        y = norm(x)
        if means is not None:
            pooled: tuple[Tensor, ...] = ((means - centre) * _gain(norm, spread) + norm.bias,)
        else:
            pooled = channel_moments(y, moments)
        gate = factors(*pooled)
        y = _multiply_add(y, gate.to(y.dtype)[:, :, None, None], shortcut)
        return y.relu_() if relu else y
    if means is not None:
        of_image: tuple[Tensor, ...] = (means,)
    elif kernels is None:
        of_image = channel_moments(_wide(x), moments)
    else:
        of_image = kernels.image_moments(in_memory_format(x))[:moments]
    scale, shift = _scale_and_shift(norm, centre, spread, of_image, factors)
    if kernels is not None:
        return kernels.scale_shift_add(in_memory_format(x), centre, scale, shift, shortcut, relu)
    shift = shift - centre * scale
    if eager:
        # In few steps, none of which takes new memory, as the norm by itself would.
        y = _multiply_add(x, scale[:, :, None, None], shortcut).add_(shift[:, :, None, None])
        return y.relu_() if relu else y
    # In memory side by side: else a compiler computes them again for every pixel, square root and all.
    scale, shift = torch.stack((scale, shift)).unbind()
    return _add(x * scale[:, :, None, None] + shift[:, :, None, None], shortcut, relu, x.dtype)


def gated_norm(
    x: Tensor, norm: nn.BatchNorm2d, factors: Factors, moments: int, shortcut: Tensor | None,
    relu: bool,
) -> Tensor:  # fmt: skip
    """Return ``relu(y * factors(moments of y) + shortcut)`` with ``y = norm(x)`` over this batch.

    ``norm`` is a batch norm in training: its running statistics move as nn.BatchNorm2d moves them.
    All arithmetic is in float32 at least.

    Args:
        x: the convolution's output, (N, C, H, W).
        norm: with weights, and more than one value a channel to normalise over.
        factors: of the pooled gate.
        moments: how many it takes.
        shortcut: what is added, (N, C, H, W), or nothing.
        relu: whether a ReLU ends it.
    """
    kernels, way_back = usable_kernels(x), []
    if kernels is None:
        mean, variance = channel_moments(_wide(x), 2)
    else:
        x = in_memory_format(x)
        mean, variance, *way_back = kernels.image_moments(x)
    # Of all images together, by the laws of total expectation and variance.
    centre = mean.mean(0)
    spread = variance.mean(0) + (mean - centre).square().mean(0)
    _update_running_statistics(norm, centre, spread, x.numel() // x.shape[1])
    scale, shift = _scale_and_shift(norm, centre, spread, (mean, variance)[:moments], factors)
    if kernels is not None:
        return kernels.scale_shift_add(x, centre, scale, shift, shortcut, relu, *way_back)
    y = (x - centre[:, None, None]) * scale[:, :, None, None] + shift[:, :, None, None]
    return _add(y, shortcut, relu, x.dtype)


def _scale_and_shift(
    norm: nn.BatchNorm2d, centre: Tensor, spread: Tensor, of_image: tuple[Tensor, ...],
    factors: Factors,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the (N, C) factors with which ``(x - centre) * scale + shift`` is normalised and gated.

    Args:
        centre, spread: (C,), what the norm takes for mean and variance.
        of_image: the moments of ``x``, (N, C) each.
    """
    gain = _gain(norm, spread)
    pooled = [(of_image[0] - centre) * gain + norm.bias]
    if len(of_image) == 2:
        pooled.append(of_image[1] * gain.square())
    gate = factors(*pooled).to(gain.dtype)
    return gate * gain, gate * norm.bias


def _add(y: Tensor, shortcut: Tensor | None, relu: bool, dtype: torch.dtype) -> Tensor:
    if shortcut is not None:
        y = y + shortcut
    return (torch.relu(y) if relu else y).to(dtype)


def _gain(norm: nn.BatchNorm2d, spread: Tensor) -> Tensor:
    return norm.weight * torch.rsqrt(spread + norm.eps)


def _multiply_add(y: Tensor, gate: Tensor, shortcut: Tensor | None) -> Tensor:
    """Return ``y * gate + shortcut`` in the place of ``y``: on a CPU, new memory costs most of it."""
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
    # Without a momentum the statistics are the means over all batches so far.
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
