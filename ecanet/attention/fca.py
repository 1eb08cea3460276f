"""FCA: SE that squeezes by several frequencies of a cosine transform, not the mean alone."""

# Without annotations from __future__: TorchScript takes the string "Tensor" for an unknown type.
import math

import torch
from torch import Tensor, nn

from .checks import check_maps, hidden_channels, positive
from .gate import averaged_to
from .registry import register_attention

# The 32 best frequencies (vertical, horizontal) of a 7x7 cosine transform, best first, by the ImageNet
# accuracy that the authors measured with each alone: the "top" order of their code.
BEST_FREQUENCIES = (
    (0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0),
    (5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3), (3, 5), (2, 2),
    (4, 6), (6, 3), (3, 3), (5, 3), (5, 5), (2, 1), (6, 1), (5, 2),
    (5, 4), (3, 2), (3, 1), (4, 1), (2, 3), (2, 0), (6, 5), (1, 3),
)  # fmt: skip


def _cosine(frequency: int, size: int) -> Tensor:
    """Return one row of the orthonormal DCT-II: (size,)."""
    scale = math.sqrt((1 if frequency == 0 else 2) / size)
    angles = [math.pi * frequency * (i + 0.5) / size for i in range(size)]
    return torch.tensor([scale * math.cos(angle) for angle in angles])


@register_attention("fca")
class FCA(nn.Module):
    """FcaNet: SE on several frequencies of each channel in place of its mean.

    sigmoid(W2 relu(W1 s)), where s comes from a cosine transform. The channels are divided into one
    group per frequency; s is the sum of the map, averaged to 7x7 if it has another size, times the 2-D
    cosine of the group's frequency. The authors average in detection; their classifiers use bases as
    large as the maps (56, 28, 14, 7).

    Paper: Qin, Zhang, Wu, Li, "FcaNet: Frequency Channel Attention Networks", ICCV 2021,
    arXiv 2012.11879.
    Shapes: (N, C, H, W) → (N, C, H, W), at any H and W.
    Parameters: 2·C·h; h = max(4, C//16), or C//reduction. The bases are constants, not in the state_dict.
    Saved for backward: the input, the gate and vectors of size N·C.
    Starts as: PyTorch's default for linear layers, gates near 0.5; ``init_identity`` reaches the
    constant 0.5.

    Args:
        channels: C, a multiple of ``frequencies``.
        frequencies: number of the best frequencies to use: 1 (the mean), 2, 4, 8, 16 or 32.
        size: side of the cosine bases, at least 7; frequency u becomes u·(size//7).
        reduction: h = C//reduction; None for the paper's 16, with at least 4 hidden channels.

    Raises:
        TypeError: an argument is no int.
        ValueError: ``frequencies`` is another number or does not divide C, ``size`` is below 7, or
            ``reduction`` leaves no hidden channel.
    """

    basis: Tensor

    def __init__(
        self, channels: int, frequencies: int = 16, size: int = 7, reduction: int | None = None
    ) -> None:
        super().__init__()
        hidden = hidden_channels(channels, reduction)
        counts = [1, 2, 4, 8, 16, 32]
        if positive("frequencies", frequencies) not in counts:
            raise ValueError(f"frequencies must be 1, 2, 4, 8, 16 or 32, got {frequencies!r}")
        if channels % frequencies:
            largest = max(count for count in counts if channels % count == 0)
            raise ValueError(
                f"frequencies={frequencies} does not divide {channels} channels, {largest} does"
            )
        if positive("size", size) < 7:
            raise ValueError(f"size must be at least 7, got {size}")
        self.size = size
        step = size // 7
        bases = [
            torch.outer(_cosine(u * step, size), _cosine(v * step, size))
            for u, v in BEST_FREQUENCIES[:frequencies]
        ]
        basis = torch.stack(bases).repeat_interleave(channels // frequencies, 0)
        self.register_buffer("basis", basis, persistent=False)
        self.fc1 = nn.Linear(channels, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        check_maps(x)
        spectrum = (averaged_to(x, self.size) * self.basis.to(x.dtype)).sum((2, 3))
        gate = torch.sigmoid(self.fc2(torch.relu(self.fc1(spectrum)))).to(x.dtype)
        return x * gate[:, :, None, None]

    def init_identity(self) -> float:
        """Set the last layer to zero: every gate is 0.5."""
        nn.init.zeros_(self.fc2.weight)
        return 0.5
