"""SE: two fully connected layers on the channel means, and the variants in ECA-Net's ablation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import divides, hidden_channels, positive
from .gate import LinearGate, PooledGate, init_half
from .registry import register_attention


@register_attention("se")
class SE(PooledGate):
    """Squeeze-and-Excitation: weights channels by a small MLP on all channel means.

    sigmoid(W2 relu(W1 mean)), with a bottleneck in between.

    Paper: Hu, Shen, Albanie, Sun, Wu, "Squeeze-and-Excitation Networks", CVPR 2018, arXiv 1709.01507.
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: 2·C·h + h + C with biases, 2·C·h without; h = max(4, C//16), or C//reduction.
    Saved for backward: the input, and of size N·C the means, the hidden layer and the gate.
    Starts as: PyTorch's default for linear layers, gates near 0.5; ``init_identity`` reaches the
    constant 0.5.

    Args:
        channels: C.
        reduction: h = C//reduction; None for the paper's 16, with at least 4 hidden channels.
        bias: as in the authors' network; ECA-Net's tables count SE without biases (26.77 M for
            ResNet-50).
        dims: axes of space: 2, or 1 for (N, C, L), or 3 for (N, C, D, H, W).

    Raises:
        TypeError: ``channels``, ``reduction`` or ``dims`` is no int.
        ValueError: ``reduction`` leaves no hidden channel, or ``dims`` is none of 1, 2 and 3.
    """

    def __init__(
        self, channels: int, reduction: int | None = None, bias: bool = True, dims: int = 2
    ) -> None:
        super().__init__(dims)
        hidden = hidden_channels(channels, reduction)
        self.fc1 = nn.Linear(channels, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, channels, bias=bias)

    def gate(self, pooled: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(torch.relu(self.fc1(pooled))))

    def init_identity(self) -> float:
        """Set the last layer to zero: every gate is 0.5."""
        init_half(self.fc2)
        return 0.5


@register_attention("se_var1")
class SEVar1(LinearGate):
    """SE-Var1: weights each channel by the sigmoid of its mean, without parameters.

    Paper: ECA-Net, arXiv 1910.03151, Sec. 3.2 and Table 2 (76.00 top-1 on ResNet-50).
    The same function as a global Gather-Excite without parameters (``ge:variant=minus:extent=0``).
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: 0. Saved for backward: the input and the gate (N, C).
    Starts as: it always is; ``init_identity`` changes nothing and returns 0.5, which holds for channels with
    zero mean.

    Args:
        channels: C; has no effect.
        dims: axes of space: 2, or 1 for (N, C, L), or 3 for (N, C, D, H, W).
    """

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__(dims)
        positive("channels", channels)

    def gate(self, pooled: Tensor) -> Tensor:
        return torch.sigmoid(pooled)


@register_attention("se_var2")
class SEVar2(LinearGate):
    """SE-Var2: weights each channel by its own mean, with one parameter per channel.

    sigmoid(w · mean): channels do not interact.

    Paper: ECA-Net, arXiv 1910.03151, Sec. 3.2 and Table 2 (77.07 top-1 on ResNet-50).
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: C, as ``weight`` (C).
    Saved for backward: the input, the means and the gate (N, C each).
    Starts as: uniform weights in ±1, like a linear layer with one input; ``init_identity`` reaches the
    constant 0.5.

    Args:
        channels: C.
        dims: axes of space: 2, or 1 for (N, C, L), or 3 for (N, C, D, H, W).
    """

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__(dims)
        self.weight = nn.Parameter(torch.empty(positive("channels", channels)))
        nn.init.uniform_(self.weight, -1, 1)

    def gate(self, pooled: Tensor) -> Tensor:
        return torch.sigmoid(pooled * self.weight)


@register_attention("se_var3")
class SEVar3(LinearGate):
    """SE-Var3: weights channels by one fully connected layer on all channel means.

    sigmoid(W mean): SE without the bottleneck.

    Paper: ECA-Net, arXiv 1910.03151, Sec. 3.2 and Table 2 (77.42 top-1 on ResNet-50).
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: C², as ``fc.weight`` (C, C).
    Saved for backward: the input, the means and the gate (N, C each).
    Starts as: PyTorch's default for linear layers; ``init_identity`` reaches the constant 0.5.

    Args:
        channels: C.
        dims: axes of space: 2, or 1 for (N, C, L), or 3 for (N, C, D, H, W).
    """

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__(dims)
        self.fc = nn.Linear(positive("channels", channels), channels, bias=False)

    def gate(self, pooled: Tensor) -> Tensor:
        return torch.sigmoid(self.fc(pooled))


class SEGroup(LinearGate):
    """SE-GC: sigmoid(W mean) with block-diagonal W: channels interact only within their group.

    Registered as ``se_gc1`` (16 groups), ``se_gc2`` (C/16 groups) and ``se_gc3`` (C/8 groups).

    Paper: ECA-Net, arXiv 1910.03151, Sec. 3.2 and Table 2.
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: C²/groups, as ``conv.weight`` (C, C/groups, 1).
    Saved for backward: the input, the means and the gate (N, C each).
    Starts as: PyTorch's default for convolutions; ``init_identity`` reaches the constant 0.5.

    Args:
        channels: C.
        groups: number of groups.
        dims: axes of space: 2, or 1 for (N, C, L), or 3 for (N, C, D, H, W).

    Raises:
        TypeError: an argument is no int.
        ValueError: ``groups`` does not divide ``channels``, or ``dims`` is none of 1, 2 and 3.
    """

    def __init__(self, channels: int, groups: int, dims: int = 2) -> None:
        super().__init__(dims)
        groups = divides("groups", groups, channels)
        self.conv = nn.Conv1d(channels, channels, 1, groups=groups, bias=False)

    def gate(self, pooled: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(pooled[:, :, None])[:, :, 0])


@register_attention
def se_gc1(channels: int, dims: int = 2) -> SEGroup:
    """SE-GC1: SE-Var3 within 16 groups of channels.

    C²/16 parameters.
    """
    return SEGroup(channels, 16, dims)


@register_attention
def se_gc2(channels: int, dims: int = 2) -> SEGroup:
    """SE-GC2: SE-Var3 within groups of 16 channels.

    C/16 groups, 16·C parameters.
    """
    return SEGroup(channels, positive("channels", channels) // 16, dims)


@register_attention
def se_gc3(channels: int, dims: int = 2) -> SEGroup:
    """SE-GC3: SE-Var3 within groups of 8 channels.

    C/8 groups, 8·C parameters.
    """
    return SEGroup(channels, positive("channels", channels) // 8, dims)
