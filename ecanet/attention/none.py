"""No attention: the baseline of every comparison."""

from __future__ import annotations

from torch import nn

from .checks import known_dims, positive
from .registry import register_attention


@register_attention("none")
class NoAttention(nn.Identity):
    """No attention: returns its input, as the baseline of comparisons.

    Shapes: (N, C, H, W) → (N, C, H, W), the same tensor.
    Parameters: 0. Saved for backward: nothing. Starts as: the identity.

    Args:
        channels: C; has no effect.
        dims: axes of space, 1, 2 or 3; has no effect.
    """

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__()
        positive("channels", channels)
        known_dims(dims)

    def init_identity(self) -> float:
        """Nothing to set: it is the identity."""
        return 1.0
