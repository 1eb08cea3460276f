"""The end of our residual blocks: convolution, batch norm, attention module, addition, activation."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any, Literal

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from ecanet.attention import PooledGate
from ecanet.attention.checks import is_symbolic
from ecanet.attention.fused import gated_norm, gated_norm_in_evaluation
from ecanet.attention.none import NoAttention
from ecanet.attention.operators import usable_kernels
from ecanet.errors import UserError

Fused = Literal["auto", True, False]

_log = logging.getLogger(__name__)


class ResidualEnd:
    """Base of our residual blocks, which run ``attention`` after their last norm, before the addition.

    A block computes the end of its branch as :meth:`fused_end` if that returns a tensor, and else layer by
    layer, ending with :meth:`add_shortcut`. TorchScript and torch.fx see the layers alone.
    """

    if TYPE_CHECKING:  # TorchScript reads annotations, and knows no modules
        attention: nn.Module
        drop_path: Any
        fused: Fused

    fused = "auto"
    """Whether a pooled gate is fused into the batch norm and the addition: False never, True wherever
    possible, auto where it is also faster. The weights are the same, and the results up to rounding."""

    def last_norm(self) -> nn.Module:
        """Return the norm whose output is the input of ``attention``."""
        raise NotImplementedError(f"{type(self).__name__} defines no last_norm")

    def fused_end(
        self, z: Tensor, conv: Any, shortcut: Tensor | None, act: nn.Module | None = None
    ) -> Tensor | None:
        """Return ``act(drop_path(attention(last_norm(conv(z)))) + shortcut)``, (N, C, H, W), in few passes.

        Return None if that is not possible or not faster, and without having computed anything.

        Args:
            z: input of the branch's last convolution.
            conv: that convolution; it keeps the image's size.
            shortcut: the summand; without it, drop_path is skipped too.
            act: the activation at the end, if any.
        """
        norm: Any = self.last_norm()
        reason = self._why_not_fused(z, conv, norm)
        if reason is not None:
            if not torch.compiler.is_compiling():
                _log_once(type(self).__name__, reason)
            return None
        gate = self.attention if isinstance(self.attention, PooledGate) else None
        relu = type(act) is nn.ReLU and not _has_hooks(act)
        if norm.training:
            drop = self.drop_path if shortcut is not None and _drops(self.drop_path) else None
            x = gated_norm(conv(z), norm, gate, shortcut, relu, drop)
        else:
            x = gated_norm_in_evaluation(conv, norm, gate, z, shortcut, relu)
        return x if relu or act is None else act(x)

    def add_shortcut(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """Return ``drop_path(x) + shortcut``."""
        if self.drop_path is not None:
            x = self.drop_path(x)
        return x + shortcut

    def _why_not_fused(self, z: Tensor, conv: nn.Module, norm: nn.Module) -> str | None:
        """Return why this branch cannot or should not be fused; None if it is fused."""
        gate = self.attention
        if self.fused is False:
            return "fused is False"
        if isinstance(gate, PooledGate):
            if type(gate).forward is not PooledGate.forward:
                return f"{type(gate).__name__} is not a pooled gate"
        elif type(gate) not in (nn.Identity, NoAttention):
            return f"{type(gate).__name__} is not a pooled gate"
        elif torch.compiler.is_compiling():
            return "the compiler fuses the end of a plain network by itself"
        if is_symbolic(z) or torch.jit.is_tracing() or _is_exporting():
            return "the traced model must not depend on the size of the example"
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            return "transforms of torch.func have no rules for it"
        if type(conv) is not nn.Conv2d or not _is_batch_norm(norm):
            return (
                f"fusing needs a Conv2d and a BatchNorm2d with weights, not {type(conv).__name__} and "
                f"{type(norm).__name__}"
            )
        if norm.num_features != conv.out_channels:
            return "the batch norm has other channels than the convolution"
        if any(map(_has_hooks, (conv, norm, gate))):
            return "the convolution, the batch norm or the attention module has hooks"
        if norm.training:
            if z.numel() == z.shape[1]:
                return "one value per channel has no variance"
            if self.fused == "auto" and not _is_faster(z):
                return "without kernels, training is not faster when fused"
        elif norm.running_mean is None:
            return "the batch norm has no running statistics"
        elif torch.is_grad_enabled():
            return "gradients are needed through a batch norm in evaluation mode"
        return None


def set_fused(model: nn.Module, fused: Fused) -> None:
    """Set :attr:`ResidualEnd.fused` of all blocks of ``model``.

    Raises:
        UserError: ``fused`` is not auto, True or False.
    """
    if fused not in ("auto", True, False):
        raise UserError(f"fused must be auto, True or False, not {fused!r}")
    for module in model.modules():
        if isinstance(module, ResidualEnd):
            module.fused = fused


def _is_faster(z: Tensor) -> bool:
    """Whether the fused passes are faster in training: with kernels of ours, or of the compiler for a GPU."""
    if torch.compiler.is_compiling():
        return z.is_cuda
    return usable_kernels(z) is not None


def _is_exporting() -> bool:
    # torch.compiler.is_exporting() is constant-folded to True while compiling up to torch 2.13.
    return bool(getattr(torch.compiler, "_is_exporting_flag", False))


def _drops(drop_path: nn.Module | None) -> bool:
    """Whether ``drop_path`` does more than return its input."""
    return type(drop_path) not in (type(None), nn.Identity)


def _is_batch_norm(norm: nn.Module) -> bool:
    """Whether ``norm`` is nn.BatchNorm2d with weights, or timm's BatchNormAct2d without act and drop."""
    if type(norm) is BatchNormAct2d:
        return isinstance(norm.act, nn.Identity) and isinstance(norm.drop, nn.Identity)
    return type(norm) is nn.BatchNorm2d and norm.weight is not None


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


@functools.cache
def _log_once(block: str, reason: str) -> None:
    _log.debug("%s is not fused: %s", block, reason)
