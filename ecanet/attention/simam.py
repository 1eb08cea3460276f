"""SimAM: emphasizes pixels that differ from the mean of their channel."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import positive
from .gate import AnyDims
from .registry import register_attention


@register_attention("simam")
class SimAM(AnyDims):
    """SimAM: weights pixels by their distance from the channel's mean, without parameters.

    x · sigmoid((x-μ)² / (4·(σ²+λ)) + 1/2), with the mean and variance of each channel.

    Paper: Yang, Zhang, Li, Xie, "SimAM: A Simple, Parameter-Free Attention Module for Convolutional
    Neural Networks", ICML 2021 (PMLR 139). The variance is divided by H·W-1, as in the authors' code;
    for a single pixel, where that is 0/0, it is set to 0.
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: 0. Saved for backward: the input and three more maps of its size.
    Starts as: it always is, with factors from sigmoid(1/2) = 0.62 up; ``init_identity`` changes nothing.

    Args:
        channels: C; has no effect.
        e_lambda: λ, the paper's regularization; positive.
        dims: axes of space: 2, or 1 for (N, C, L), or 3 for (N, C, D, H, W).

    Raises:
        TypeError: ``channels`` or ``dims`` is no int.
        ValueError: ``e_lambda`` is not positive, or ``dims`` is none of 1, 2 and 3.
    """

    def __init__(self, channels: int, e_lambda: float = 1e-4, dims: int = 2) -> None:
        super().__init__(dims)
        positive("channels", channels)
        if not e_lambda > 0:
            raise ValueError(f"e_lambda must be positive, got {e_lambda}")
        self.e_lambda = e_lambda

    def on_maps(self, x: Tensor) -> Tensor:
        pixels = x.shape[2] * x.shape[3]
        variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        # 1 // pixels is 1 for a single pixel, else 0, which tracers follow, unlike max().
        variance = variance * (pixels / (pixels - 1 + 1 // pixels))
        # Scaled before squaring: the square of x - mean can overflow float16.
        distance = (x - mean) * (0.5 * torch.rsqrt(variance + self.e_lambda))
        return x * torch.sigmoid(distance.square() + 0.5)

    def init_identity(self) -> float:
        """Nothing to set: returns sigmoid(3/4) = 0.68, the factor of a pixel one standard deviation away."""
        return 0.679178699175393
