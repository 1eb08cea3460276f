"""CBAM: a channel gate from means and maxima, then a spatial gate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_maps, hidden_channels, known_dims, odd
from .gate import as_maps, in_memory_order, init_half, to_nchw
from .registry import register_attention


@register_attention("cbam")
class CBAM(nn.Module):
    """CBAM: weights channels, then pixels, from their means and maxima.

    The channel gate is a shared MLP on the means and maxima over the image, the spatial gate a 7x7
    convolution. As in the authors' code, the MLP has biases, and the spatial convolution, whose inputs
    are the maximum and the mean over channels in this order, has no bias but a batch norm (momentum
    0.01), which the paper does not mention.

    Paper: Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018,
    arXiv 1807.06521.
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: 2·C·h + h + C + 2·k² + 2, with k or k³ for ``dims`` 1 or 3; h = max(4, C//16), or
    C//reduction; k = kernel_size.
    Saved for backward: the input, the input times the channel gate, and maps of size N·C and N·H·W.
    Starts as: both gates near 0.5; ``init_identity`` reaches the constant 0.25.

    In training the batch norm needs N·H·W > 1.

    Args:
        channels: C.
        reduction: h = C//reduction; None for the paper's 16, with at least 4 hidden channels.
        kernel_size: k of the spatial convolution, along each axis.
        dims: axes of space: 2, or 1 for (N, C, L), or 3 for (N, C, D, H, W).

    Raises:
        TypeError: an argument is no int.
        ValueError: ``reduction`` leaves no hidden channel, ``kernel_size`` is even, or ``dims`` is none of
            1, 2 and 3.
    """

    def __init__(
        self, channels: int, reduction: int | None = None, kernel_size: int = 7, dims: int = 2
    ) -> None:
        super().__init__()
        self.dims = known_dims(dims)
        hidden = hidden_channels(channels, reduction)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        k = odd("kernel_size", kernel_size)
        self.conv = getattr(nn, f"Conv{dims}d")(2, 1, k, padding=k // 2, bias=False)
        self.bn = getattr(nn, f"BatchNorm{dims}d")(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        check_maps(x, self.dims)
        maps = x if self.dims == 2 else as_maps(x)
        view, axes = in_memory_order(maps)
        c, h, w = axes
        # Pooling and max select one of equal maxima. amax distributes the gradient among them, and its
        # backward pass reads the input several times.
        maximum = F.adaptive_max_pool2d(maps, 1).flatten(1)
        pooled = torch.stack([view.flatten(h, w).mean(h), maximum])
        channel = torch.sigmoid(self.fc2(torch.relu(self.fc1(pooled))).sum(0))
        view = view * channel.to(x.dtype).unsqueeze(h).unsqueeze(w)
        maximum, mean = view.max(c).values, view.mean(c)
        if self.dims != 2:
            maximum, mean = maximum.view_as(x[:, 0]), mean.view_as(x[:, 0])
        spatial = self.bn(self.conv(torch.stack([maximum, mean], -1).movedim(maximum.ndim, 1)))
        if self.dims != 2:
            spatial = as_maps(spatial)
        spatial = torch.sigmoid(spatial).squeeze(1)
        gated = to_nchw(view * spatial.to(x.dtype).unsqueeze(c), axes)
        return gated if self.dims == 2 else gated.view_as(x)

    def init_identity(self) -> float:
        """Set the last layers of both gates to zero: each is 0.5."""
        init_half(self.fc2)
        init_half(self.bn)
        return 0.25
