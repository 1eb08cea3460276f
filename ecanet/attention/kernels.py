"""Triton kernels of the fused passes, as operators of torch.library.

Each reads and writes (N, C, H, W) in its memory order, channels last or not, and sums in float32. A tile
of a kernel is a block of channels by a block of pixels of one image.

There are two kinds. Elementwise kernels apply per-channel values tile by tile. Reductions sum over a strip
of an image's pixels, with enough strips to saturate the GPU's memory: loads wait for each other within a
program, but not between programs. The sums of strips are combined in a fixed order. Reductions start with
the last image, which was written last and is still in the cache; the kernels that follow them start with
the first image, for the same reason.

``image_moments`` and ``scale_shift_add`` belong together. Separately, their backward passes would write
two gradients of x, each as large as x, and add them. So the whole gradient of x is computed by the
backward pass of ``image_moments``, which runs last: beside the moments it returns ``grad_carrier_x``, with
the shape of x, and ``grad_carrier_scale``, with that of the factors, both without values and memory, which
``scale_shift_add`` takes. As the gradients of these two, its backward pass returns the gradient of its
output and the factors, from which ``image_moments`` computes the gradient of x in one pass.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# ---- kernels


@triton.jit
def _tile(tiles, C, P, stride_c, stride_p, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """This program's image, channels, channel mask, element mask and element offsets."""
    program = tl.program_id(0)
    p = (program % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    program = program // tiles
    blocks = tl.cdiv(C, BLOCK_C)
    c = (program % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    image = (program // blocks).to(tl.int64)
    there = c < C
    inside = there[:, None] & (p < P)[None, :]
    at = image * C * P + c[:, None] * stride_c + p[None, :] * stride_p
    return image, c, there, inside, at


@triton.jit
def _strip(strips, C, P, BLOCK_C: tl.constexpr):
    """This program's strip (counted over all images), image, channels, and first and last pixel."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    blocks = tl.cdiv(C, BLOCK_C)
    channels = (program % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    strip = (program // blocks).to(tl.int64)
    length = P // strips
    first = (strip % strips).to(tl.int32) * length
    return strip, strip // strips, channels, first, first + length


@triton.jit
def _moments_kernel(
    x, mean, variance, strips, C, P, stride_c, stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, VARIANCE: tl.constexpr,
):  # fmt: skip
    strip, image, c, begin, end = _strip(strips, C, P, BLOCK_C)
    there = c < C
    start = x + image * C * P + c * stride_c
    # Differences from the first pixel keep their precision in sums if the mean is far from zero.
    origin = tl.load(start + begin * stride_p, mask=there, other=0.0).to(tl.float32)
    sums = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    squares = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for first in range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        inside = there[:, None] & (p < end)[None, :]
        values = tl.load(start[:, None] + p[None, :] * stride_p, mask=inside, other=0.0)
        values = tl.where(inside, values.to(tl.float32) - origin[:, None], 0.0)
        sums += values
        if VARIANCE:
            squares += values * values
    offset = tl.sum(sums, 1) / (end - begin)
    tl.store(mean + strip * C + c, origin + offset, mask=there)
    if VARIANCE:
        spread = tl.sum(squares, 1) / (end - begin) - offset * offset
        tl.store(variance + strip * C + c, tl.maximum(spread, 0.0), mask=there)


@triton.jit
def _moments_backward_kernel(
    carried, x, mean, scale, grad_mean, grad_variance, grad_x, tiles, C, P, stride_c, stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    image, c, there, inside, at = _tile(tiles, C, P, stride_c, stride_p, BLOCK_C, BLOCK_P)
    vector = image * C + c
    factor = tl.load(scale + vector, mask=there, other=0.0)
    center = tl.load(mean + vector, mask=there, other=0.0)
    of_mean = tl.load(grad_mean + vector, mask=there, other=0.0) / P
    of_variance = 2.0 * tl.load(grad_variance + vector, mask=there, other=0.0) / P
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(carried + at, mask=inside, other=0.0).to(tl.float32) * factor[:, None]
    grad += of_mean[:, None] + (values - center[:, None]) * of_variance[:, None]
    tl.store(grad_x + at, grad, mask=inside)


@triton.jit
def _scale_shift_add_kernel(
    x, center, scale, shift, shortcut, out, tiles, C, P, stride_c, stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, SHORTCUT: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    image, c, there, inside, at = _tile(tiles, C, P, stride_c, stride_p, BLOCK_C, BLOCK_P)
    origin = tl.load(center + c, mask=there, other=0.0)
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
    grad_out, out, x, center, passed, grad_scale, grad_shift, strips, C, P, stride_c, stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    strip, image, c, begin, end = _strip(strips, C, P, BLOCK_C)
    there = c < C
    start = image * C * P + c * stride_c
    origin = tl.load(center + c, mask=there, other=0.0)
    of_scale = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    of_shift = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for first in range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        inside = there[:, None] & (p < end)[None, :]
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
    tl.store(grad_scale + strip * C + c, tl.sum(of_scale, 1), mask=there)
    tl.store(grad_shift + strip * C + c, tl.sum(of_shift, 1), mask=there)


@triton.jit
def _eca_gate_kernel(
    means, weight, mean, gate, strips, C, K: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """The channel means, from those of the strips, and the sigmoid of their convolution."""
    program = tl.program_id(0)
    blocks = tl.cdiv(C, BLOCK_C)
    image = (program // blocks).to(tl.int64)
    c = (program % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    logit = tl.zeros([BLOCK_C], tl.float32)
    for i in tl.static_range(K):
        value = _sum_of_strips(means, strips, image, c + i - K // 2, C, BLOCK_C) / strips
        logit += value * tl.load(weight + i).to(tl.float32)
        if i == K // 2:
            tl.store(mean + image * C + c, value, mask=c < C)
    tl.store(gate + image * C + c, 1.0 / (1.0 + tl.exp(-logit)), mask=c < C)


@triton.jit
def _sum_of_strips(of_strips, strips, image, c, C, BLOCK_C: tl.constexpr):
    """The sum over an image's strips at the channels ``c``; zero outside the range of channels."""
    inside = (c >= 0) & (c < C)
    total = tl.zeros([BLOCK_C], tl.float32)
    for strip in range(strips):
        total += tl.load(of_strips + (image * strips + strip) * C + c, mask=inside, other=0.0)
    return total


@triton.jit
def _eca_kernel(
    x, gate, out, tiles, C, P, stride_c, stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    image, c, there, inside, at = _tile(tiles, C, P, stride_c, stride_p, BLOCK_C, BLOCK_P)
    factor = tl.load(gate + image * C + c, mask=there, other=0.0)
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, values * factor[:, None], mask=inside)


@triton.jit
def _product_kernel(
    grad_out, x, product, strips, C, P, stride_c, stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The gradient of the gate: for each channel, the sum of the output's gradient times x."""
    strip, image, c, begin, end = _strip(strips, C, P, BLOCK_C)
    there = c < C
    start = image * C * P + c * stride_c
    sums = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for first in range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        inside = there[:, None] & (p < end)[None, :]
        at = start[:, None] + p[None, :] * stride_p
        grad = tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
        sums += grad * tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(product + strip * C + c, tl.sum(sums, 1), mask=there)


@triton.jit
def _eca_gate_backward_kernel(
    products, weight, mean, gate, grad_mean, grad_weight, strips, C,
    K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of the means, and this program's part of that of the weights."""
    program = tl.program_id(0)
    blocks = tl.cdiv(C, BLOCK_C)
    image = (program // blocks).to(tl.int64)
    c = (program % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = image * C
    here = tl.load(mean + row + c, mask=c < C, other=0.0)
    grad = tl.zeros([BLOCK_C], tl.float32)
    for i in tl.static_range(K):
        # The logit to which this channel's mean contributes with weight i.
        logit = c - i + K // 2
        inside = (logit >= 0) & (logit < C)
        factor = tl.load(gate + row + logit, mask=inside, other=0.0)
        of_logit = (
            _sum_of_strips(products, strips, image, logit, C, BLOCK_C) * factor * (1.0 - factor)
        )
        grad += of_logit * tl.load(weight + i).to(tl.float32)
        tl.store(grad_weight + program * K + i, tl.sum(of_logit * here))
    tl.store(grad_mean + row + c, grad, mask=c < C)


@triton.jit
def _eca_backward_kernel(
    grad_out, gate, grad_mean, grad_x, tiles, C, P, stride_c, stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    image, c, there, inside, at = _tile(tiles, C, P, stride_c, stride_p, BLOCK_C, BLOCK_P)
    factor = tl.load(gate + image * C + c, mask=there, other=0.0)
    of_mean = tl.load(grad_mean + image * C + c, mask=there, other=0.0) / P
    grad = tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32) * factor[:, None]
    tl.store(grad_x + at, grad + of_mean[:, None], mask=inside)


# ---- how they are launched

# Elements of a tile: 16 for each of a program's 128 threads.
_TILE = 2048
# Most programs of a reduction: 16 for each of a large GPU's 132 multiprocessors.
_PROGRAMS = 2048
# Channels of a program that works on (N, C) vectors.
_CHANNELS = 256


def _format(x: Tensor) -> torch.memory_format:
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _blocks(x: Tensor) -> tuple[int, int]:
    """Return a tile's channels and pixels."""
    channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
    if _format(x) == torch.channels_last:
        block_c = min(triton.next_power_of_2(channels), 64)
        return block_c, min(triton.next_power_of_2(pixels), _TILE // block_c)
    block_p = min(triton.next_power_of_2(pixels), _TILE)
    return min(triton.next_power_of_2(channels), _TILE // block_p), block_p


def _strips(x: Tensor) -> int:
    """Return the number of strips of equal length into which an image's pixels are cut."""
    block_c, block_p = _blocks(x)
    pixels = x.shape[2] * x.shape[3]
    programs = x.shape[0] * triton.cdiv(x.shape[1], block_c)
    most = min(_PROGRAMS // max(programs, 1), pixels // block_p)
    return next((count for count in range(most, 1, -1) if pixels % count == 0), 1)


def _launch(kernel: Any, x: Tensor, arguments: list[Any], parts: int, **constants: Any) -> None:
    """Run ``kernel`` over all channels of ``x`` and ``parts`` parts of each image's pixels."""
    n, channels, h, w = x.shape
    block_c, block_p = _blocks(x)
    strides = (1, channels) if _format(x) == torch.channels_last else (h * w, 1)
    programs = n * triton.cdiv(channels, block_c) * parts
    if programs == 0:
        return
    given = [*arguments, parts, channels, h * w, *strides]
    with torch.cuda.device_of(x):
        kernel[(programs,)](*given, BLOCK_C=block_c, BLOCK_P=block_p, **constants)


def _over_tiles(kernel: Any, x: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run an elementwise kernel on ``x``."""
    tiles = triton.cdiv(x.shape[2] * x.shape[3], _blocks(x)[1])
    _launch(kernel, x, list(arguments), tiles, **constants)


def _over_strips(
    kernel: Any, x: Tensor, *arguments: Any, results: int, **constants: Any
) -> list[Tensor]:
    """Run a reduction over strips; return its results for each strip, (N, strips, C)."""
    strips = _strips(x)
    shape = (x.shape[0], strips, x.shape[1])
    sums = [torch.empty(shape, device=x.device, dtype=torch.float32) for _ in range(results)]
    _launch(kernel, x, [*arguments, *sums], strips, **constants)
    return sums


def _channel_programs(x: Tensor) -> int:
    """Return the number of programs of :func:`_over_channels` for (N, C) or (N, strips, C)."""
    return x.shape[0] * triton.cdiv(x.shape[-1], _CHANNELS)


def _over_channels(kernel: Any, of_strips: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the results of strips, (N, strips, C), by blocks of channels."""
    _, strips, channels = of_strips.shape
    programs = _channel_programs(of_strips)
    if programs == 0:
        return
    with torch.cuda.device_of(of_strips):
        kernel[(programs,)](of_strips, *arguments, strips, channels, BLOCK_C=_CHANNELS, **constants)


def _added(of_strips: Tensor) -> Tensor:
    """Return the sum over strips, (N, strips, C) to (N, C)."""
    return of_strips.sum(1) if of_strips.shape[1] > 1 else of_strips[:, 0]


def _vector(x: Tensor) -> Tensor:
    """Return an uninitialized float32 tensor of (N, C)."""
    return torch.empty(x.shape[:2], device=x.device, dtype=torch.float32)


# ---- moments of each image, and the gradient of x


@torch.library.custom_op("ecanet::image_moments", mutates_args=())
def image_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each image's channel means and biased variances, (N, C) in float32, and two carriers.

    ``x`` is (N, C, H, W), contiguous or channels last.
    """
    mean, variance = _over_strips(_moments_kernel, x, x, results=2, VARIANCE=True)
    if mean.shape[1] == 1:
        return mean[:, 0], variance[:, 0], *_grad_route(x)
    # Strips have equal lengths: the laws of total expectation and variance.
    return mean.mean(1), variance.mean(1) + mean.var(1, correction=0), *_grad_route(x)


def _grad_route(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tensors that carry gradients from ``scale_shift_add``, see the module's docstring."""
    grad_carrier_x = torch.zeros((), device=x.device, dtype=x.dtype).expand(x.shape)
    grad_carrier_scale = torch.zeros((), device=x.device, dtype=torch.float32).expand(x.shape[:2])
    return grad_carrier_x, grad_carrier_scale


@image_moments.register_fake
def _image_moments_fake(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _vector(x), _vector(x), *_grad_route(x)


@torch.library.custom_op("ecanet::image_moments_backward", mutates_args=())
def _image_moments_backward(
    carried: Tensor, x: Tensor, mean: Tensor, scale: Tensor, grad_mean: Tensor,
    grad_variance: Tensor,
) -> Tensor:  # fmt: skip
    carried = carried.contiguous(memory_format=_format(x))
    vectors = [v.contiguous() for v in (mean, scale, grad_mean, grad_variance)]
    grad_x = torch.empty_like(x)
    _over_tiles(_moments_backward_kernel, x, carried, x, *vectors, grad_x)
    return grad_x


@_image_moments_backward.register_fake
def _image_moments_backward_fake(carried: Tensor, x: Tensor, *vectors: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save_moments(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], output[0])


def _moments_grad(
    ctx: Any, grad_mean: Tensor, grad_variance: Tensor, carried: Tensor, scale: Tensor
) -> Tensor:
    x, mean = ctx.saved_tensors
    return _image_moments_backward(carried, x, mean, scale, grad_mean, grad_variance)


image_moments.register_autograd(_moments_grad, setup_context=_save_moments)


# ---- batch norm, gate, addition and ReLU in one pass


@torch.library.custom_op("ecanet::scale_shift_add", mutates_args=())
def scale_shift_add(
    x: Tensor, center: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor | None, relu: bool,
    grad_carrier_x: Tensor | None = None, grad_carrier_scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return ``relu((x - center) * scale + shift + shortcut)``, (N, C, H, W) in x's dtype and layout.

    Args:
        x: (N, C, H, W), contiguous or channels last.
        center: (C,) in float32.
        scale, shift: (N, C) in float32.
        shortcut: (N, C, H, W), or None.
        relu: whether there is a ReLU.
        grad_carrier_x, grad_carrier_scale: from :func:`image_moments`, through which x gets its gradient;
            without them it gets none.
    """
    out = torch.empty_like(x)
    center, scale, shift = (v.contiguous() for v in (center, scale, shift))
    added = x if shortcut is None else shortcut.contiguous(memory_format=_format(x))
    _over_tiles(
        _scale_shift_add_kernel, x, x, center, scale, shift, added, out,
        SHORTCUT=shortcut is not None, RELU=relu,
    )  # fmt: skip
    return out


@scale_shift_add.register_fake
def _scale_shift_add_fake(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("ecanet::scale_shift_add_backward", mutates_args=())
def _scale_shift_add_backward(
    grad_out: Tensor, out: Tensor | None, x: Tensor, center: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient before the ReLU (empty without one), and those of scale and shift."""
    grad_out = grad_out.contiguous(memory_format=_format(x))
    passed = torch.empty_like(x) if out is not None else x.new_empty(0)
    sums = _over_strips(
        _scale_shift_add_backward_kernel, x, grad_out, x if out is None else out, x,
        center.contiguous(), passed, results=2, RELU=out is not None,
    )  # fmt: skip
    grad_scale, grad_shift = map(_added, sums)
    return passed, grad_scale, grad_shift


@_scale_shift_add_backward.register_fake
def _scale_shift_add_backward_fake(
    grad_out: Tensor, out: Tensor | None, x: Tensor, center: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    passed = torch.empty_like(x) if out is not None else x.new_empty(0)
    return passed, _vector(x), _vector(x)


def _save_scale_shift_add(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, center, scale, _, shortcut, relu, *_ = inputs
    ctx.save_for_backward(x, center, scale, output if relu else None)
    ctx.has_shortcut = shortcut is not None


def _scale_shift_add_grad(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, center, scale, out = ctx.saved_tensors
    passed, grad_scale, grad_shift = _scale_shift_add_backward(grad_out, out, x, center)
    if out is None:
        passed = grad_out
    grad_center = -(scale * grad_shift).sum(0)
    to_shortcut = passed if ctx.has_shortcut else None
    return None, grad_center, grad_scale, grad_shift, to_shortcut, None, passed, scale


scale_shift_add.register_autograd(_scale_shift_add_grad, setup_context=_save_scale_shift_add)


# ---- ECA alone


@torch.library.custom_op("ecanet::eca", mutates_args=())
def eca(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``x`` times ECA's gate, in x's dtype and layout, and the channel means and gate, (N, C).

    Args:
        x: (N, C, H, W), contiguous or channels last.
        weight: the kernel, (1, 1, k).
    """
    means, _ = _over_strips(_moments_kernel, x, x, results=2, VARIANCE=False)
    mean, gate, out = _vector(x), _vector(x), torch.empty_like(x)
    _over_channels(_eca_gate_kernel, means, weight.contiguous(), mean, gate, K=weight.shape[2])
    _over_tiles(_eca_kernel, x, x, gate, out)
    return out, mean, gate


@eca.register_fake
def _eca_fake(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), _vector(x), _vector(x)


@torch.library.custom_op("ecanet::eca_backward", mutates_args=())
def _eca_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, mean: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the kernel, (k,)."""
    grad_out = grad_out.contiguous(memory_format=_format(x))
    (products,) = _over_strips(_product_kernel, x, grad_out, x, results=1)
    grad_mean, grad_x, k = _vector(x), torch.empty_like(x), weight.shape[2]
    grad_weight = mean.new_empty(_channel_programs(mean), k)
    _over_channels(
        _eca_gate_backward_kernel, products, weight.contiguous(), mean, gate, grad_mean, grad_weight,
        K=k,
    )  # fmt: skip
    _over_tiles(_eca_backward_kernel, x, grad_out, gate, grad_mean, grad_x)
    return grad_x, grad_weight.sum(0)


@_eca_backward.register_fake
def _eca_backward_fake(
    grad_out: Tensor, x: Tensor, weight: Tensor, mean: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), mean.new_empty(weight.shape[2])


def _save_eca(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _eca_grad(ctx: Any, grad_out: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor]:
    x, weight, mean, gate = ctx.saved_tensors
    grad_x, grad_weight = _eca_backward(grad_out, x, weight, mean, gate)
    return grad_x, grad_weight.to(weight.dtype).view_as(weight)


eca.register_autograd(_eca_grad, setup_context=_save_eca)
