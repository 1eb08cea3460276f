"""EMA: groups of channels, each with a spatial gate learned across two scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import check_maps, divides, even_groups, positive
from .gate import init_half
from .registry import register_attention


@register_attention("ema")
class EMA(nn.Module):
    """Efficient multi-scale attention: weights pixels in groups of channels, at two scales.

    Each group has one spatial gate; all groups share their weights.

    Within a group of c channels, the first branch gates rows and columns (a 1x1 convolution of the
    concatenated strips, as in coordinate attention) and normalizes each channel; the second branch is a 3x3
    convolution. The softmax of each branch's channel means weights the maps of the other branch; their
    sum is the gate's logit.

    Paper: Ouyang, He, Zhang, Luo, Guo, Zhan, Huang, "Efficient Multi-Scale Attention Module with
    Cross-Spatial Learning", ICASSP 2023, arXiv 2305.13563.
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: 10·c² + 4·c, with c = C/groups.
    Saved for backward: about six maps of the input's size, more than any other module here.
    Starts as: gates near 0.5; ``init_identity`` reaches the constant 0.5.

    In training the norm needs more than one pixel, or more than one group or image.

    Args:
        channels: C.
        groups: None for the authors' 32, or the largest power of two below it that divides C and leaves
            at least 2 channels per group (the softmax of a single channel is 1).

    Raises:
        TypeError: an argument is no int.
        ValueError: ``groups`` does not divide C.
    """

    def __init__(self, channels: int, groups: int | None = None) -> None:
        super().__init__()
        if groups is None:
            groups = even_groups(positive("channels", channels), 32)
        self.groups = divides("groups", groups, channels)
        width = channels // groups
        self.conv1x1 = nn.Conv2d(width, width, 1)
        self.conv3x3 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        check_maps(x)
        n, c, height, width = x.shape
        grouped = x.reshape(n * self.groups, c // self.groups, height, width)
        along_h, along_w = grouped.mean(3, keepdim=True), grouped.mean(2, keepdim=True)
        strip = torch.cat([along_h, along_w.transpose(2, 3)], 2)
        gate_h, gate_w = torch.split(torch.sigmoid(self.conv1x1(strip)), [height, width], 2)
        one = self.norm(grouped * gate_h * gate_w.transpose(2, 3))
        two = self.conv3x3(grouped)
        logits = _weighted(one, two) + _weighted(two, one)
        gate = torch.sigmoid(logits).to(x.dtype).reshape(n, self.groups, 1, height, width)
        # From x, not grouped: only x still has the memory layout that the output should keep.
        gated: Tensor = torch.unflatten(x, 1, (self.groups, -1)) * gate
        return gated.flatten(1, 2)

    def init_identity(self) -> float:
        """Set the last layers of both branches to zero: every gate is 0.5."""
        init_half(self.norm)
        init_half(self.conv3x3)
        return 0.5


def _weighted(by: Tensor, maps: Tensor) -> Tensor:
    """Return the sum of ``maps`` over channels, weighted by the softmax of the means of ``by``."""
    weights = by.mean((2, 3)).softmax(1).to(maps.dtype)
    total: Tensor = torch.einsum("bc,bchw->bhw", weights, maps)
    return total
