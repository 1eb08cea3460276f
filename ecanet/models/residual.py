"""How our residual blocks end: convolution, batch norm, attention module, addition, activation."""

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


class AttentionSlot:
    """A residual block of ours: it runs ``attention`` after its last norm, before the addition."""

    attention: nn.Module
    drop_path: Any
    fused: Fused = "auto"
    """Whether a pooled gate melts into the batch norm and the addition: False never, True wherever
    it can, auto where that is faster as well. The weights and, but for rounding, the results are
    the same."""

    def last_norm(self) -> nn.Module:
        """Return the norm whose output ``attention`` gets."""
        raise NotImplementedError(f"{type(self).__name__} defines no last_norm")

    def tail(
        self, z: Tensor, conv: Any, shortcut: Tensor | None, act: nn.Module | None = None
    ) -> Tensor:
        """Return ``act(drop_path(attention(last_norm(conv(z)))) + shortcut)``, (N, C, H, W).

        Args:
            z: the input of the branch's last convolution.
            conv: that convolution; it keeps the image's size.
            shortcut: what is added; without it, drop_path is left out too.
            act: the activation at the end, if there is one.
        """
        norm: Any = self.last_norm()
        drop: Any = None if shortcut is None else self.drop_path
        obstacle = self._obstacle(z, conv, norm)
        if obstacle is None:
            gate: Any = self.attention
            # Dropping a branch scales it, for each image: the gate takes that over as well.
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
            _tell_once(type(self).__name__, obstacle)
        x = self.attention(norm(conv(z)))
        if drop is not None:
            x = drop(x)
        if shortcut is not None:
            x = x + shortcut
        return x if act is None else act(x)

    def _obstacle(self, z: Tensor, conv: nn.Module, norm: nn.Module) -> str | None:
        """Why this branch cannot end in the fused passes, or should not; None if it shall."""
        gate = self.attention
        if self.fused is False:
            return "fused is False"
        if not isinstance(gate, PooledGate) or type(gate).forward is not PooledGate.forward:
            return f"{type(gate).__name__} is no pooled gate"
        if torch.jit.is_tracing() or _is_exporting():
            return "the model is being traced, and shall not depend on the example's size"
        if type(conv) is not nn.Conv2d or not _is_batch_norm(norm):
            return (
                f"it takes a Conv2d and a BatchNorm2d with weights, not {type(conv).__name__} and "
                f"{type(norm).__name__}"
            )
        if any(map(_has_hooks, (conv, norm, gate))):
            return (
                "hooks on the convolution, the batch norm or the attention module want to be called"
            )
        if norm.training:
            if z.numel() == z.shape[1]:
                return "one value a channel has no variance"
            if self.fused == "auto" and z.device.type == "cpu":
                return "training on a CPU is as fast without"
        elif norm.running_mean is None:
            return "the batch norm keeps no running statistics"
        elif torch.is_grad_enabled():
            return "gradients through a batch norm in evaluation"
        return None


def set_fused(model: nn.Module, fused: Fused) -> None:
    """Set :attr:`AttentionSlot.fused` of all blocks of ``model``.

    Raises:
        UserError: ``fused`` is none of auto, True and False.
    """
    if fused not in ("auto", True, False):
        raise UserError(f"fused is auto, True or False, not {fused!r}")
    for module in model.modules():
        if isinstance(module, AttentionSlot):
            module.fused = fused


def _is_batch_norm(norm: nn.Module) -> bool:
    """Whether ``norm`` is nn.BatchNorm2d with weights, or timm's form of it with nothing more to do."""
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


def _is_exporting() -> bool:
    # New in torch 2.7.
    return getattr(torch.compiler, "is_exporting", lambda: False)()


@functools.cache
def _tell_once(block: str, obstacle: str) -> None:
    _log.debug("%s is not fused: %s", block, obstacle)
