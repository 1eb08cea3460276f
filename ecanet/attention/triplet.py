"""Triplet attention: three spatial gates, one for each pair of the axes C, H and W."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_maps, odd, positive
from .gate import in_memory_order, init_half, to_nchw
from .registry import register_attention


class _Branch(nn.Module):
    """One gate: maxima and means (N, A, B) over the third axis → (N, A, B)."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, maximum: Tensor, mean: Tensor) -> Tensor:
        maps = torch.stack([maximum, mean], -1).permute(0, 3, 1, 2)
        return torch.sigmoid(self.bn(self.conv(maps))).squeeze(1)


@register_attention("triplet")
class TripletAttention(nn.Module):
    """Triplet attention: averages three gates, one per pair of channel, height and width.

    The gates are over (C, W), (H, C) and (H, W). Each gate is the maximum and mean over the third axis,
    followed by a 7x7 convolution without bias, a batch norm (momentum 0.01, as in the authors' code)
    and a sigmoid. The paper averages three gated copies of the input; averaging the gates is equivalent
    and saves two copies.

    Paper: Misra, Nalamada, Arasanipalai, Hou, "Rotate to Attend: Convolutional Triplet Attention
    Module", WACV 2021, arXiv 2010.03045.
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: 3·(2·k² + 2) for any C; k = kernel_size.
    Saved for backward: the input, the mean gate (N, C, H, W), and maps with one axis less.
    Starts as: gates near 0.5; ``init_identity`` reaches the constant 0.5.

    In training the batch norms need N·H·W > 1.

    Args:
        channels: C; has no effect.
        kernel_size: k of the three convolutions.

    Raises:
        TypeError: an argument is no int.
        ValueError: ``kernel_size`` is even.
    """

    def __init__(self, channels: int, kernel_size: int = 7) -> None:
        super().__init__()
        positive("channels", channels)
        k = odd("kernel_size", kernel_size)

        self.cw, self.hc, self.hw = _Branch(k), _Branch(k), _Branch(k)

    def forward(self, x: Tensor) -> Tensor:
        check_maps(x)
        view, axes = in_memory_order(x)
        c, h, w = axes
        # One of equal maxima is selected, as in the authors' code. amax distributes the gradient among
        # them, and its backward pass reads the input several times.
        max_h = F.adaptive_max_pool2d(x, (1, x.shape[3])).squeeze(2)  # (N, C, W)
        max_w = F.adaptive_max_pool2d(x, (x.shape[2], 1)).squeeze(3)  # (N, C, H)
        # Reducing an axis of the view leaves (N, W, C) and (N, H, C) if channels last, else (N, C, W) and
        # (N, C, H). The convolutions take (C, W), (H, C) and (H, W).
        last = c == 3
        mean_h, mean_w = view.mean(h), view.mean(w)
        cw = self.cw(max_h, mean_h.transpose(1, 2) if last else mean_h)
        hc = self.hc(max_w.transpose(1, 2), mean_w if last else mean_w.transpose(1, 2))
        hw = self.hw(view.max(c).values, view.mean(c))
        gates = (cw.transpose(1, 2) if last else cw).unsqueeze(h) + (
            hc if last else hc.transpose(1, 2)
        ).unsqueeze(w)
        gate = (gates + hw.unsqueeze(c)) / 3
        return to_nchw(view * gate.to(x.dtype), axes)

    def init_identity(self) -> float:
        """Set the batch norms to zero: the three gates are 0.5."""
        for branch in (self.cw, self.hc, self.hw):
            init_half(branch.bn)
        return 0.5
