"""No attention: the baseline of every comparison."""

from __future__ import annotations

from torch import nn

from .checks import positive
from .registry import register_attention


@register_attention("none")
class NoAttention(nn.Identity):
    """Returns its input: the baseline.

    Shapes: (N, C, H, W) → (N, C, H, W), the same tensor.
    Parameters: 0. Saved for backward: nothing. Starts as: the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        positive("channels", channels)

    def init_identity(self) -> float:
        """Nothing to set: it is the identity."""
        return 1.0
