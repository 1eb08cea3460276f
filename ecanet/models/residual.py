"""The end of our residual blocks: convolution, batch norm, attention module, addition, activation."""

from __future__ import annotations

import functools
import logging
from typing import Any, Literal

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from ecanet.attention import PooledGate
from ecanet.attention.fused import gated_norm, gated_norm_in_evaluation
from ecanet.errors import UserError

Fused = Literal["auto", True, False]

_log = logging.getLogger(__name__)


class ResidualEnd:
    """Base of our residual blocks, which run ``attention`` after their last norm, before the addition."""

    attention: nn.Module
    drop_path: Any
    fused: Fused = "auto"
    """Whether a pooled gate is fused into the batch norm and the addition: False never, True wherever
    possible, auto where it is also faster. The weights are the same, and the results up to rounding."""

    def last_norm(self) -> nn.Module:
        """Return the norm whose output is the input of ``attention``."""
        raise NotImplementedError(f"{type(self).__name__} defines no last_norm")

    def finish(
        self, z: Tensor, conv: Any, shortcut: Tensor | None, act: nn.Module | None = None
    ) -> Tensor:
        """Return ``act(drop_path(attention(last_norm(conv(z)))) + shortcut)``, (N, C, H, W).

        Args:
            z: input of the branch's last convolution.
            conv: that convolution; it keeps the image's size.
            shortcut: the summand; without it, drop_path is skipped too.
            act: the activation at the end, if any.
        """
        norm: Any = self.last_norm()
        drop: Any = None if shortcut is None else self.drop_path
        reason = self._why_not_fused(z, conv, norm)
        if reason is None:
            gate: Any = self.attention
            # Stochastic depth scales the branch per image, which the gate includes.
            factors = (
                gate.factors if drop is None else lambda *moments: drop(gate.factors(*moments))
            )
            relu = type(act) is nn.ReLU and not _has_hooks(act)
            if norm.training:
                x = gated_norm(conv(z), norm, factors, gate.moments, shortcut, relu)
            else:
                x = gated_norm_in_evaluation(conv, norm, factors, gate.moments, z, shortcut, relu)
            return x if relu or act is None else act(x)
        if not torch.compiler.is_compiling():
            _log_once(type(self).__name__, reason)
        x = self.attention(norm(conv(z)))
        if drop is not None:
            x = drop(x)
        if shortcut is not None:
            x = x + shortcut
        return x if act is None else act(x)

    def _why_not_fused(self, z: Tensor, conv: nn.Module, norm: nn.Module) -> str | None:
        """Return why this branch cannot or should not be fused; None if it is fused."""
        gate = self.attention
        if self.fused is False:
            return "fused is False"
        if not isinstance(gate, PooledGate) or type(gate).forward is not PooledGate.forward:
            return f"{type(gate).__name__} is not a pooled gate"
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            return "the traced model must not depend on the size of the example"
        if type(conv) is not nn.Conv2d or not _is_batch_norm(norm):
            return (
                f"fusing needs a Conv2d and a BatchNorm2d with weights, not {type(conv).__name__} and "
                f"{type(norm).__name__}"
            )
        if any(map(_has_hooks, (conv, norm, gate))):
            return "the convolution, the batch norm or the attention module has hooks"
        if norm.training:
            if z.numel() == z.shape[1]:
                return "one value per channel has no variance"
            if self.fused == "auto" and z.device.type == "cpu":
                return "training on a CPU is not faster when fused"
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
