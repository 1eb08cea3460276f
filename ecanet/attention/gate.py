"""Shared parts: memory order, signals and volumes, gates of channel moments alone, constant gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_maps, is_symbolic, known_dims


def init_half(layer: Any) -> None:
    """Set a layer's weight and bias, if any, to zero, so that the sigmoid of its output is one half.

    That is where a sigmoid learns fastest, and a power of two rounds nothing: multiplied by 2, it is the
    identity to the bit, in any precision.
    """
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def in_memory_order(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Return (N, C, H, W) with its axes in memory order, and which of the axes are C, H and W.

    The backward pass of a reduction lays out its gradient in the order of the view's axes. Adding
    gradients of different layouts costs more than all of a gate's arithmetic: on a CPU, gates
    that reduce channels-last images in this view train up to twice as fast.
    """
    if not is_symbolic(x) and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1), (3, 1, 2)
    return x, (1, 2, 3)


def to_nchw(view: Tensor, axes: tuple[int, int, int]) -> Tensor:
    """Undo :func:`in_memory_order`."""
    c, h, w = axes
    return view.permute(0, c, h, w)


def averaged_to(x: Tensor, size: int) -> Tensor:
    """Average a feature map to ``size`` x ``size`` pixels; one that has them already is returned as it is."""
    if not is_symbolic(x) and x.shape[2] == size and x.shape[3] == size:
        return x
    return F.adaptive_avg_pool2d(x, size)


def channel_means(x: Tensor) -> Tensor:
    """Return each image's channel means: (N, C, H, W) to (N, C), in the input's dtype."""
    pixels, axis = _pixels(x)
    if (
        not torch.jit.is_scripting()
        and not is_symbolic(x)
        and not torch.compiler.is_compiling()
        and x.dtype == torch.bfloat16
        and x.is_cpu
    ):
        # Four times faster than mean() and as accurate: both round once to bfloat16.
        return (pixels.sum(axis).float() / pixels.shape[axis]).to(x.dtype)
    return pixels.mean(axis)


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's channel means and variances (of all pixels, biased), like :func:`channel_means`."""
    pixels, axis = _pixels(x)
    variance, mean = torch.var_mean(pixels, axis, correction=0)
    return mean, variance


def _pixels(x: Tensor) -> tuple[Tensor, int]:
    """Return (N, C, H, W) with one axis of pixels, which reduces faster than two, and which axis that is."""
    view, axes = in_memory_order(x)
    _, h, w = axes
    return view.flatten(h, w), h


def as_maps(x: Tensor) -> Tensor:
    """View (N, C, L) as (N, C, 1, L), and (N, C, D, H, W) as (N, C, D·H, W): the same pixels in order.

    Channels last in memory remain last.
    """
    return x.unsqueeze(2).flatten(2, -2)


class AnyDims(nn.Module):
    """A module to which an image is a set of pixels, whether they lie on a line, a plane or in a volume.

    A subclass defines :meth:`on_maps`, and has the same weights for any ``dims``.

    Args:
        dims: axes of space: 1 for (N, C, L), 2 for (N, C, H, W), 3 for (N, C, D, H, W).

    Raises:
        TypeError: ``dims`` is no int.
        ValueError: ``dims`` is not 1, 2 or 3.
    """

    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        self.dims = known_dims(dims)

    def on_maps(self, x: Tensor) -> Tensor:
        """Compute :meth:`forward` of (N, C, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        check_maps(x, self.dims)
        if self.dims == 2:
            return self.on_maps(x)
        return self.on_maps(as_maps(x)).view_as(x)


class PooledGate(AnyDims):
    """A factor for each channel that depends on the channel moments of the image alone.

    A subclass defines :attr:`gate`. As the image enters only through its moments, they can be computed
    wherever that is cheapest: our residual blocks call ``gate`` instead of ``forward`` and compute the
    moments in passes that they make anyway, see :mod:`ecanet.attention.fused`.

    Shapes: (N, C, H, W) → (N, C, H, W), in the input's dtype and memory layout; with ``dims`` 1 or 3
    (N, C, L) or (N, C, D, H, W).
    Saved for backward: the input and the gate (N, C), besides what ``gate`` saves, of size N·C.
    """

    moments: int = 1
    """1 for a gate of the means, 2 for a gate of means and variances."""

    gate: Callable[..., Tensor]
    """``gate(mean)`` or, with two moments, ``gate(mean, variance)``: the factors, (N, C), from the
    channels' means and biased variances over each image, (N, C) each."""

    __constants__ = ("takes_variance",)
    __jit_unused_properties__ = ("takes_variance",)

    @property
    def takes_variance(self) -> bool:
        """Whether :attr:`gate` has two moments. TorchScript compiles one branch alone on a constant."""
        return self.moments == 2

    def factors(self, mean: Tensor, variance: Tensor | None = None) -> Tensor:
        """Return :attr:`gate` of moments of any dtype, converted to that of its weights."""
        if not torch.jit.is_scripting() and not is_symbolic(mean):
            weight = next(self.parameters(), None)
            # Autocast converts by itself.
            if (
                weight is not None
                and weight.dtype != mean.dtype
                and not torch.is_autocast_enabled(weight.device.type)
            ):
                mean = mean.to(weight.dtype)
                variance = None if variance is None else variance.to(weight.dtype)
        if self.takes_variance:
            assert variance is not None
            return self.gate(mean, variance)
        return self.gate(mean)

    def eca_kernel(self) -> Tensor | None:
        """Return the weights of a gate that is ECA's, for which there are kernels; None for any other."""
        return None

    def by_kernel(self, x: Tensor) -> Tensor | None:
        """Compute :meth:`on_maps` with a kernel of the module's own; return None if there is none."""
        return None

    def on_maps(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and not is_symbolic(x):
            gated = self.by_kernel(x)
            if gated is not None:
                return gated
        if self.takes_variance:
            mean, variance = channel_moments(x)
            factors = self.factors(mean, variance)
        else:
            factors = self.factors(channel_means(x))
        view, axes = in_memory_order(x)
        _, h, w = axes
        return to_nchw(view * factors.to(x.dtype).unsqueeze(h).unsqueeze(w), axes)


class LinearGate(PooledGate):
    """A pooled gate that is the sigmoid of a linear function of the means, without bias."""

    def init_identity(self) -> float:
        """Set all weights to zero: every gate is 0.5."""
        for weight in self.parameters():
            nn.init.zeros_(weight)
        return 0.5
