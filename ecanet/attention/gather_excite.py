"""Gather-Excite: a gate from the context of each pixel's neighborhood, or of the whole map."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_maps, hidden_channels, known_dims, positive
from .gate import init_half
from .registry import register_attention


class _Windows3d(nn.Module):
    """Means of the pixels in windows, as nn.AvgPool3d: which refuses maps smaller than its windows."""

    def __init__(self, extent: int) -> None:
        super().__init__()
        self.extent = extent

    def forward(self, x: Tensor) -> Tensor:
        window, padding = 2 * self.extent - 1, [self.extent - 1] * 6
        inside = F.avg_pool3d(F.pad(torch.ones_like(x[:1, :1]), padding), window, self.extent)
        return F.avg_pool3d(F.pad(x, padding), window, self.extent) / inside


@register_attention("ge")
class GatherExcite(nn.Module):
    """Gather-Excite: weights pixels of each channel by the context gathered around them.

    The gate is the sigmoid of the gathered context, resized to the feature map.

    Three variants, the paper's θ-, θ and θ+:

    - ``minus`` gathers by averaging: windows of 2e-1 pixels with stride e, or the whole map for extent 0.
    - ``theta`` gathers by depthwise convolutions with batch norm: log2(e) of 3x3 with stride 2 and
      ReLU in between, or for extent 0 a single one as large as the feature map.
    - ``plus`` is ``theta`` followed by ReLU and SE's two 1x1 layers.

    Layers, biases and initial values follow the authors' network definitions (RN50-GEPF, GEP, GEPP).
    As the size of the maps is not known in advance, the default is ``plus`` with extent 8 instead of the
    global kernel of the authors' best network, which is ``extent=0:size=7``.

    Paper: Hu, Shen, Albanie, Sun, Vedaldi, "Gather-Excite: Exploiting Feature Context in
    Convolutional Neural Networks", NeurIPS 2018, arXiv 1810.12348.
    Shapes: (N, C, H, W) → (N, C, H, W), at any H and W; gathered to ceil(H/e) x ceil(W/e).
    Parameters: 0 for minus. For theta log2(e)·11·C, or C·size² + 2·C for extent 0; plus adds
    2·C·h + h + C, with h = max(4, C//16), or C//reduction. So plus with extent 8: 34·C + 2·C·h + h.
    With ``dims`` 1 or 3, a kernel of 3x3 is one of 3 or 3x3x3, and one of size² is one of size or size³.
    Saved for backward: the input and the resized gate (N, C, H, W each); for theta and plus the
    gathered maps, two thirds of the input in total.
    Starts as: gates near 0.5; ``init_identity`` reaches the constant 0.5, except for
    minus, which has no parameters.

    In training the batch norm of theta and plus needs more than one value per channel: N > 1 for
    extent 0 and for maps no larger than the extent.

    Args:
        channels: C.
        variant: minus, theta or plus.
        extent: e, a power of two of at least 2; 0 for global.
        reduction: h = C//reduction; None for the paper's 16, with at least 4 hidden channels.
            Only for plus.
        size: side of the global kernel. Maps of another size are averaged to it first (in the paper the
            kernel has the size of the map). Only for theta and plus with extent 0, which require it.
        dims: axes of space: 2, or 1 for (N, C, L), or 3 for (N, C, D, H, W).
            Windows, kernels and strides are the same along each axis.

    Raises:
        TypeError: a number is no int.
        ValueError: an argument is out of range, missing, or would have no effect.
    """

    def __init__(
        self,
        channels: int,
        variant: Literal["minus", "theta", "plus"] = "plus",
        extent: int = 8,
        reduction: int | None = None,
        size: int | None = None,
        dims: int = 2,
    ) -> None:
        super().__init__()
        positive("channels", channels)
        self.dims = known_dims(dims)
        if variant not in ("minus", "theta", "plus"):
            raise ValueError(f"variant must be minus, theta or plus, got {variant!r}")
        if extent != 0 and (positive("extent", extent) == 1 or extent & (extent - 1)):
            raise ValueError(
                f"extent must be 0 (global) or a power of two of at least 2, got {extent}"
            )
        if reduction is not None and variant != "plus":
            raise ValueError(f"reduction changes nothing for variant={variant}, only for plus")
        if size is not None and (variant == "minus" or extent != 0):
            raise ValueError("size changes nothing except for theta and plus with extent=0")
        self.extent = extent
        self.size = size
        self.resize: nn.Module | None = None
        self.excite: nn.Sequential | None = None
        if variant == "minus":
            if extent == 0:
                self.gather: nn.Module = getattr(nn, f"AdaptiveAvgPool{dims}d")(1)
            elif dims == 3:
                self.gather = _Windows3d(extent)
            else:
                self.gather = getattr(nn, f"AvgPool{dims}d")(
                    2 * extent - 1, extent, extent - 1, count_include_pad=False
                )
            return
        if extent == 0 and size is None:
            raise ValueError(
                "extent=0 with parameters needs the size of its kernel, such as size=7"
            )

        convolution, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
        if size is not None:
            self.resize = getattr(nn, f"AdaptiveAvgPool{dims}d")(positive("size", size))
        layers: list[nn.Module] = []
        for _ in range(max(1, extent.bit_length() - 1)):
            kernel, stride, padding = (3, 2, 1) if size is None else (size, 1, 0)
            conv = convolution(
                channels, channels, kernel, stride, padding, groups=channels, bias=False
            )
            nn.init.kaiming_normal_(conv.weight)
            layers += [conv, norm(channels), nn.ReLU()]
        self.gather = nn.Sequential(*layers[:-1])
        if variant == "plus":
            hidden = hidden_channels(channels, reduction)
            down, up = convolution(channels, hidden, 1), convolution(hidden, channels, 1)
            for conv in (down, up):
                nn.init.normal_(conv.weight, std=0.01)
                nn.init.zeros_(conv.bias)
            self.excite = nn.Sequential(nn.ReLU(), down, nn.ReLU(), up)

    def forward(self, x: Tensor) -> Tensor:
        check_maps(x, self.dims)
        context = self.gather(x if self.resize is None else self.resize(x))
        if self.excite is not None:
            context = self.excite(context)
        gate = torch.sigmoid(context).to(x.dtype)
        if self.extent != 0:
            gate = F.interpolate(gate, x.shape[2:], mode="nearest")
        return x * gate

    def init_identity(self) -> float:
        """Set the last layer to zero: every gate is 0.5. The gates of minus vary around that."""
        if isinstance(self.gather, nn.Sequential):
            init_half((self.excite or self.gather)[-1])
        return 0.5
