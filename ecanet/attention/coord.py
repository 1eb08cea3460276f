"""Coordinate attention: gates along the height and along the width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import check_maps, hidden_channels
from .gate import init_half
from .registry import register_attention


@register_attention("coord")
class CoordAttention(nn.Module):
    """Coordinate attention: weights the rows and the columns of each channel.

    The gate of a pixel is one for its channel and row times one for its channel and column. The means
    over the width and over the height are concatenated, passed through one 1x1 convolution with batch
    norm and h-swish, and split again; a 1x1 convolution and a sigmoid turn each part into a gate.

    Paper: Hou, Zhou, Feng, "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021,
    arXiv 2103.02907; biases as in the authors' code.
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: 3·C·h + 3·h + 2·C; h = max(8, C//32), or C//reduction.
    Saved for backward: the input, the input times one gate, and maps of size N·C·(H+W).
    Starts as: gates near 0.25 in all; ``init_identity`` reaches the constant 0.25.

    Args:
        channels: C.
        reduction: h = C//reduction; None for the authors' 32, with at least 8 hidden channels.

    Raises:
        TypeError: an argument is no int.
        ValueError: ``reduction`` leaves no hidden channel.
    """

    def __init__(self, channels: int, reduction: int | None = None) -> None:
        super().__init__()
        hidden = hidden_channels(channels, reduction, default=32, minimum=8)
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.act = nn.Hardswish()
        self.conv_h = nn.Conv2d(hidden, channels, 1)
        self.conv_w = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_maps(x)
        height, width = x.shape[2:]
        along_h, along_w = x.mean(3, keepdim=True), x.mean(2, keepdim=True)
        strip = torch.cat([along_h, along_w.transpose(2, 3)], 2)  # N, C, H+W, 1
        along_h, along_w = self.act(self.bn1(self.conv1(strip))).split([height, width], 2)
        gate_h = torch.sigmoid(self.conv_h(along_h)).to(x.dtype)
        gate_w = torch.sigmoid(self.conv_w(along_w.transpose(2, 3))).to(x.dtype)
        return x * gate_h * gate_w

    def init_identity(self) -> float:
        """Set the last convolutions to zero: both gates are 0.5."""
        init_half(self.conv_h)
        init_half(self.conv_w)
        return 0.25
