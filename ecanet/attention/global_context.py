"""GC: one context vector, from attention over all pixels, is added to every pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import hidden_channels
from .gate import AnyDims
from .registry import register_attention


@register_attention("gc")
class GlobalContext(AnyDims):
    """Global context block: adds one context vector, pooled by attention, to every pixel.

    The context is the softmax-weighted mean of all pixels, transformed:
    x + W2 relu(layer_norm(W1 Σ softmax(Wk x) x)). It is added, and is not a gate. Wk has no bias, unlike
    in the authors' code, as the softmax would cancel it.

    Paper: Cao, Xu, Lin, Wei, Hu, "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and
    Beyond", ICCVW 2019, arXiv 1904.11492.
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: 2·C·h + 3·h + 2·C; h = max(4, C//16), or C//reduction.
    Saved for backward: the input, the softmax (N, H·W), and vectors of size N·C.
    Starts as: the identity, exactly, as the last layer is zero as in the authors' code; ``init_identity``
    restores that.

    Args:
        channels: C.
        reduction: h = C//reduction; None for the paper's 16, with at least 4 hidden channels.
        dims: axes of space: 2, or 1 for (N, C, L), or 3 for (N, C, D, H, W).

    Raises:
        TypeError: an argument is no int.
        ValueError: ``reduction`` leaves fewer than 2 hidden channels, as the layer norm of one is
            constant, or ``dims`` is none of 1, 2 and 3.
    """

    def __init__(self, channels: int, reduction: int | None = None, dims: int = 2) -> None:
        super().__init__(dims)
        hidden = hidden_channels(channels, reduction, least=2)
        self.mask = nn.Conv2d(channels, 1, 1, bias=False)
        self.fc1 = nn.Linear(channels, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, channels)
        nn.init.kaiming_normal_(self.mask.weight, mode="fan_in", nonlinearity="relu")
        self.init_identity()

    def on_maps(self, x: Tensor) -> Tensor:
        weights = self.mask(x).flatten(2).softmax(2)  # (N, 1, H·W)
        context = (x.flatten(2) @ weights.to(x.dtype).transpose(1, 2))[:, :, 0]
        added: Tensor = self.fc2(torch.relu(self.norm(self.fc1(context))))
        return x + added.to(x.dtype)[:, :, None, None]

    def init_identity(self) -> float:
        """Set the last layer to zero: nothing is added."""
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)
        return 1.0
