"""ECA: a 1-D convolution along the channels, and its circular and unshared variants."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import odd, positive
from .gate import LinearGate, PooledGate
from .operators import has_values, in_memory_format, usable_kernels
from .registry import register_attention

GAMMA, B = 2, 1


def eca_kernel_size(channels: int, gamma: float = GAMMA, b: float = B) -> int:
    """Return ECA's adaptive kernel size: |log2(C)/gamma + b/gamma|, truncated, and plus one if even.

    With the paper's gamma=2 and b=1: 3 for 8 to 127 channels, 5 for 128 to 2047, 7 from 2048 on.
    Below 8 channels the formula gives 1 (timm's class uses 3).

    Source: ECA-Net, arXiv 1910.03151, Eq. 12, rounded as the authors' listing does.

    Raises:
        TypeError: ``channels`` is no int.
        ValueError: ``channels`` is below 1, ``gamma`` is not positive, or either is not finite.
    """
    positive("channels", channels)
    if not 0 < gamma < math.inf or not math.isfinite(b):
        raise ValueError(f"gamma must be positive and both finite, got gamma={gamma}, b={b}")
    t = int(abs((math.log2(channels) + b) / gamma))
    return t if t % 2 else t + 1


def _kernel_size(
    channels: int, kernel_size: int | None, gamma: float, b: float, *, wraps: bool = False
) -> int:
    """Return ``kernel_size``, or the adaptive one for None; refuse one wider than the channels can fill."""
    largest = positive("channels", channels) if wraps else 2 * positive("channels", channels) - 1
    if kernel_size is None:
        kernel_size = eca_kernel_size(channels, gamma, b)
    elif (gamma, b) != (GAMMA, B):
        raise ValueError(f"gamma and b change nothing with kernel_size={kernel_size}")
    if odd("kernel_size", kernel_size) > largest:
        raise ValueError(
            f"kernel_size={kernel_size} is too large for {channels} channels, at most {largest}"
        )
    return kernel_size


def _convolved(padded: Tensor, kernel: Tensor) -> Tensor:
    """Return the sigmoid of the convolution of (N, C + k - 1) with a kernel of (1, 1, k): (N, C).

    Library convolutions are slow for a single channel: several times slower on a CPU.
    """
    k = kernel.shape[2]
    if not torch.jit.is_scripting() and (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        # The compiler fuses sums of products with the surrounding operations, and ONNX's tracer does not
        # support unfold.
        channels = padded.shape[1] - k + 1
        terms = [padded[:, i : i + channels] * kernel[0, 0, i] for i in range(k)]
        return torch.sigmoid(functools.reduce(torch.add, terms))
    # bmm saves the windows as a view of the means; matmul would save a copy k times as large.
    column = kernel[0, 0, :, None].expand(padded.shape[0], k, 1)
    return torch.sigmoid(torch.bmm(padded.unfold(1, k, 1), column)[:, :, 0])


class _ByKernels(torch.autograd.Function):
    """ECA alone in the operators ``eca`` and ``eca_backward``; second derivatives are PyTorch's."""

    @staticmethod
    def forward(ctx: Any, kernels: Any, x: Tensor, kernel: Tensor) -> Tensor:
        out, mean, gate = kernels.eca(x, kernel.float().contiguous())
        ctx.save_for_backward(x, kernel, mean, gate)
        ctx.kernels = kernels
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel, mean, gate = ctx.saved_tensors
        if torch.is_grad_enabled() or not has_values(grad_out):
            again = torch.is_grad_enabled()
            with torch.enable_grad():
                inputs = [
                    v.view_as(v) if v.requires_grad else v.detach().requires_grad_()
                    for v in (x, kernel)
                ]
                half = kernel.shape[2] // 2
                means = F.pad(inputs[0].float().mean((2, 3)), (half, half))
                y = inputs[0] * _convolved(means, inputs[1].float()).to(x.dtype)[:, :, None, None]
            return None, *torch.autograd.grad(y, inputs, grad_out, create_graph=again)
        grad_x, grad_kernel = ctx.kernels.eca_backward(
            grad_out, x, kernel.float().contiguous(), mean, gate
        )
        return None, grad_x, grad_kernel.view_as(kernel).to(kernel.dtype)


@register_attention("eca")
class ECA(LinearGate):
    """ECA: weights each channel by its mean and the means of neighboring channels.

    sigmoid(conv1d(mean)) with one kernel of k weights for all channels, zero-padded: the gate of a channel
    depends on its own mean and those of k-1 neighbors.

    Paper: Wang, Wu, Zhu, Li, Zuo, Hu, "ECA-Net: Efficient Channel Attention for Deep Convolutional
    Neural Networks", CVPR 2020, arXiv 1910.03151.
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: k, as ``conv.weight`` (1, 1, k).
    Saved for backward: the input, the means and the gate (N, C each).
    Starts as: a uniform kernel in ±1/√k, so gates near 0.5; ``init_identity`` reaches the constant 0.5.

    Args:
        channels: C.
        kernel_size: k; None for the adaptive rule, :func:`eca_kernel_size`.
        gamma, b: constants of the rule; refused with a ``kernel_size``, where they have no effect.
        dims: axes of space: 2, or 1 for (N, C, L), or 3 for (N, C, D, H, W).

    Raises:
        TypeError: ``channels``, ``kernel_size`` or ``dims`` is no int.
        ValueError: k is even, or larger than 2C-1, or ``dims`` is none of 1, 2 and 3.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        gamma: float = GAMMA,
        b: float = B,
        dims: int = 2,
    ) -> None:
        super().__init__(dims)
        k = _kernel_size(channels, kernel_size, gamma, b)
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def gate(self, pooled: Tensor) -> Tensor:
        k = self.conv.kernel_size[0]
        return _convolved(F.pad(pooled, (k // 2, k // 2)), self.conv.weight)

    def eca_kernel(self) -> Tensor | None:
        own = type(self).gate is ECA.gate and type(self).factors is PooledGate.factors
        return self.conv.weight if own and not self.__dict__.keys() & {"gate", "factors"} else None

    def by_kernel(self, x: Tensor) -> Tensor | None:
        kernels = usable_kernels(x)
        kernel = None if kernels is None else self.eca_kernel()
        if kernel is None or kernel.device != x.device:
            return None
        return _ByKernels.apply(kernels, in_memory_format(x), kernel)


@register_attention("eca_circular")
class ECACircular(LinearGate):
    """Circular ECA: ECA in which the first and last channels are neighbors, too.

    Paper: none; a variant of ECA-Net (arXiv 1910.03151) by Chris Ha in timm (``ceca``): the order of
    channels has no meaning, so neither do its ends.
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: k, as ``conv.weight`` (1, 1, k).
    Saved for backward: the input, the means (padded) and the gate.
    Starts as: ECA; ``init_identity`` reaches the constant 0.5.

    Args:
        channels: C.
        kernel_size: k; None for the adaptive rule, :func:`eca_kernel_size`.
        gamma, b: constants of the rule; refused with a ``kernel_size``, where they have no effect.
        dims: axes of space: 2, or 1 for (N, C, L), or 3 for (N, C, D, H, W).

    Raises:
        TypeError: ``channels``, ``kernel_size`` or ``dims`` is no int.
        ValueError: k is even, or larger than C, so that the kernel would cover a channel twice, or ``dims``
            is none of 1, 2 and 3.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        gamma: float = GAMMA,
        b: float = B,
        dims: int = 2,
    ) -> None:
        super().__init__(dims)
        k = _kernel_size(channels, kernel_size, gamma, b, wraps=True)
        self.conv = nn.Conv1d(1, 1, k, bias=False)
        self.padding = k // 2

    def gate(self, pooled: Tensor) -> Tensor:
        wrapped = F.pad(pooled[:, None], (self.padding, self.padding), mode="circular")
        return _convolved(wrapped[:, 0], self.conv.weight)


