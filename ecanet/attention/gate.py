"""What the gates share: memory order, the form of those that see only means, how a gate is opened."""

from __future__ import annotations

import math

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


class PooledGate(nn.Module):
    """A factor for each channel, computed from the channels' means over the image and nothing else.

    A subclass defines :meth:`gate`. Because the image enters only through its mean, that mean may be
    taken anywhere it is cheaper, so code that fuses a block calls ``gate`` and skips ``forward``.

    Shapes: (N, C, H, W) → (N, C, H, W), in the input's dtype and memory layout.
    Saved for backward: the input and the gate (N, C), besides what ``gate`` saves, of size N·C.
    """

    def gate(self, pooled: Tensor) -> Tensor:
        """Return the factors, (N, C), from the channel means, (N, C)."""
        raise NotImplementedError(f"{type(self).__name__} defines no gate")

    def forward(self, x: Tensor) -> Tensor:
        view, axes = in_memory_order(x)
        _, h, w = axes
        # One axis of pixels reduces faster than two.
        gate = self.gate(view.flatten(h, w).mean(h)).to(x.dtype)
        return to_nchw(view * gate.unsqueeze(h).unsqueeze(w), axes)
