"""Fuses a pooled gate into the end of a residual branch, without extra passes over the feature map.

A branch ends in a convolution, a batch norm, a gate, an addition and usually a ReLU. Run separately, a
gate reads the branch's widest tensor for the moments, reads and writes it for the product, and saves one
more tensor for backward. All of this can be avoided without approximation:

* In evaluation the batch norm is affine, so the moments of its output follow from those of its input;
  and a mean commutes with a convolution, so the means can be computed from the convolution's *input*,
  which has a quarter of the channels in a bottleneck: :func:`mean_of_conv`.
* In training the batch norm reads its input once for its statistics. Computed per image, the same sums
  give the statistics of the batch, by the law of total variance, and the moments of every image. One
  more pass computes the output, ``relu((x - center) · scale + shift + shortcut)``, with the gate in
  the (N, C) factors ``scale`` and ``shift``. Backward is the same: one pass for the sums, one for the
  gradient, and x and the output are the only large tensors saved: :func:`gated_norm`.

A network without attention has the same ending with a gate of one, so that comparisons are between like
and like.

There are two implementations: the operators of :mod:`ecanet.attention.operators`, with kernels for CPUs and
GPUs, and one in PyTorch for the compiler, which generates the same passes from it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gate import PooledGate, channel_means, channel_moments
from .operators import has_values, in_memory_format, usable_kernels

Drop = Callable[[Tensor], Tensor] | None
"""Stochastic depth, which scales the branch of each image; None without it."""


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
    """Whether :func:`mean_of_conv` reads fewer values than the means of ``conv(z)`` would."""
    if conv.in_channels >= conv.out_channels or not keeps_size(conv):
        return False
    pixels = z.shape[0] * z.shape[2] * z.shape[3]
    return pixels * conv.in_channels + conv.weight.numel() < pixels * conv.out_channels


def gated_norm_in_evaluation(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, gate: PooledGate | None, z: Tensor,
    shortcut: Tensor | None, relu: bool,
) -> Tensor:  # fmt: skip
    """Return ``relu(gate(y) + shortcut)`` with ``y = norm(conv(z))``, (N, C', H, W).

    Args:
        conv: the branch's last convolution.
        norm: its batch norm, in evaluation, with weights and running statistics.
        gate: the pooled gate; None for none.
        z: the convolution's input.
        shortcut: the summand, (N, C', H, W), or None.
        relu: whether a ReLU ends it.
    """
    affine = _affine(norm, norm.running_mean, norm.running_var)
    before = gate is not None and gate.moments == 1 and means_are_cheaper_before(conv, z)
    # Before the convolution, whose output is then still in the cache when it is read next.
    means = _wide(mean_of_conv(conv, z)) if before else None
    x = conv(z)
    kernels = _kernels_for(x, norm, gate)
    if kernels is not None:
        x = in_memory_format(x)
        shortcut = _summand(shortcut, x)
        kernel = None if gate is None else gate.eca_kernel()
        if kernel is not None and means is None and x.is_cpu and len(x) >= torch.get_num_threads():
            kernels.eca_add(x, _vector(kernel), shortcut, *affine, relu, x)
            return x
        factors = None
        if gate is not None:
            mean, variance = kernels.image_moments(x) if means is None else (means, None)
            pooled = kernels.normalized_means(mean, *affine)
            factors = _by_kernels(kernels, gate, pooled, variance, affine)
        kernels.gate_add(x, factors, shortcut, *affine, relu, x)
        return x

    per_image: tuple[Tensor, ...]
    if gate is not None and gate.takes_variance:
        per_image = channel_moments(_wide(x))
    else:
        per_image = (channel_means(_wide(x)) if means is None else means,)
    scale, shift = _scale_and_shift(affine, per_image, gate)
    shift = shift - affine.center * scale
    if torch.compiler.is_compiling():
        # Stacked in memory; otherwise a compiler recomputes them, with the square root, for every pixel.
        scale, shift = torch.stack((scale, shift)).unbind()
    elif x.dtype == scale.dtype and (shortcut is None or shortcut.dtype == x.dtype):
        # In few steps without new memory, which costs the most time on a CPU.
        factor = scale[:, :, None, None]
        y = x.mul_(factor) if shortcut is None else torch.addcmul(shortcut, x, factor, out=x)
        y.add_(shift[:, :, None, None])
        return y.relu_() if relu else y
    y = x * scale[:, :, None, None] + shift[:, :, None, None]
    if shortcut is not None:
        y = y + shortcut
    return (torch.relu(y) if relu else y).to(x.dtype)


def gated_norm(
    x: Tensor, norm: nn.BatchNorm2d, gate: PooledGate | None, shortcut: Tensor | None, relu: bool,
    drop: Drop = None,
) -> Tensor:  # fmt: skip
    """Return ``relu(drop(gate(y)) + shortcut)`` with ``y = norm(x)`` over this batch, (N, C, H, W) like x.

    ``norm`` is a batch norm in training: its running statistics are updated as by nn.BatchNorm2d.
    All arithmetic, the gate's too, is in float32 at least. With kernels there are first derivatives only: a
    second one is a RuntimeError.

    Args:
        x: the convolution's output, (N, C, H, W).
        norm: with weights, and more than one value per channel to normalize over.
        gate: the pooled gate; None for none.
        shortcut: the summand, (N, C, H, W), or None.
        relu: whether a ReLU ends it.
        drop: stochastic depth.
    """
    kernels = _kernels_for(x, norm, gate)
    if kernels is None:
        return _gated_norm_in_pytorch(x, norm, gate, shortcut, relu, drop)
    x = in_memory_format(x)
    shortcut = _summand(shortcut, x)
    kernel = None if gate is None else gate.eca_kernel()
    if drop is None and (gate is None or kernel is not None):
        return _NormAndEca.apply(kernels, x, norm.weight, norm.bias, kernel, shortcut, norm, relu)
    link, count = _Link(), 1 if gate is None else gate.moments
    pooled, variance, carrier = _Moments.apply(
        kernels, x, norm.weight, norm.bias, norm, link, count
    )
    factors = _factors(gate, (pooled, variance)[:count]).expand(pooled.shape)
    if drop is not None:
        factors = drop(factors)
    return _GateAdd.apply(kernels, x.detach(), factors, shortcut, carrier, relu, link)


# ---- with kernels


class _Affine(NamedTuple):
    """The norm as the operators take it: (C,) in float32 at least."""

    weight: Tensor
    bias: Tensor
    center: Tensor
    spread: Tensor
    eps: float


def _affine(norm: nn.BatchNorm2d, center: Tensor | None, spread: Tensor | None) -> _Affine:
    assert center is not None
    assert spread is not None
    weight, bias = _vector(norm.weight), _vector(norm.bias)
    return _Affine(weight, bias, _vector(center), _vector(spread), norm.eps)


def _by_kernels(
    kernels: Any, gate: PooledGate, pooled: Tensor, variance: Tensor | None, affine: _Affine
) -> Tensor:
    """Return the gate, (N, C), of each image's means after the norm and variances before it."""
    kernel = gate.eca_kernel()
    if kernel is not None:
        return kernels.eca_gate(pooled, _vector(kernel))
    moments: tuple[Tensor, ...] = (pooled,)
    if gate.moments == 2 and variance is not None:
        moments += (_variance_after(variance, affine),)
    return _vector(_factors(gate, moments).expand(pooled.shape))


def _variance_after(variance: Tensor, affine: _Affine) -> Tensor:
    """Return each image's variances after the norm, (N, C), of those before it."""
    return variance * affine.weight.square() / (affine.spread + affine.eps)


def _batch_moments(kernels: Any, x: Tensor, norm: nn.BatchNorm2d) -> tuple[list[Tensor], _Affine]:
    """Return each image's mean, variance and mean after the norm, and the norm with its statistics."""
    weight, bias = _vector(norm.weight), _vector(norm.bias)
    running = _running_statistics(norm)
    mean, variance, center, spread, pooled = kernels.batch_moments(
        x, weight, bias, norm.eps, *running
    )
    _updated(norm, *running)
    return [mean, variance, pooled], _Affine(weight, bias, center, spread, norm.eps)


def _running_statistics(norm: nn.BatchNorm2d) -> tuple[Tensor | None, Tensor | None, float]:
    """Return running mean, variance and momentum for an operator to update; :func:`_updated` follows."""
    mean, variance, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if not _tracks(norm) or mean is None or variance is None:
        return None, None, 0.0
    dense = mean.is_contiguous() and variance.is_contiguous()
    if norm.momentum is not None and mean.dtype == torch.float32 and dense:
        if batches is not None:
            batches.add_(1)
        return mean, variance, norm.momentum
    # The operators update float32 by a number: a step of one from anything is the batch's own.
    own = torch.zeros_like(mean, dtype=torch.float32)
    return own, own.clone(), 1.0


def _updated(norm: nn.BatchNorm2d, mean: Tensor | None, variance: Tensor | None, _: float) -> None:
    """Move running statistics that the operator could not update towards what it returned for the batch."""
    if mean is not None and variance is not None and mean is not norm.running_mean:
        _update_running_statistics(norm, mean, variance)


def _first_derivatives_only(
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., tuple[Tensor | None, ...]]:
    """Refuse to differentiate ``backward``, whose results would be taken for constants."""

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [grad for grad in grads if grad is not None]
        if torch.is_grad_enabled() or not all(map(has_values, given)):
            raise RuntimeError(
                "fused blocks have no second derivatives and no batched gradients: build the model with "
                "fused=False, or call ecanet.models.residual.set_fused(model, False)"
            )
        return backward(ctx, *grads)

    return checked


class _NormAndEca(torch.autograd.Function):
    """The whole end of a branch with ECA, or without a gate if ``kernel`` is None."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Any, x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor | None,
        shortcut: Tensor | None, norm: nn.BatchNorm2d, relu: bool,
    ) -> Tensor:  # fmt: skip
        wide = _vector(weight), _vector(bias), norm.eps, None if kernel is None else _vector(kernel)
        running = _running_statistics(norm)
        out, saved = kernels.norm_eca(x, *wide, shortcut, *running, relu)
        _updated(norm, *running)
        ctx.save_for_backward(x, weight, bias, kernel, out if relu else None, *saved)
        ctx.kernels, ctx.eps = kernels, norm.eps
        return out

    @staticmethod
    @_first_derivatives_only
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, kernel, out, *saved = ctx.saved_tensors
        wide = _vector(weight), _vector(bias), ctx.eps, None if kernel is None else _vector(kernel)
        grad_x, *of_norm, grad_kernel, passed = ctx.kernels.norm_eca_backward(
            grad_out, out, x, *wide, saved
        )
        grad_weight, grad_bias = (grad.to(weight.dtype) for grad in of_norm)
        of_kernel = None if kernel is None else grad_kernel.view_as(kernel).to(kernel.dtype)
        to_shortcut = (grad_out if out is None else passed) if ctx.needs_input_grad[5] else None
        return None, grad_x, grad_weight, grad_bias, of_kernel, to_shortcut, None, None


class _Link:
    """What the two halves of a branch's end pass to each other beside the graph.

    Forward, the norm with the statistics of the batch; backward, the gate and the sums of gradients.
    """

    affine: _Affine
    sums: tuple[Tensor, Tensor, Tensor]


class _Moments(torch.autograd.Function):
    """The moments of each image after the norm: the first half of the end with any other gate.

    The whole gradient of x is computed here, which runs last, in one pass: separately, both halves would
    write a gradient as large as x. So there is a third output, in x's shape and without memory, the carrier,
    through which :class:`_GateAdd` passes what the ReLU lets through of its gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, kernels: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d,
        link: _Link, moments: int,
    ) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
        (mean, variance, pooled), affine = _batch_moments(kernels, x, norm)
        ctx.save_for_backward(x, mean, variance, *affine[:4])
        ctx.kernels, ctx.eps, ctx.dtype, ctx.link = kernels, norm.eps, weight.dtype, link
        ctx.set_materialize_grads(False)
        link.affine = affine
        after = _variance_after(variance, affine) if moments == 2 else None
        return pooled, after, x.new_zeros(()).expand(x.shape)

    @staticmethod
    @_first_derivatives_only
    def backward(
        ctx: Any, grad_pooled: Tensor | None, grad_variance: Tensor | None, passed: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, mean, variance, weight, _, center, spread = ctx.saved_tensors
        gate, of_shift, of_scale = ctx.link.sums
        grad_x, grad_weight, grad_bias = ctx.kernels.norm_backward(
            passed, x, gate, of_shift, of_scale, grad_pooled, grad_variance, mean, variance, weight,
            center, spread, ctx.eps,
        )  # fmt: skip
        return None, grad_x, grad_weight.to(ctx.dtype), grad_bias.to(ctx.dtype), None, None, None


class _GateAdd(torch.autograd.Function):
    """Norm, gate, addition and ReLU in one pass: the second half. x gets its gradient through the carrier."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Any, x: Tensor, gate: Tensor, shortcut: Tensor | None, carrier: Tensor,
        relu: bool, link: _Link,
    ) -> Tensor:  # fmt: skip
        gate, out = _vector(gate), torch.empty_like(x)
        kernels.gate_add(x, gate, shortcut, *link.affine, relu, out)
        ctx.save_for_backward(x, gate, out if relu else None, *link.affine[:4])
        ctx.kernels, ctx.eps, ctx.link = kernels, link.affine.eps, link
        return out

    @staticmethod
    @_first_derivatives_only
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, out, *vectors = ctx.saved_tensors
        passed, *sums, grad_gate = ctx.kernels.gate_add_backward(
            grad_out, out, x, gate, *vectors, ctx.eps
        )
        if out is None:
            passed = grad_out
        ctx.link.sums = (gate, *sums)
        to_shortcut = passed if ctx.needs_input_grad[3] else None
        return None, None, grad_gate, to_shortcut, passed, None, None


# ---- in PyTorch, for the compiler


def _gated_norm_in_pytorch(
    x: Tensor, norm: nn.BatchNorm2d, gate: PooledGate | None, shortcut: Tensor | None, relu: bool,
    drop: Drop,
) -> Tensor:  # fmt: skip
    mean, variance = _shifted_moments(_wide(x))
    # Over all images, by the laws of total expectation and variance.
    center = mean.mean(0)
    spread = variance.mean(0) + (mean - center).square().mean(0)
    values = x.numel() // x.shape[1]
    if _tracks(norm):
        _update_running_statistics(norm, center, spread * (values / (values - 1)))
    affine = _Affine(_wide(norm.weight), _wide(norm.bias), center, spread, norm.eps)
    per_image = (mean, variance) if gate is not None and gate.moments == 2 else (mean,)
    scale, shift = _scale_and_shift(affine, per_image, gate, drop)
    # The gradient of the center would be a sum over all pixels, one more pass: it is left to the vectors.
    origin = center.detach()
    shift = shift + (origin - center) * scale
    return _ScaleShiftAdd.apply(x, origin, scale, shift, shortcut, relu)


def _shifted_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's channel means and biased variances from two sums.

    Of differences from the first pixel, which keep their precision if the mean is far from zero. A compiler
    makes one pass of them, and of their gradient a pointwise expression; that of torch.var_mean has a mean.
    """
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
    origin = pixels[:, :1].detach()  # neither moment depends on it
    offset = pixels - origin
    first, second = offset.mean(1), offset.square().mean(1)
    return origin[:, 0] + first, (second - first.square()).clamp_min(0)


class _ScaleShiftAdd(torch.autograd.Function):
    """``relu((x - origin) * scale + shift + shortcut)``; ``origin`` (C,) is a constant.

    Written so that a compiler moves the fewest bytes: the result is rounded before the ReLU, so that its
    mask and the masked gradient are read in x's dtype. x is not converted by itself: a conversion that is
    used above and below a reduction would be saved for backward, in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, origin: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor | None,
        relu: bool,
    ) -> Tensor:  # fmt: skip
        y = (x - origin[:, None, None]) * scale[:, :, None, None] + shift[:, :, None, None]
        if shortcut is not None:
            y = y + shortcut
        y = y.to(x.dtype)
        if relu:
            y = torch.relu(y)
        ctx.save_for_backward(x, origin, scale, y if relu else None)
        ctx.added = None if shortcut is None else shortcut.dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, origin, scale, out = ctx.saved_tensors
        passed = grad if out is None else torch.where(out <= 0, 0.0, grad)
        wide = _wide(passed)
        of_shift = wide.sum((2, 3))
        of_scale = (wide * (x - origin[:, None, None])).sum((2, 3))
        of_x = (wide * scale[:, :, None, None]).to(x.dtype)
        to_shortcut = None if ctx.added is None else passed.to(ctx.added)
        return of_x, None, of_scale, of_shift, to_shortcut, None


def _scale_and_shift(
    affine: _Affine, per_image: tuple[Tensor, ...], gate: PooledGate | None, drop: Drop = None
) -> tuple[Tensor, Tensor]:
    """Return the (N, C) factors with which ``(x - center) * scale + shift`` is normalized and gated.

    Args:
        affine: the norm.
        per_image: the moments of ``x``, (N, C) each.
        gate: None for none.
        drop: stochastic depth.
    """
    gain = affine.weight * torch.rsqrt(affine.spread + affine.eps)
    pooled = [(per_image[0] - affine.center) * gain + affine.bias]
    if len(per_image) == 2:
        pooled.append(per_image[1] * gain.square())
    factors = _factors(gate, tuple(pooled)).to(gain.dtype)
    if drop is not None:
        factors = drop(factors)
    return factors * gain, factors * affine.bias


# ---- shared


def _factors(gate: PooledGate | None, moments: tuple[Tensor, ...]) -> Tensor:
    """Return the gate, (N, C), in float32 also under autocast; ones for none."""
    if gate is None:
        return torch.ones_like(moments[0])
    with _full_precision(moments[0].device.type):
        return gate.factors(*moments)


def _tracks(norm: nn.BatchNorm2d) -> bool:
    return norm.track_running_stats and norm.running_mean is not None


@torch.no_grad()
def _update_running_statistics(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics towards the batch's mean and unbiased variance."""
    batches, share = norm.num_batches_tracked, norm.momentum
    if batches is not None:
        batches.add_(1)
    if share is None:
        # The statistics are averages over all batches so far. nn.BatchNorm2d keeps them without a number.
        share = 0.0 if batches is None else 1 / batches.double()
    for running, value in ((norm.running_mean, mean), (norm.running_var, variance)):
        running.mul_(1 - share).add_(value.to(running.dtype) * share)


def _kernels_for(x: Tensor, norm: nn.BatchNorm2d, gate: PooledGate | None) -> Any:
    """Return the operators' kernels; None where there are none for x, or none for these weights beside it."""
    if torch.compiler.is_compiling():
        return None
    kernel = None if gate is None else gate.eca_kernel()
    for weight in (norm.weight, norm.running_mean, kernel):
        if weight is not None and (weight.dtype == torch.float64 or weight.device != x.device):
            return None
    return usable_kernels(x)


def _summand(shortcut: Tensor | None, x: Tensor) -> Tensor | None:
    """Return the shortcut as the operators take it: in x's dtype and shape."""
    if shortcut is None or (shortcut.dtype == x.dtype and shortcut.shape == x.shape):
        return shortcut
    return shortcut.to(x.dtype).expand_as(x)


def _full_precision(device: str) -> AbstractContextManager[Any]:
    # Dynamo of torch 2.11 cannot trace the question, and the compiler has only devices with autocast.
    if not torch.compiler.is_compiling() and not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _wide(x: Tensor) -> Tensor:
    """Return ``x`` in float32 at least."""
    if x.dtype in (torch.float32, torch.float64):
        return x
    return x.float()


def _vector(x: Tensor) -> Tensor:
    """Return weights or statistics as the operators take them."""
    return _wide(x).contiguous()
