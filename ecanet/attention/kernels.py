"""Triton kernels of the fused passes, as operators of torch.library.

Each reads and writes (N, C, H, W) as it lies in memory, channels last or not, and sums in float32. A
tile of a kernel is some channels by some pixels of one image.

``image_moments`` and ``scale_shift_add`` belong together. Taken apart, their backward passes would write
two gradients of x, each as large as x, and add them up. So x's whole gradient is left to the first,
which runs last: beside the moments it returns a ``carrier`` of x's shape and a ``slot`` of the factors'
shape, without values and without memory, for ``scale_shift_add`` to take. As the gradients of those two it
sends back what arrived at its output and the factors themselves, and the backward pass of
``image_moments`` makes x's gradient of everything at once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# ---- kernels


@triton.jit
def _tile(tiles, C, P, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """This program's image, channels and first pixel, of ``tiles`` tiles along the pixels."""
    program = tl.program_id(0)
    first = (program % tiles) * BLOCK_P
    program = program // tiles
    blocks = tl.cdiv(C, BLOCK_C)
    channels = (program % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    return (program // blocks).to(tl.int64), channels, first


@triton.jit
def _moments_kernel(
    x, mean, variance, C, P, stride_c, stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, VARIANCE: tl.constexpr,
):  # fmt: skip
    image, c, _ = _tile(1, C, P, BLOCK_C, BLOCK_P)
    there = c < C
    start = x + image * C * P + c * stride_c
    # Sums of what differs from the first pixel keep their precision where the mean is far from zero.
    origin = tl.load(start, mask=there, other=0.0).to(tl.float32)
    sums = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    squares = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for first in range(0, P, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        inside = there[:, None] & (p < P)[None, :]
        values = tl.load(start[:, None] + p[None, :] * stride_p, mask=inside, other=0.0)
        values = tl.where(inside, values.to(tl.float32) - origin[:, None], 0.0)
        sums += values
        if VARIANCE:
            squares += values * values
    offset = tl.sum(sums, 1) / P
    tl.store(mean + image * C + c, origin + offset, mask=there)
    if VARIANCE:
        spread = tl.sum(squares, 1) / P - offset * offset
        tl.store(variance + image * C + c, tl.maximum(spread, 0.0), mask=there)


@triton.jit
def _moments_backward_kernel(
    carried, x, mean, scale, grad_mean, grad_variance, grad_x, tiles, C, P, stride_c, stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    image, c, first = _tile(tiles, C, P, BLOCK_C, BLOCK_P)
    p = first + tl.arange(0, BLOCK_P)
    there = c < C
    inside = there[:, None] & (p < P)[None, :]
    at = image * C * P + c[:, None] * stride_c + p[None, :] * stride_p
    vector = image * C + c
    factor = tl.load(scale + vector, mask=there, other=0.0)
    centre = tl.load(mean + vector, mask=there, other=0.0)
    of_mean = tl.load(grad_mean + vector, mask=there, other=0.0) / P
    of_variance = 2.0 * tl.load(grad_variance + vector, mask=there, other=0.0) / P
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(carried + at, mask=inside, other=0.0).to(tl.float32) * factor[:, None]
    grad += of_mean[:, None] + (values - centre[:, None]) * of_variance[:, None]
    tl.store(grad_x + at, grad, mask=inside)


@triton.jit
def _scale_shift_add_kernel(
    x, centre, scale, shift, shortcut, out, tiles, C, P, stride_c, stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, SHORTCUT: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    image, c, first = _tile(tiles, C, P, BLOCK_C, BLOCK_P)
    p = first + tl.arange(0, BLOCK_P)
    there = c < C
    inside = there[:, None] & (p < P)[None, :]
    at = image * C * P + c[:, None] * stride_c + p[None, :] * stride_p
    origin = tl.load(centre + c, mask=there, other=0.0)
    factor = tl.load(scale + image * C + c, mask=there, other=0.0)
    summand = tl.load(shift + image * C + c, mask=there, other=0.0)
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    values = (values - origin[:, None]) * factor[:, None] + summand[:, None]
    if SHORTCUT:
        values += tl.load(shortcut + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        values = tl.where(values <= 0, 0.0, values)  # not a maximum: NaN stays NaN
    tl.store(out + at, values, mask=inside)


@triton.jit
def _scale_shift_add_backward_kernel(
    grad_out, out, x, centre, passed, grad_scale, grad_shift, C, P, stride_c, stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    image, c, _ = _tile(1, C, P, BLOCK_C, BLOCK_P)
    there = c < C
    start = image * C * P + c * stride_c
    origin = tl.load(centre + c, mask=there, other=0.0)
    of_scale = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    of_shift = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for first in range(0, P, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        inside = there[:, None] & (p < P)[None, :]
        at = start[:, None] + p[None, :] * stride_p
        grad = tl.load(grad_out + at, mask=inside, other=0.0)
        if RELU:
            output = tl.load(out + at, mask=inside, other=0.0)
            grad = tl.where(output <= 0, 0.0, grad).to(grad_out.dtype.element_ty)
            tl.store(passed + at, grad, mask=inside)
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - origin[:, None]
        grad = grad.to(tl.float32)
        of_scale += tl.where(inside, grad * values, 0.0)
        of_shift += grad
    tl.store(grad_scale + image * C + c, tl.sum(of_scale, 1), mask=there)
    tl.store(grad_shift + image * C + c, tl.sum(of_shift, 1), mask=there)


@triton.jit
def _eca_gate(mean, weight, image, c, C, K: tl.constexpr, BLOCK_C: tl.constexpr):
    """sigmoid of the means' convolution with the kernel, at the channels ``c`` of an image."""
    logit = tl.zeros([BLOCK_C], tl.float32)
    for i in tl.static_range(K):
        neighbour = c + i - K // 2
        inside = (neighbour >= 0) & (neighbour < C)
        value = tl.load(mean + image * C + neighbour, mask=inside, other=0.0)
        logit += value * tl.load(weight + i).to(tl.float32)
    return 1.0 / (1.0 + tl.exp(-logit))


@triton.jit
def _eca_kernel(
    x, mean, weight, out, tiles, C, P, stride_c, stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    image, c, first = _tile(tiles, C, P, BLOCK_C, BLOCK_P)
    p = first + tl.arange(0, BLOCK_P)
    inside = (c < C)[:, None] & (p < P)[None, :]
    at = image * C * P + c[:, None] * stride_c + p[None, :] * stride_p
    gate = _eca_gate(mean, weight, image, c, C, K, BLOCK_C)
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, values * gate[:, None], mask=inside)


@triton.jit
def _eca_logit_grad_kernel(
    grad_out, x, mean, weight, grad_logit, C, P, stride_c, stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    image, c, _ = _tile(1, C, P, BLOCK_C, BLOCK_P)
    there = c < C
    start = image * C * P + c * stride_c
    sums = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for first in range(0, P, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        inside = there[:, None] & (p < P)[None, :]
        at = start[:, None] + p[None, :] * stride_p
        grad = tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
        sums += grad * tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    gate = _eca_gate(mean, weight, image, c, C, K, BLOCK_C)
    grad = tl.sum(sums, 1) * gate * (1.0 - gate)
    tl.store(grad_logit + image * C + c, grad, mask=there)


@triton.jit
def _eca_backward_kernel(
    grad_out, mean, weight, grad_logit, grad_x, tiles, C, P, stride_c, stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    image, c, first = _tile(tiles, C, P, BLOCK_C, BLOCK_P)
    p = first + tl.arange(0, BLOCK_P)
    inside = (c < C)[:, None] & (p < P)[None, :]
    at = image * C * P + c[:, None] * stride_c + p[None, :] * stride_p
    gate = _eca_gate(mean, weight, image, c, C, K, BLOCK_C)
    grad_mean = tl.zeros([BLOCK_C], tl.float32)
    for i in tl.static_range(K):
        neighbour = c - i + K // 2
        there = (neighbour >= 0) & (neighbour < C)
        value = tl.load(grad_logit + image * C + neighbour, mask=there, other=0.0)
        grad_mean += value * tl.load(weight + i).to(tl.float32)
    grad = tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32) * gate[:, None]
    tl.store(grad_x + at, grad + (grad_mean / P)[:, None], mask=inside)


# ---- how they are launched

# Values of a tile: 16 for each of a program's 128 threads.
_TILE = 2048


def _format(x: Tensor) -> torch.memory_format:
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _launch(
    kernel: Any, x: Tensor, arguments: list[Any], *, over_pixels: bool, **constants: Any
) -> None:
    """Run ``kernel`` over all tiles of ``x``, or over all channels where it goes along the pixels."""
    n, channels, h, w = x.shape
    pixels = h * w
    if _format(x) == torch.channels_last:
        strides = (1, channels)
        block_c = min(triton.next_power_of_2(channels), 64)
        block_p = min(triton.next_power_of_2(pixels), _TILE // block_c)
    else:
        strides = (pixels, 1)
        block_p = min(triton.next_power_of_2(pixels), _TILE)
        block_c = min(triton.next_power_of_2(channels), _TILE // block_p)
    tiles = 1 if over_pixels else triton.cdiv(pixels, block_p)
    programs = n * triton.cdiv(channels, block_c) * tiles
    if programs == 0:
        return
    given = [*arguments, *([] if over_pixels else [tiles]), channels, pixels, *strides]
    with torch.cuda.device_of(x):
        kernel[(programs,)](*given, BLOCK_C=block_c, BLOCK_P=block_p, **constants)


def _vector(x: Tensor) -> Tensor:
    """Return room for a value of float32 an image and channel."""
    return torch.empty(x.shape[:2], device=x.device, dtype=torch.float32)


# ---- moments of each image, and the way back to x


@torch.library.custom_op("ecanet::image_moments", mutates_args=())
def image_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each image's channel means and biased variances, (N, C) in float32, carrier and slot.

    ``x`` is (N, C, H, W), contiguous or channels last.
    """
    mean, variance = _vector(x), _vector(x)
    _launch(_moments_kernel, x, [x, mean, variance], over_pixels=True, VARIANCE=True)
    return mean, variance, *_way_back(x)


def _way_back(x: Tensor) -> tuple[Tensor, Tensor]:
    carrier = torch.zeros((), device=x.device, dtype=x.dtype).expand(x.shape)
    slot = torch.zeros((), device=x.device, dtype=torch.float32).expand(x.shape[:2])
    return carrier, slot


@image_moments.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _vector(x), _vector(x), *_way_back(x)


@torch.library.custom_op("ecanet::image_moments_backward", mutates_args=())
def _image_moments_backward(
    carried: Tensor, x: Tensor, mean: Tensor, scale: Tensor, grad_mean: Tensor,
    grad_variance: Tensor,
) -> Tensor:  # fmt: skip
    carried = carried.contiguous(memory_format=_format(x))
    vectors = [v.contiguous() for v in (mean, scale, grad_mean, grad_variance)]
    grad_x = torch.empty_like(x)
    _launch(
        _moments_backward_kernel, x, [carried, x, *vectors, grad_x], over_pixels=False
    )  # fmt: skip
    return grad_x


@_image_moments_backward.register_fake
def _(carried: Tensor, x: Tensor, *vectors: Tensor) -> Tensor:
    return torch.empty_like(x)


def _keep_moments(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], output[0])


def _moments_grad(
    ctx: Any, grad_mean: Tensor, grad_variance: Tensor, carried: Tensor, scale: Tensor
) -> Tensor:
    x, mean = ctx.saved_tensors
    return _image_moments_backward(carried, x, mean, scale, grad_mean, grad_variance)


image_moments.register_autograd(_moments_grad, setup_context=_keep_moments)


# ---- batch norm, gate, addition and ReLU in one pass


@torch.library.custom_op("ecanet::scale_shift_add", mutates_args=())
def scale_shift_add(
    x: Tensor, centre: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor | None, relu: bool,
    carrier: Tensor | None = None, slot: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return ``relu((x - centre) * scale + shift + shortcut)``, (N, C, H, W) in x's dtype and layout.

    Args:
        x: (N, C, H, W), contiguous or channels last.
        centre: (C,) in float32.
        scale, shift: (N, C) in float32.
        shortcut: (N, C, H, W), or nothing.
        relu: whether there is a ReLU.
        carrier, slot: of :func:`image_moments`, through which x gets its gradient. Without them it
            gets none.
    """
    out = torch.empty_like(x)
    centre, scale, shift = (v.contiguous() for v in (centre, scale, shift))
    added = x if shortcut is None else shortcut.contiguous(memory_format=_format(x))
    _launch(
        _scale_shift_add_kernel, x, [x, centre, scale, shift, added, out], over_pixels=False,
        SHORTCUT=shortcut is not None, RELU=relu,
    )  # fmt: skip
    return out


@scale_shift_add.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("ecanet::scale_shift_add_backward", mutates_args=())
def _scale_shift_add_backward(
    grad_out: Tensor, out: Tensor | None, x: Tensor, centre: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what passes the ReLU (nothing if there is none), and the gradients of scale and shift."""
    grad_out = grad_out.contiguous(memory_format=_format(x))
    passed = torch.empty_like(x) if out is not None else x.new_empty(0)
    grad_scale, grad_shift = _vector(x), _vector(x)
    _launch(
        _scale_shift_add_backward_kernel, x,
        [grad_out, x if out is None else out, x, centre.contiguous(), passed, grad_scale, grad_shift],
        over_pixels=True, RELU=out is not None,
    )  # fmt: skip
    return passed, grad_scale, grad_shift


@_scale_shift_add_backward.register_fake
def _(
    grad_out: Tensor, out: Tensor | None, x: Tensor, centre: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    passed = torch.empty_like(x) if out is not None else x.new_empty(0)
    return passed, _vector(x), _vector(x)


def _keep_scale_shift_add(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, centre, scale, _, shortcut, relu, *_ = inputs
    ctx.save_for_backward(x, centre, scale, output if relu else None)
    ctx.has_shortcut = shortcut is not None


def _scale_shift_add_grad(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, centre, scale, out = ctx.saved_tensors
    passed, grad_scale, grad_shift = _scale_shift_add_backward(grad_out, out, x, centre)
    if out is None:
        passed = grad_out
    grad_centre = -(scale * grad_shift).sum(0)
    to_shortcut = passed if ctx.has_shortcut else None
    return None, grad_centre, grad_scale, grad_shift, to_shortcut, None, passed, scale


scale_shift_add.register_autograd(_scale_shift_add_grad, setup_context=_keep_scale_shift_add)


# ---- ECA by itself


@torch.library.custom_op("ecanet::eca", mutates_args=())
def eca(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x`` times ECA's gate, in x's dtype and layout, and the channel means, (N, C).

    Args:
        x: (N, C, H, W), contiguous or channels last.
        weight: the kernel, (1, 1, k).
    """
    mean, out = _vector(x), torch.empty_like(x)
    _launch(_moments_kernel, x, [x, mean, mean], over_pixels=True, VARIANCE=False)
    kernel, k = weight.contiguous(), weight.shape[2]
    _launch(_eca_kernel, x, [x, mean, kernel, out], over_pixels=False, K=k)
    return out, mean


@eca.register_fake
def _(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _vector(x)


@torch.library.custom_op("ecanet::eca_backward", mutates_args=())
def _eca_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the convolution's output, (N, C)."""
    grad_out = grad_out.contiguous(memory_format=_format(x))
    grad_logit, grad_x = _vector(x), torch.empty_like(x)
    kernel, k = weight.contiguous(), weight.shape[2]
    _launch(
        _eca_logit_grad_kernel, x, [grad_out, x, mean, kernel, grad_logit], over_pixels=True, K=k
    )
    _launch(
        _eca_backward_kernel, x, [grad_out, mean, kernel, grad_logit, grad_x],
        over_pixels=False, K=k,
    )  # fmt: skip
    return grad_x, grad_logit


@_eca_backward.register_fake
def _(grad_out: Tensor, x: Tensor, weight: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _vector(x)


def _keep_eca(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _eca_grad(ctx: Any, grad_out: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
    x, weight, mean = ctx.saved_tensors
    grad_x, grad_logit = _eca_backward(grad_out, x, weight, mean)
    k = weight.shape[2]
    neighbours = torch.nn.functional.pad(mean, (k // 2, k // 2)).unfold(1, k, 1)
    grad_weight = torch.einsum("nc,nck->k", grad_logit, neighbours)
    return grad_x, grad_weight.to(weight.dtype).view_as(weight)


eca.register_autograd(_eca_grad, setup_context=_keep_eca)
