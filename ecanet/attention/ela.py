"""ELA: gates along the height and the width, by 1-D convolutions at full channel width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import check_maps, divides, even_groups, odd, positive
from .gate import init_half
from .registry import register_attention


@register_attention("ela")
class ELA(nn.Module):
    """Efficient local attention: weights the rows and columns of each channel by 1-D convolutions.

    The gate is sigmoid(group_norm(conv1d(strip))) for rows times the same for columns. The strips are
    the means over the width and the height, which share convolution (without bias) and norm, as in the
    paper's listing. The defaults are ELA-B; ELA-T is ``kernel_size=5:norm_groups=32``, ELA-S
    ``kernel_size=5:conv_width=8``, ELA-L ``conv_width=8``.

    Paper: Xu, Wan, "ELA: Efficient Local Attention for Deep Convolutional Neural Networks", 2024,
    arXiv 2403.01123.
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: C·k·conv_width + 2·C; k = kernel_size.
    Saved for backward: the input, the input times one gate, and maps of size N·C·(H+W).
    Starts as: gates near 0.25 in all; ``init_identity`` reaches the constant 0.25.

    Args:
        channels: C.
        kernel_size: k of the 1-D convolution along a strip.
        conv_width: channels in a group of the convolution: 1 for depthwise.
        norm_groups: groups of the norm; None for the paper's 16, or the largest power of two
            below it that divides C and leaves at least 2 channels per group.

    Raises:
        TypeError: an argument is no int.
        ValueError: ``kernel_size`` is even, or ``conv_width`` or ``norm_groups`` does not divide C.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        conv_width: int = 1,
        norm_groups: int | None = None,
    ) -> None:
        super().__init__()
        k = odd("kernel_size", kernel_size)
        if norm_groups is None:
            norm_groups = even_groups(positive("channels", channels), 16)
        conv_groups = channels // divides("conv_width", conv_width, channels)
        self.conv = nn.Conv1d(channels, channels, k, padding=k // 2, groups=conv_groups, bias=False)
        self.norm = nn.GroupNorm(divides("norm_groups", norm_groups, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        check_maps(x)
        gate_h = torch.sigmoid(self.norm(self.conv(x.mean(3)))).to(x.dtype)
        gate_w = torch.sigmoid(self.norm(self.conv(x.mean(2)))).to(x.dtype)
        return x * gate_h[:, :, :, None] * gate_w[:, :, None, :]

    def init_identity(self) -> float:
        """Set the norm to zero: both gates are 0.5."""
        init_half(self.norm)
        return 0.25
