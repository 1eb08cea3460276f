"""EMA: groups of channels, each with a spatial gate learned across two scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import divides, even_groups, positive
from .gate import OPEN, opened
from .registry import register_attention


@register_attention("ema")
class EMA(nn.Module):
    """Efficient multi-scale attention: one spatial gate a group, the groups sharing all weights.

    Inside a group of c channels, branch one gates the group along rows and columns (a 1x1 convolution
    on the joined strips, as in coordinate attention) and normalises each channel; branch two is a 3x3
    convolution. Each branch's channel means, through a softmax, weigh the other branch's maps; the
    sum of both is the gate's argument.

    Paper: Ouyang, He, Zhang, Luo, Guo, Zhan, Huang, "Efficient Multi-Scale Attention Module with
    Cross-Spatial Learning", ICASSP 2023, arXiv 2305.13563.
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: 10·c² + 4·c, with c = C/groups.
    Saved for backward: about six maps of the input's size: the most of all modules here.
    Starts as: gates near 0.5; ``init_identity`` reaches the constant sigmoid(4) = 0.982.

    In training the norm needs more than one pixel, or more than one group or image.

    Args:
        channels: C.
        groups: exactly; None for the authors' 32, or the largest power of two below it that divides C
            and leaves at least 2 channels a group (alone in its group, a channel's softmax is 1).

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
        n, c, height, width = x.shape
        grouped = x.reshape(n * self.groups, c // self.groups, height, width)
        strip = torch.cat([grouped.mean(3, keepdim=True), grouped.mean(2, keepdim=True).mT], 2)
        gate_h, gate_w = torch.split(torch.sigmoid(self.conv1x1(strip)), [height, width], 2)
        one = self.norm(grouped * gate_h * gate_w.mT)
        two = self.conv3x3(grouped)
        argument = _weigh(one, two) + _weigh(two, one)
        gate = torch.sigmoid(argument).to(x.dtype).reshape(n, self.groups, 1, height, width)
        # x, not grouped: only x still has its memory layout, and the output should keep it.
        gated: Tensor = torch.unflatten(x, 1, (self.groups, -1)) * gate
        return gated.flatten(1, 2)

    def init_identity(self) -> float:
        """Make both branches the constant 2, so that every gate's argument is 4."""
        nn.init.zeros_(self.norm.weight)
        nn.init.constant_(self.norm.bias, OPEN / 2)
        nn.init.zeros_(self.conv3x3.weight)
        assert self.conv3x3.bias is not None
        nn.init.constant_(self.conv3x3.bias, OPEN / 2)
        return opened()


def _weigh(by: Tensor, maps: Tensor) -> Tensor:
    """Return the sum of ``maps`` over channels, weighted by the softmax of the means of ``by``."""
    weights = by.mean((2, 3)).softmax(1).to(maps.dtype)
    weighed: Tensor = torch.einsum("bc,bchw->bhw", weights, maps)
    return weighed
