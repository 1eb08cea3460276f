"""SRM: a gate from each channel's mean and standard deviation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import positive
from .gate import PooledGate
from .registry import register_attention


@register_attention("srm")
class SRM(PooledGate):
    """Style-based recalibration: weights each channel by its mean and standard deviation.

    sigmoid(batch_norm(w1·mean + w2·std)), for each channel separately. The standard deviation is the
    paper's, over H·W (the authors' code divides by H·W-1), with 1e-5 added to the variance, without
    which the gradient of a constant channel is NaN.

    Paper: Lee, Kim, Nam, "SRM: A Style-based Recalibration Module for Convolutional Neural
    Networks", ICCV 2019, arXiv 1903.10829.
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: 4·C: ``cfc`` (C, 2) and the batch norm's.
    Saved for backward: the input, and vectors of size N·C.
    Starts as: the constant 0.5, as the authors initialize ``cfc`` with zeros; ``init_identity``
    restores that.

    In training the batch norm has one value per image and channel, which requires N > 1.

    Args:
        channels: C.
        dims: axes of space: 2, or 1 for (N, C, L), or 3 for (N, C, D, H, W).

    Raises:
        TypeError: an argument is no int.
        ValueError: ``channels`` is below 1, or ``dims`` is none of 1, 2 and 3.
    """

    moments = 2

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__(dims)
        self.eps = 1e-5
        self.cfc = nn.Parameter(torch.zeros(positive("channels", channels), 2))
        self.bn = nn.BatchNorm1d(channels)

    def gate(self, mean: Tensor, variance: Tensor) -> Tensor:
        style = torch.stack([mean, torch.sqrt(variance + self.eps)], 2).to(self.cfc.dtype)
        return torch.sigmoid(self.bn((style * self.cfc).sum(2)))

    def init_identity(self) -> float:
        """Restore the initial values: ``cfc`` is zero, but not the norm's weight, through which it learns."""
        nn.init.zeros_(self.cfc)
        nn.init.ones_(self.bn.weight)
        nn.init.zeros_(self.bn.bias)
        return 0.5