@register_attention("eca_ns")
class ECANS(LinearGate):
    """ECA-NS (not shared): ECA with a kernel of its own for each channel.

    Paper: ECA-Net, arXiv 1910.03151, Sec. 3.2 and Table 2: 77.35 top-1 on ResNet-50, below the 77.43 of
    ECA with k=3, for C times its parameters.
    Shapes: (N, C, H, W) → (N, C, H, W).
    Parameters: C·k, as ``weight`` (C, k).
    Saved for backward: the input, the means of each channel's k neighbors (N, C, k) and the gate.
    Starts as: uniform kernels in ±1/√k; ``init_identity`` reaches the constant 0.5.

    Args:
        channels: C.
        kernel_size: k; None for the adaptive rule, :func:`eca_kernel_size`.
        gamma, b: constants of the rule; refused with a ``kernel_size``, where they have no effect.
        dims: axes of space: 2, or 1 for (N, C, L), or 3 for (N, C, D, H, W).

    Raises:
        TypeError: ``channels``, ``kernel_size`` or ``dims`` is no int.
        ValueError: k is even, or larger than 2C-1, or ``dims`` is none of 1, 2 and 3.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        gamma: float = GAMMA,
        b: float = B,
        dims: int = 2,
    ) -> None:
        super().__init__(dims)
        k = _kernel_size(channels, kernel_size, gamma, b)
        self.weight = nn.Parameter(torch.empty(channels, k))
        nn.init.uniform_(self.weight, -1 / math.sqrt(k), 1 / math.sqrt(k))

    def gate(self, pooled: Tensor) -> Tensor:
        k = self.weight.shape[1]
        neighbors = F.pad(pooled, (k // 2, k // 2)).unfold(1, k, 1)
        return torch.sigmoid((neighbors * self.weight).sum(2))
