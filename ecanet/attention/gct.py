"""GCT: channels compete or cooperate through their norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import positive
from .gate import AnyDims
from .registry import register_attention


@register_attention("gct")
class GCT(AnyDims):
    """Gated channel transformation: channels compete or cooperate, by their norms.

    The gate is 1 + tanh(γ·ŝ + β), where ŝ is the norm of the channel relative to those of the others:
    s = α·||x||₂ over the image and ŝ = s / sqrt(mean of s² over channels), the l2 form.
    The authors place it before convolutions and exempt β from weight decay.

    Paper: Yang, Zhu, Wu, Yang, "Gated Channel Transformation for Visual Recognition", CVPR 2020,
    arXiv 1909.11519.
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: 3·C: ``alpha``, ``gamma``, ``beta`` (C each).
    Saved for backward: the input, and vectors of size N·C.
    Starts as: the identity, exactly (α=1, γ=β=0); ``init_identity`` restores that.

    Args:
        channels: C.
        dims: axes of space: 2, or 1 for (N, C, L), or 3 for (N, C, D, H, W).

    Raises:
        TypeError: an argument is no int.
        ValueError: ``channels`` is below 1, or ``dims`` is none of 1, 2 and 3.
    """

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__(dims)
        self.eps = 1e-5
        self.alpha = nn.Parameter(torch.ones(positive("channels", channels)))
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def on_maps(self, x: Tensor) -> Tensor:
        # In the parameters' precision, as a sum of squares overflows float16.
        norm = torch.linalg.vector_norm(x, dim=(2, 3), dtype=self.alpha.dtype)
        embedding = self.alpha * torch.sqrt(norm.square() + self.eps)
        scale = torch.rsqrt(embedding.square().mean(1, keepdim=True) + self.eps)
        gate = 1 + torch.tanh(self.gamma * embedding * scale + self.beta)
        return x * gate.to(x.dtype)[:, :, None, None]

    def init_identity(self) -> float:
        """Restore the initial values: 1 + tanh(0) = 1."""
        nn.init.ones_(self.alpha)
        nn.init.zeros_(self.gamma)
        nn.init.zeros_(self.beta)
        return 1.0
