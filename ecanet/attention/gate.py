"""What the gates share: memory order, the form of those that see only moments, how a gate is opened."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

OPEN = 4.0
"""The bias that :meth:`init_identity` gives a sigmoid that has one.

sigmoid(4) = 0.982 is nearly open, and its slope, 0.018, is still enough to learn by; the slope at 8
would be 50 times smaller. A sigmoid without a bias can only be put at 0.5.
"""


def opened(gates: int = 1) -> float:
    """Return the factor of ``gates`` sigmoids in a row, each with the bias :data:`OPEN`."""
    return (1 / (1 + math.exp(-OPEN))) ** gates


def in_memory_order(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Return (N, C, H, W) as it lies in memory, and which axes of that view are C, H and W.

    The backward pass of a reduction lays its gradient out in the order of the view's axes. Adding
    up gradients of different layouts costs more than all of a gate's arithmetic: on a CPU, gates
    that reduce channels-last images in this view train up to twice as fast.
    """
    if x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1), (3, 1, 2)
    return x, (1, 2, 3)


def to_nchw(view: Tensor, axes: tuple[int, int, int]) -> Tensor:
    """Undo :func:`in_memory_order`."""
    return view.permute(0, *axes)


def channel_moments(x: Tensor, moments: int) -> tuple[Tensor, ...]:
    """Return each image's channel means and, for two ``moments``, variances (of all pixels, biased).

    (N, C, H, W) to one or two of (N, C), in the input's dtype.
    """
    view, (_, h, w) = in_memory_order(x)
    # One axis of pixels reduces faster than two.
    pixels = view.flatten(h, w)
    if moments == 1:
        if x.dtype == torch.bfloat16 and x.is_cpu and not torch.compiler.is_compiling():
            # Four times as fast as its mean, and as near: either is rounded once to bfloat16.
            return ((pixels.sum(h).float() / pixels.shape[h]).to(x.dtype),)
        return (pixels.mean(h),)
    variance, mean = torch.var_mean(pixels, h, correction=0)
    return mean, variance


class PooledGate(nn.Module):
    """A factor for each channel, computed from the channels' moments over the image and nothing else.

    A subclass defines :attr:`gate`. Because the image enters through its moments alone, they may be
    taken wherever that is cheaper: our residual blocks call ``gate`` in place of ``forward`` and
    take the moments along the way, see :mod:`ecanet.attention.fused`.

    Shapes: (N, C, H, W) → (N, C, H, W), in the input's dtype and memory layout.
    Saved for backward: the input and the gate (N, C), besides what ``gate`` saves, of size N·C.
    """

    moments: int = 1
    """1 for a gate of the means alone, 2 for one of means and variances."""

    gate: Callable[..., Tensor]
    """``gate(mean)`` or, with two moments, ``gate(mean, variance)``: the factors, (N, C), from the
    channels' means and biased variances over each image, (N, C) each."""

    def factors(self, *moments: Tensor) -> Tensor:
        """Return :attr:`gate` of moments of any dtype: they are given to it as its weights are."""
        weight = next(self.parameters(), None)
        # Autocast chooses dtypes by itself.
        if (
            weight is not None
            and weight.dtype != moments[0].dtype
            and not torch.is_autocast_enabled(weight.device.type)
        ):
            moments = tuple(moment.to(weight.dtype) for moment in moments)
        return self.gate(*moments)

    def by_kernel(self, x: Tensor) -> Tensor | None:
        """Return what :meth:`forward` returns, by a kernel of the module's own; None if it has none."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        gated = self.by_kernel(x)
        if gated is not None:
            return gated
        factors = self.factors(*channel_moments(x, self.moments)).to(x.dtype)
        view, axes = in_memory_order(x)
        _, h, w = axes
        return to_nchw(view * factors.unsqueeze(h).unsqueeze(w), axes)
