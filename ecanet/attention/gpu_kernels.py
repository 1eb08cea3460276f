"""The operators of :mod:`ecanet.attention.operators` in Triton.

There are three kinds of kernels; all sum in a fixed order.

Elementwise kernels apply per-channel values tile by tile: a block of channels by a block of pixels of one
image. Reductions sum over a strip of an image's pixels, with enough strips to saturate the GPU's memory:
loads wait for each other within a program, but not between programs. They start with the last image, which
was written last and is still in the cache; the kernels that follow them start with the first, for the same
reason.

Kernels of vectors compute all that is (N, C) or (C,), among it the sums of strips, by blocks of images and
channels. They take little more than their launch, so each does as much as it can.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .operators import vector

# Read whenever a kernel is launched, so that a benchmark can vary them.
# Elements of a tile: 16 for each thread of a program of 4 warps.
_TILE = 2048
# Most channels of a tile, channels last.
_BLOCK_C = 64
# Most programs of a reduction: 16 for each of a large GPU's 132 multiprocessors.
_PROGRAMS = 2048
_WARPS = 4
# Stages of the pipeline of loads in a reduction; 1 is none.
_STAGES = 1
# Rows, which are images or strips, and channels of a block of vectors. 8 channels are a sector of the cache.
_ROWS, _CHANNELS, _VECTOR_WARPS = 256, 8, 8

# Triton would compile a kernel anew for numbers that are 1 or multiples of 16; ALIGN says what is of use.
_kernel = triton.jit(
    do_not_specialize=["tiles", "strips", "rows", "images", "N", "C", "P", "row", "parts", "K"]
)


# ---- kernels of feature maps


@triton.jit
def _strides(C, P, LAST: tl.constexpr):
    """The distances in memory of channels and of pixels."""
    if LAST:
        stride_c, stride_p = 1, C
    else:
        stride_c, stride_p = P, 1
    return stride_c, stride_p


@triton.jit
def _tile(
    tiles, C, P,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, ALIGN: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """This program's image, channels, channel mask, element mask and element offsets."""
    program = tl.program_id(0)
    blocks = tl.cdiv(C, BLOCK_C)
    # Programs that run side by side process what lies side by side in memory.
    if LAST:
        C = (
            C // ALIGN * ALIGN
        )  # lets the compiler know the divisor, for loads of more than one value
        block, tile = program % blocks, program // blocks % tiles
    else:
        P = P // ALIGN * ALIGN
        block, tile = program // tiles % blocks, program % tiles
    image = (program // (tiles * blocks)).to(tl.int64)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    there = c < C
    inside = there[:, None] & (p < P)[None, :]
    stride_c, stride_p = _strides(C, P, LAST)
    at = c.to(tl.int64)[:, None] * stride_c + p.to(tl.int64)[None, :] * stride_p
    return image, c, there, inside, image * C * P + at


@triton.jit
def _strip(strips, C, P, BLOCK_C: tl.constexpr, ALIGN: tl.constexpr, LAST: tl.constexpr):
    """This program's channels, channel mask, offsets, distance of pixels, first and last pixel.

    Last the offsets of its results, (N, strips, C).
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    blocks = tl.cdiv(C, BLOCK_C)
    c = (program % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    strip = (program // blocks).to(tl.int64)
    length = P // strips
    if LAST:
        C = C // ALIGN * ALIGN
    else:
        length = length // ALIGN * ALIGN
    P = length * strips
    first = (strip % strips).to(tl.int32) * length
    stride_c, stride_p = _strides(C, P, LAST)
    start = strip // strips * C * P + c.to(tl.int64) * stride_c
    return c, c < C, start, stride_p, first, first + length, strip * C + c


@_kernel
def _moments_kernel(
    x, mean, variance, strips, C, P,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, ALIGN: tl.constexpr, LAST: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    _, there, start, stride_p, begin, end, result = _strip(strips, C, P, BLOCK_C, ALIGN, LAST)
    # Differences from the first pixel keep their precision in sums if the mean is far from zero.
    first_pixel = x + start + begin.to(tl.int64) * stride_p
    origin = tl.load(first_pixel, mask=there, other=0.0).to(tl.float32)
    sums = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    squares = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for first in tl.range(begin, end, BLOCK_P, num_stages=STAGES):
        p = first + tl.arange(0, BLOCK_P)
        inside = there[:, None] & (p < end)[None, :]
        at = start[:, None] + p.to(tl.int64)[None, :] * stride_p
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        values = tl.where(inside, values - origin[:, None], 0.0)
        sums += values
        if variance is not None:
            squares += values * values
    offset = tl.sum(sums, 1) / (end - begin)
    tl.store(mean + result, origin + offset, mask=there)
    if variance is not None:
        spread = tl.sum(squares, 1) / (end - begin) - offset * offset
        tl.store(variance + result, tl.maximum(spread, 0.0), mask=there)


@_kernel
def _gate_add_kernel(
    x, gate, shortcut, weight, bias, center, spread, eps, out, tiles, C, P, RELU: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, ALIGN: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    image, c, there, inside, at = _tile(tiles, C, P, BLOCK_C, BLOCK_P, ALIGN, LAST)
    origin = tl.load(center + c, mask=there, other=0.0)
    scale = tl.load(weight + c, mask=there, other=0.0)
    scale *= tl.rsqrt(tl.load(spread + c, mask=there, other=1.0) + eps)
    shift = tl.load(bias + c, mask=there, other=0.0)
    if gate is not None:
        factor = tl.load(gate + image * C + c, mask=there, other=0.0)
        scale *= factor
        shift *= factor
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    values = (values - origin[:, None]) * scale[:, None] + shift[:, None]
    if shortcut is not None:
        values += tl.load(shortcut + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        values = tl.where(values <= 0, 0.0, values)  # not a maximum: NaN stays NaN
    tl.store(out + at, values, mask=inside)


@_kernel
def _gradient_sums_kernel(
    grad_out, out, x, center, passed, of_scale, of_shift, strips, C, P,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, ALIGN: tl.constexpr, LAST: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient that passes the ReLU, if there is one, and of its product with ``x - center``."""
    c, there, start, stride_p, begin, end, result = _strip(strips, C, P, BLOCK_C, ALIGN, LAST)
    origin = tl.zeros([BLOCK_C], tl.float32)
    if center is not None:
        origin = tl.load(center + c, mask=there, other=0.0)
    products = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    sums = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for first in tl.range(begin, end, BLOCK_P, num_stages=STAGES):
        p = first + tl.arange(0, BLOCK_P)
        inside = there[:, None] & (p < end)[None, :]
        at = start[:, None] + p.to(tl.int64)[None, :] * stride_p
        grad = tl.load(grad_out + at, mask=inside, other=0.0)
        if out is not None:
            output = tl.load(out + at, mask=inside, other=0.0)
            grad = tl.where(output <= 0, 0.0, grad).to(grad_out.dtype.element_ty)
            tl.store(passed + at, grad, mask=inside)
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - origin[:, None]
        grad = grad.to(tl.float32)
        products += tl.where(inside, grad * values, 0.0)
        sums += grad
    tl.store(of_scale + result, tl.sum(products, 1), mask=there)
    if of_shift is not None:
        tl.store(of_shift + result, tl.sum(sums, 1), mask=there)


@_kernel
def _norm_backward_kernel(
    passed, x, center, factor, slope, offset, grad_x, row, tiles, C, P,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, ALIGN: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """``row`` is C if the three coefficients are (N, C), and 0 if they are the same for all images."""
    image, c, there, inside, at = _tile(tiles, C, P, BLOCK_C, BLOCK_P, ALIGN, LAST)
    origin = tl.load(center + c, mask=there, other=0.0)
    row_at = image * row + c
    of_grad = tl.load(factor + row_at, mask=there, other=0.0)
    of_x = tl.load(slope + row_at, mask=there, other=0.0)
    constant = tl.load(offset + row_at, mask=there, other=0.0)
    grad = tl.load(passed + at, mask=inside, other=0.0).to(tl.float32)
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    grad = grad * of_grad[:, None] + (values - origin[:, None]) * of_x[:, None] + constant[:, None]
    tl.store(grad_x + at, grad, mask=inside)


@_kernel
def _eca_kernel(
    x, gate, of_mean, out, tiles, C, P,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, ALIGN: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """``x * gate``, and for backward the gradient of the means spread over the pixels."""
    image, c, there, inside, at = _tile(tiles, C, P, BLOCK_C, BLOCK_P, ALIGN, LAST)
    factor = tl.load(gate + image * C + c, mask=there, other=0.0)
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * factor[:, None]
    if of_mean is not None:
        summand = tl.load(of_mean + image * C + c, mask=there, other=0.0) / P
        values += summand[:, None]
    tl.store(out + at, values, mask=inside)


# ---- kernels of vectors


@triton.jit
def _images_and_channels(C, IMAGES: tl.constexpr, CHANNELS: tl.constexpr):
    """This program's images and channels."""
    program = tl.program_id(0)
    blocks = tl.cdiv(C, CHANNELS)
    image = (program // blocks) * IMAGES + tl.arange(0, IMAGES)
    return image, (program % blocks) * CHANNELS + tl.arange(0, CHANNELS)


@triton.jit
def _at(image, c, N, C):
    """Offsets in (N, C), and which of them there are."""
    inside = (image < N)[:, None] & ((c >= 0) & (c < C))[None, :]
    return image.to(tl.int64)[:, None] * C + c[None, :], inside


@triton.jit
def _at_strips(first, strips, image, c, N, C, STRIPS: tl.constexpr):
    """Offsets of the strips from ``first`` on in (N, strips, C), and which of them there are."""
    strip = first + tl.arange(0, STRIPS)
    rows = (image < N)[:, None] & (strip < strips)[None, :]
    at = image.to(tl.int64)[:, None] * strips + strip[None, :]
    inside = rows[:, :, None] & ((c >= 0) & (c < C))[None, None, :]
    return at[:, :, None] * C + c[None, None, :], inside


@triton.jit
def _sum_of_strips(
    of_strips, strips, image, c, N, C,
    IMAGES: tl.constexpr, STRIPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The sums over strips, (N, strips, C) to images by channels; zero beyond the first and last channel."""
    total = tl.zeros([IMAGES, CHANNELS], tl.float32)
    for first in range(0, strips, STRIPS):
        at, inside = _at_strips(first, strips, image, c, N, C, STRIPS)
        total += tl.sum(tl.load(of_strips + at, mask=inside, other=0.0), 1)
    return total


@triton.jit
def _moments_of_strips(
    means, variances, strips, image, c, N, C,
    IMAGES: tl.constexpr, STRIPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Mean and variance of each image: strips have equal lengths."""
    # Differences from the first strip, for precision.
    first_at, known = _at_strips(0, strips, image, c, N, C, 1)
    origin = tl.load(means + first_at, mask=known, other=0.0)
    sums = tl.zeros([IMAGES, CHANNELS], tl.float32)
    squares = tl.zeros([IMAGES, CHANNELS], tl.float32)
    for first in range(0, strips, STRIPS):
        at, inside = _at_strips(first, strips, image, c, N, C, STRIPS)
        offset = tl.load(means + at, mask=inside, other=0.0) - origin
        offset = tl.where(inside, offset, 0.0)
        sums += tl.sum(offset, 1)
        squares += tl.sum(offset * offset + tl.load(variances + at, mask=inside, other=0.0), 1)
    offset = sums / strips
    return tl.sum(origin, 1) + offset, tl.maximum(squares / strips - offset * offset, 0.0)


@_kernel
def _image_moments_kernel(
    means, variances, mean, variance, strips, N, C,
    IMAGES: tl.constexpr, STRIPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, c = _images_and_channels(C, IMAGES, CHANNELS)
    m, v = _moments_of_strips(
        means, variances, strips, image, c, N, C, IMAGES, STRIPS, CHANNELS
    )  # fmt: skip
    at, inside = _at(image, c, N, C)
    tl.store(mean + at, m, mask=inside)
    tl.store(variance + at, v, mask=inside)


@_kernel
def _batch_moments_kernel(
    means, variances, weight, bias, eps, running_mean, running_var, momentum, correction,
    mean, variance, pooled, center, spread, strips, N, C,
    IMAGES: tl.constexpr, STRIPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``correction`` makes the variance unbiased; ``mean``, ``variance`` and ``pooled`` may be None."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = c < C
    # Differences from the first strip, for precision.
    origin = tl.load(means + c, mask=there, other=0.0)
    sums = tl.zeros([IMAGES, CHANNELS], tl.float32)
    squares = tl.zeros([IMAGES, CHANNELS], tl.float32)
    for first in range(0, N, IMAGES):
        image = first + tl.arange(0, IMAGES)
        at, inside = _at(image, c, N, C)
        m, v = _moments_of_strips(
            means, variances, strips, image, c, N, C, IMAGES, STRIPS, CHANNELS
        )  # fmt: skip
        if mean is not None:
            tl.store(mean + at, m, mask=inside)
            tl.store(variance + at, v, mask=inside)
        offset = tl.where(inside, m - origin[None, :], 0.0)
        sums += offset
        squares += offset * offset + v
    offset = tl.sum(sums, 0) / N
    # Over all images, by the laws of total expectation and variance.
    m = origin + offset
    v = tl.maximum(tl.sum(squares, 0) / N - offset * offset, 0.0)
    tl.store(center + c, m, mask=there)
    tl.store(spread + c, v, mask=there)
    if running_mean is not None:
        running = tl.load(running_mean + c, mask=there) * (1 - momentum) + m * momentum
        tl.store(running_mean + c, running, mask=there)
        running = tl.load(running_var + c, mask=there) * (1 - momentum) + v * correction * momentum
        tl.store(running_var + c, running, mask=there)
    if pooled is not None:
        gain = tl.load(weight + c, mask=there) * tl.rsqrt(v + eps)
        shift = tl.load(bias + c, mask=there)
        tl.debug_barrier()  # the means are read by other threads than have written them
        for first in range(0, N, IMAGES):
            at, inside = _at(first + tl.arange(0, IMAGES), c, N, C)
            values = tl.load(mean + at, mask=inside) - m[None, :]
            tl.store(pooled + at, values * gain[None, :] + shift[None, :], mask=inside)


@_kernel
def _normalized_means_kernel(
    mean, weight, bias, center, spread, eps, pooled, N, C,
    IMAGES: tl.constexpr, STRIPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, c = _images_and_channels(C, IMAGES, CHANNELS)
    there = c < C
    gain = tl.load(weight + c, mask=there) * tl.rsqrt(tl.load(spread + c, mask=there) + eps)
    at, inside = _at(image, c, N, C)
    values = tl.load(mean + at, mask=inside) - tl.load(center + c, mask=there)[None, :]
    values = values * gain[None, :] + tl.load(bias + c, mask=there)[None, :]
    tl.store(pooled + at, values, mask=inside)


@triton.jit
def _gradient_of_gate(
    by_scale, by_shift, weight, bias, spread, eps, c, C
):  # fmt: skip
    """From the sums of images by channels; the channels ``c`` may lie beyond the first and last."""
    there = (c >= 0) & (c < C)
    gain = tl.load(weight + c, mask=there, other=0.0)
    gain *= tl.rsqrt(tl.load(spread + c, mask=there, other=1.0) + eps)
    return by_scale * gain[None, :] + by_shift * tl.load(bias + c, mask=there, other=0.0)[None, :]


@_kernel
def _gate_gradient_kernel(
    scales, shifts, weight, bias, spread, eps, of_scale, of_shift, grad_gate, strips, N, C,
    IMAGES: tl.constexpr, STRIPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The sums over each image, from those of strips, and the gradient of the gate if there is one."""
    image, c = _images_and_channels(C, IMAGES, CHANNELS)
    at, inside = _at(image, c, N, C)
    by_scale = _sum_of_strips(scales, strips, image, c, N, C, IMAGES, STRIPS, CHANNELS)
    by_shift = _sum_of_strips(shifts, strips, image, c, N, C, IMAGES, STRIPS, CHANNELS)
    tl.store(of_scale + at, by_scale, mask=inside)
    tl.store(of_shift + at, by_shift, mask=inside)
    if grad_gate is not None:
        grad = _gradient_of_gate(by_scale, by_shift, weight, bias, spread, eps, c, C)
        tl.store(grad_gate + at, grad, mask=inside)


@_kernel
def _eca_gate_kernel(
    means, kernel, mean, gate, strips, N, C, TAPS: tl.constexpr,
    IMAGES: tl.constexpr, STRIPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The sigmoid of the convolution of each image's means, which are stored unless ``mean`` is None."""
    image, c = _images_and_channels(C, IMAGES, CHANNELS)
    at, inside = _at(image, c, N, C)
    logit = tl.zeros([IMAGES, CHANNELS], tl.float32)
    for i in tl.static_range(TAPS):
        value = _sum_of_strips(
            means, strips, image, c + (i - TAPS // 2), N, C, IMAGES, STRIPS, CHANNELS
        )  # fmt: skip
        value /= strips
        logit += value * tl.load(kernel + i).to(tl.float32)
        if mean is not None and i == TAPS // 2:
            tl.store(mean + at, value, mask=inside)
    tl.store(gate + at, 1.0 / (1.0 + tl.exp(-logit)), mask=inside)


@_kernel
def _eca_gate_backward_kernel(
    scales, shifts, weight, bias, spread, eps, gate, pooled, kernel, of_scale, of_shift, grad_pooled,
    grad_kernel, strips, N, C, TAPS: tl.constexpr,
    IMAGES: tl.constexpr, STRIPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient of the pooled values, and this program's part of that of the kernel, (programs, k).

    The gate's gradient is ``scales`` alone if ``shifts`` is None, else that of :func:`_gradient_of_gate`;
    the sums over each image are then kept.
    """
    image, c = _images_and_channels(C, IMAGES, CHANNELS)
    at, inside = _at(image, c, N, C)
    here = tl.load(pooled + at, mask=inside, other=0.0)
    total = tl.zeros([IMAGES, CHANNELS], tl.float32)
    for i in tl.static_range(TAPS):
        # The logit to which this channel's value contributes with weight i.
        logit = c - (i - TAPS // 2)
        grad = _sum_of_strips(scales, strips, image, logit, N, C, IMAGES, STRIPS, CHANNELS)
        if shifts is not None:
            by_shift = _sum_of_strips(shifts, strips, image, logit, N, C, IMAGES, STRIPS, CHANNELS)
            if i == TAPS // 2:
                tl.store(of_scale + at, grad, mask=inside)
                tl.store(of_shift + at, by_shift, mask=inside)
            grad = _gradient_of_gate(grad, by_shift, weight, bias, spread, eps, logit, C)
        there, known = _at(image, logit, N, C)
        factor = tl.load(gate + there, mask=known, other=0.0)
        grad *= factor * (1.0 - factor)
        total += grad * tl.load(kernel + i).to(tl.float32)
        part = tl.sum(tl.sum(grad * here, 1), 0)
        tl.store(grad_kernel + tl.program_id(0) * TAPS + i, part)
    tl.store(grad_pooled + at, total, mask=inside)


@_kernel
def _norm_coefficients_kernel(
    gate, of_scale, of_shift, grad_pooled, grad_variance, mean, variance, weight, center, spread, eps,
    factor, slope, offset, grad_weight, grad_bias, of_kernel, grad_kernel,
    rows, images, parts, K, N, C, P,
    IMAGES: tl.constexpr, STRIPS: tl.constexpr, CHANNELS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """The gradients of weight and bias, and ``grad * factor + (x - center) * slope + offset`` of x.

    The ``rows`` of the sums are images, or strips if nothing else is given per image. The coefficients are
    those of all ``images``, or of 1 if they are the same for all. The first program also adds the ``parts``
    of the gradient of ECA's kernel, if there are any.
    """
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = c < C
    origin = tl.load(center + c, mask=there, other=0.0)[None, :]
    inverse = tl.rsqrt(tl.load(spread + c, mask=there, other=1.0) + eps)
    gain = tl.load(weight + c, mask=there, other=0.0) * inverse
    by_gain = tl.zeros([IMAGES, CHANNELS], tl.float32)
    by_bias = tl.zeros([IMAGES, CHANNELS], tl.float32)
    for first in range(0, rows, IMAGES):
        at, inside = _at(first + tl.arange(0, IMAGES), c, rows, C)
        by_scale = tl.load(of_scale + at, mask=inside, other=0.0)
        by_shift = tl.load(of_shift + at, mask=inside, other=0.0)
        if gate is not None:
            g = tl.load(gate + at, mask=inside, other=0.0)
            by_scale *= g
            by_shift *= g
        if grad_pooled is not None:
            grad = tl.load(grad_pooled + at, mask=inside, other=0.0)
            by_scale += grad * (tl.load(mean + at, mask=inside, other=0.0) - origin)
            by_shift += grad
        if grad_variance is not None:
            grad = tl.load(grad_variance + at, mask=inside, other=0.0)
            by_scale += 2.0 * grad * tl.load(variance + at, mask=inside, other=0.0) * gain[None, :]
        by_gain += by_scale
        by_bias += by_shift
    of_gain = tl.sum(by_gain, 0)
    of_bias = tl.sum(by_bias, 0)
    tl.store(grad_weight + c, of_gain * inverse, mask=there)
    tl.store(grad_bias + c, of_bias, mask=there)

    of_spread = -0.5 * of_gain * gain * inverse * inverse
    for first in range(0, images, IMAGES):
        at, inside = _at(first + tl.arange(0, IMAGES), c, images, C)
        of_grad = tl.zeros([IMAGES, CHANNELS], tl.float32) + gain[None, :]
        of_x = tl.zeros([IMAGES, CHANNELS], tl.float32) + (of_spread / N)[None, :]
        constant = tl.zeros([IMAGES, CHANNELS], tl.float32) - (of_bias / N)[None, :]
        if grad_pooled is not None:
            constant += tl.load(grad_pooled + at, mask=inside, other=0.0)
        if grad_variance is not None:
            grad = tl.load(grad_variance + at, mask=inside, other=0.0) * gain[None, :]
            of_x += grad * gain[None, :]
            # The variance of an image is of differences from its own mean.
            distance = tl.load(mean + at, mask=inside, other=0.0) - origin
            constant -= 2.0 * grad * distance
        if gate is not None:
            of_grad *= tl.load(gate + at, mask=inside, other=0.0)
        tl.store(factor + at, of_grad, mask=inside)
        tl.store(slope + at, 2.0 * of_x / P, mask=inside)
        tl.store(offset + at, constant * gain[None, :] / P, mask=inside)

    if of_kernel is not None:  # noqa: SIM102 (the compiler drops it only if it stands alone)
        if tl.program_id(0) == 0:
            i = tl.arange(0, TAPS)
            total = tl.zeros([IMAGES, TAPS], tl.float32)
            for first in range(0, parts, IMAGES):
                at, inside = _at(first + tl.arange(0, IMAGES), i, parts, K)
                total += tl.load(of_kernel + at, mask=inside, other=0.0)
            tl.store(grad_kernel + i, tl.sum(total, 0), mask=i < K)


# ---- how they are launched


class _Plan(NamedTuple):
    """How a feature map is cut into tiles and strips."""

    last: bool  # channels last in memory
    block_c: int
    block_p: int
    tiles: int
    strips: int


def _plan(x: Tensor) -> _Plan:
    n, channels, h, w = x.shape
    # A single channel is in both orders; the pixels are then the values side by side.
    last = channels > 1 and x.is_contiguous(memory_format=torch.channels_last)
    return _planned(n, channels, h * w, last, _TILE, _BLOCK_C, _PROGRAMS)


@functools.lru_cache(maxsize=4096)
def _planned(
    n: int, channels: int, pixels: int, last: bool, tile: int, most_c: int, programs: int
) -> _Plan:
    if last:
        block_c = min(triton.next_power_of_2(channels), most_c)
        block_p = min(triton.next_power_of_2(pixels), tile // block_c)
    else:
        block_p = min(triton.next_power_of_2(pixels), tile)
        block_c = min(triton.next_power_of_2(channels), tile // block_p)
    # Strips have equal lengths, of a block at least.
    most = min(programs // max(n * triton.cdiv(channels, block_c), 1), pixels // block_p)
    strips = next((count for count in range(most, 1, -1) if pixels % count == 0), 1)
    return _Plan(last, block_c, block_p, triton.cdiv(pixels, block_p), strips)


def _as(v: Tensor, x: Tensor) -> Tensor:
    """Return ``v`` in the memory order of ``x``."""
    return v.contiguous(
        memory_format=torch.channels_last if _plan(x).last else torch.contiguous_format
    )


def _run(
    kernel: Any, programs: int, arguments: tuple[Any, ...], warps: int, **constants: Any
) -> None:
    """Run ``kernel`` where its tensors are."""
    if programs:
        with torch.cuda.device_of(next(a for a in arguments if isinstance(a, Tensor))):
            kernel[(programs,)](*arguments, num_warps=warps, **constants)


def _over_map(
    kernel: Any, x: Tensor, arguments: tuple[Any, ...], parts: int, length: int, **constants: Any
) -> None:
    """Run ``kernel`` over all channels of ``x`` and ``parts`` parts of ``length`` pixels of each image."""
    n, channels, h, w = x.shape
    plan = _plan(x)
    _run(
        kernel, n * triton.cdiv(channels, plan.block_c) * parts, (*arguments, parts, channels, h * w),
        _WARPS, BLOCK_C=plan.block_c, BLOCK_P=plan.block_p, LAST=plan.last,
        ALIGN=math.gcd(channels if plan.last else length, 16), **constants,
    )  # fmt: skip


def _over_tiles(kernel: Any, x: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run an elementwise kernel on ``x``."""
    _over_map(kernel, x, arguments, _plan(x).tiles, x.shape[2] * x.shape[3], **constants)


def _over_strips(kernel: Any, x: Tensor, *arguments: Any, results: int) -> list[Tensor]:
    """Run a reduction over strips, which takes two results; return those wanted, (N, strips, C)."""
    strips = _plan(x).strips
    shape = (x.shape[0], strips, x.shape[1])
    sums = [torch.empty(shape, device=x.device, dtype=torch.float32) for _ in range(results)]
    given = (*arguments, *sums, *[None] * (2 - results))
    length = x.shape[2] * x.shape[3] // strips
    _over_map(kernel, x, given, strips, length, STAGES=_STAGES)
    return sums


def _block(strips: int) -> dict[str, int]:
    """Return a block of vectors: images, strips and channels."""
    block = min(triton.next_power_of_2(strips), _ROWS)
    return {"IMAGES": _ROWS // block, "STRIPS": block, "CHANNELS": _CHANNELS}


def _image_programs(n: int, channels: int, strips: int = 1) -> int:
    """Return the number of programs of :func:`_over_images`."""
    return triton.cdiv(n, _block(strips)["IMAGES"]) * triton.cdiv(channels, _CHANNELS)


def _over_images(
    kernel: Any, *arguments: Any, n: int, channels: int, strips: int | None = None, **constants: Any
) -> None:
    """Run a kernel of vectors, by blocks of images and channels."""
    programs = _image_programs(n, channels, strips or 1)
    given = arguments if strips is None else (*arguments, strips)
    block = _block(strips or 1)
    _run(kernel, programs, (*given, n, channels), _VECTOR_WARPS, **block, **constants)


def _over_channels(
    kernel: Any, channels: int, *arguments: Any, strips: int = 1, **constants: Any
) -> None:
    """Run a kernel of vectors that goes through all images, by blocks of channels."""
    programs = triton.cdiv(channels, _CHANNELS)
    _run(kernel, programs, arguments, _VECTOR_WARPS, **_block(strips), **constants)


def _flat(*vectors: Tensor | None) -> list[Tensor | None]:
    return [None if v is None else v.contiguous() for v in vectors]


def _channels(x: Tensor) -> Tensor:
    """Return an uninitialized float32 tensor of (C,)."""
    return torch.empty(x.shape[1], device=x.device, dtype=torch.float32)


# ---- moments


def image_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    means, variances = _over_strips(_moments_kernel, x, x, results=2)
    n, strips, channels = means.shape
    if strips == 1:
        return means[:, 0], variances[:, 0]
    mean, variance = vector(x), vector(x)
    _over_images(
        _image_moments_kernel,
        means,
        variances,
        mean,
        variance,
        n=n,
        channels=channels,
        strips=strips,
    )
    return mean, variance


def batch_moments(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, running_mean: Tensor | None,
    running_var: Tensor | None, momentum: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    running = running_mean, running_var, momentum
    per_image = vector(x), vector(x), vector(x)
    center, spread = _batch_moments(x, weight, bias, eps, running, per_image)
    mean, variance, pooled = per_image
    return mean, variance, center, spread, pooled


def _batch_moments(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float,
    running: tuple[Tensor | None, Tensor | None, float],
    per_image: tuple[Tensor, Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return mean and variance of the batch; fill in each image's mean, variance and mean of y if wanted."""
    means, variances = _over_strips(_moments_kernel, x, x, results=2)
    n, strips, channels = means.shape
    if per_image is None:
        n, strips = n * strips, 1  # to the batch, strips are as good as images
    values = x.numel() // channels
    center, spread = _channels(x), _channels(x)
    _over_channels(
        _batch_moments_kernel, channels, means, variances, *_flat(weight, bias), eps, *running,
        values / max(values - 1, 1), *(per_image or (None, None, None)), center, spread, strips, n, channels,
        strips=strips,
    )  # fmt: skip
    return center, spread


def normalized_means(
    mean: Tensor, weight: Tensor, bias: Tensor, center: Tensor, spread: Tensor, eps: float
) -> Tensor:
    pooled = vector(mean)
    n, channels = mean.shape
    _over_images(
        _normalized_means_kernel, *_flat(mean, weight, bias, center, spread), eps, pooled,
        n=n, channels=channels,
    )  # fmt: skip
    return pooled


# ---- norm, gate, addition and ReLU


def gate_add(
    x: Tensor, gate: Tensor | None, shortcut: Tensor | None, weight: Tensor, bias: Tensor,
    center: Tensor, spread: Tensor, eps: float, relu: bool, out: Tensor,
) -> None:  # fmt: skip
    shortcut = None if shortcut is None else _as(shortcut, x)
    vectors = _flat(weight, bias, center, spread)
    _over_tiles(_gate_add_kernel, x, x, *_flat(gate), shortcut, *vectors, eps, out, RELU=relu)


def _gradient_sums(
    grad_out: Tensor, out: Tensor | None, x: Tensor, center: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient before the ReLU, empty without one, and sums over strips: of scale, of shift."""
    passed = x.new_empty(0) if out is None else torch.empty_like(x)
    of_scale, of_shift = _over_strips(
        _gradient_sums_kernel, x, _as(grad_out, x), out, x, center.contiguous(), passed, results=2
    )
    return passed, of_scale, of_shift


def gate_add_backward(
    grad_out: Tensor, out: Tensor | None, x: Tensor, gate: Tensor | None, weight: Tensor,
    bias: Tensor, center: Tensor, spread: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    passed, scales, shifts = _gradient_sums(grad_out, out, x, center)
    n, strips, channels = scales.shape
    if gate is None and strips == 1:
        return passed, shifts[:, 0], scales[:, 0], scales.new_empty(0)
    of_scale, of_shift = vector(x), vector(x)
    grad_gate = None if gate is None else vector(x)
    _over_images(
        _gate_gradient_kernel, scales, shifts, *_flat(weight, bias, spread), eps, of_scale, of_shift,
        grad_gate, n=n, channels=channels, strips=strips,
    )  # fmt: skip
    return passed, of_shift, of_scale, scales.new_empty(0) if grad_gate is None else grad_gate


def norm_backward(
    passed: Tensor, x: Tensor, gate: Tensor | None, of_shift: Tensor, of_scale: Tensor,
    grad_pooled: Tensor | None, grad_variance: Tensor | None, mean: Tensor, variance: Tensor,
    weight: Tensor, center: Tensor, spread: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    per_image = _flat(gate, of_scale, of_shift, grad_pooled, grad_variance, mean, variance)
    return _norm_backward(passed, x, per_image, _flat(weight, center, spread), eps, len(x))


def _norm_backward(
    passed: Tensor, x: Tensor, per_image: Sequence[Tensor | None], per_channel: Sequence[Tensor | None],
    eps: float, images: int, of_kernel: Tensor | None = None, grad_kernel: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, weight and bias; fill in that of ECA's kernel, the sum of its parts.

    Args:
        passed: the gradient before the ReLU.
        x: the feature map.
        per_image: gate, of_scale, of_shift, grad_pooled, grad_variance, mean and variance.
        per_channel: weight, center and spread.
        eps: of the norm.
        images: N, or 1 if the sums are all that is given per image, so that the coefficients are the same for
            all images. The sums may then be those of strips.
        of_kernel: (programs, k), or None.
        grad_kernel: (k,), or None.
    """
    n, channels, h, w = x.shape
    sums, center = per_image[1], per_channel[1]
    assert sums is not None
    grad_weight, grad_bias, grad_x = _channels(x), _channels(x), torch.empty_like(x)
    coefficients = torch.empty(3, images, channels, device=x.device, dtype=torch.float32).unbind()
    parts, k = (0, 1) if of_kernel is None else of_kernel.shape
    _over_channels(
        _norm_coefficients_kernel, channels, *per_image, *per_channel, eps, *coefficients,
        grad_weight, grad_bias, of_kernel, grad_kernel, sums.numel() // channels, images, parts, k, n,
        channels, h * w, TAPS=triton.next_power_of_2(k),
    )  # fmt: skip
    row = channels if images == n else 0
    _over_tiles(
        _norm_backward_kernel, x, _as(passed, x), x, center, *coefficients, grad_x, row
    )  # fmt: skip
    return grad_x, grad_weight, grad_bias


# ---- the gate of ECA


def eca_gate(pooled: Tensor, kernel: Tensor) -> Tensor:
    return _eca_gate(pooled.contiguous()[:, None], kernel, None)


def _eca_gate(means: Tensor, kernel: Tensor, mean: Tensor | None) -> Tensor:
    """Return the gate of means of strips, (N, strips, C); fill in the means of images if wanted."""
    n, strips, channels = means.shape
    gate = means.new_empty(n, channels)
    _over_images(
        _eca_gate_kernel, means, kernel.contiguous(), mean, gate,
        n=n, channels=channels, strips=strips, TAPS=kernel.numel(),
    )  # fmt: skip
    return gate


def eca_gate_backward(
    grad_gate: Tensor, gate: Tensor, pooled: Tensor, kernel: Tensor
) -> tuple[Tensor, Tensor]:
    grad_pooled, parts, _ = _eca_gate_backward(
        grad_gate.contiguous()[:, None], gate, pooled, kernel
    )
    return grad_pooled, parts.sum(0)


def _eca_gate_backward(
    scales: Tensor, gate: Tensor, pooled: Tensor, kernel: Tensor, shifts: Tensor | None = None,
    norm: tuple[Tensor, Tensor, Tensor, float] | None = None,
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:  # fmt: skip
    """Return the gradient of the pooled values, parts of that of the kernel, and the sums over each image.

    Args:
        scales: sums over strips, (N, strips, C): of the gradient of the gate, or with a norm those of scale.
        gate, pooled: (N, C).
        kernel: k values.
        shifts: the sums of shift.
        norm: weight, bias, variance and eps.
    """
    n, strips, channels = scales.shape
    grad_pooled, k = vector(gate), kernel.numel()
    sums = (None, None) if shifts is None else (vector(gate), vector(gate))
    *vectors, eps = norm or (None, None, None, 0.0)
    parts = scales.new_empty(_image_programs(n, channels, strips), k)
    _over_images(
        _eca_gate_backward_kernel, scales, shifts, *_flat(*vectors), eps, *_flat(gate, pooled, kernel),
        *sums, grad_pooled, parts, n=n, channels=channels, strips=strips, TAPS=k,
    )  # fmt: skip
    return grad_pooled, parts, sums


# ---- the whole end of a branch in training


def norm_eca(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, kernel: Tensor | None,
    shortcut: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    momentum: float, relu: bool,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    per_image = None if kernel is None else (vector(x), vector(x), vector(x))
    running = running_mean, running_var, momentum
    center, spread = _batch_moments(x, weight, bias, eps, running, per_image)
    saved, gate, out = [center, spread], None, torch.empty_like(x)
    if kernel is not None and per_image is not None:
        mean, _, pooled = per_image
        gate = eca_gate(pooled, kernel)
        saved += [mean, pooled, gate]
    gate_add(x, gate, shortcut, weight, bias, center, spread, eps, relu, out)
    return out, saved


def norm_eca_backward(
    grad_out: Tensor, out: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor, eps: float,
    kernel: Tensor | None, saved: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    center, spread, *others = saved
    passed, scales, shifts = _gradient_sums(grad_out, out, x, center)
    before = grad_out if out is None else passed
    per_channel = [weight.contiguous(), center, spread]
    if kernel is None:
        sums = [None, scales, shifts, None, None, None, None]
        of_norm = _norm_backward(before, x, sums, per_channel, eps, 1)
        return *of_norm, scales.new_empty(0), passed
    mean, pooled, gate = others
    grad_pooled, parts, of_gate = _eca_gate_backward(
        scales, gate, pooled, kernel, shifts, (weight, bias, spread, eps)
    )
    grad_kernel = parts.new_empty(kernel.numel())
    per_image = [gate, *of_gate, grad_pooled, None, mean, None]
    of_norm = _norm_backward(before, x, per_image, per_channel, eps, len(x), parts, grad_kernel)
    return *of_norm, grad_kernel, passed


# ---- ECA in evaluation, and alone


def eca_add(
    x: Tensor, kernel: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor,
    center: Tensor, spread: Tensor, eps: float, relu: bool, out: Tensor,
) -> None:  # fmt: skip
    norm = weight, bias, center, spread, eps
    pooled = normalized_means(image_moments(x)[0], *norm)
    gate_add(x, eca_gate(pooled, kernel), shortcut, *norm, relu, out)


def eca(x: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (means,) = _over_strips(_moments_kernel, x, x, results=1)
    mean, out = vector(x), torch.empty_like(x)
    gate = _eca_gate(means, kernel, mean)
    _over_tiles(_eca_kernel, x, x, gate, None, out)
    return out, mean, gate


def eca_backward(
    grad_out: Tensor, x: Tensor, kernel: Tensor, mean: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor]:
    grad_out, grad_x = _as(grad_out, x), torch.empty_like(x)
    (products,) = _over_strips(
        _gradient_sums_kernel, x, grad_out, None, x, None, None, results=1
    )  # fmt: skip
    grad_mean, parts, _ = _eca_gate_backward(products, gate, mean, kernel)
    _over_tiles(_eca_kernel, x, grad_out, gate.contiguous(), grad_mean, grad_x)
    return grad_x, parts.sum(0)
