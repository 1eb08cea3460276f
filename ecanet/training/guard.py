"""A step whose loss or gradients are not finite must leave no trace, and no step may wait for the device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn


class FiniteGuard:
    """Finds out on the device whether a step is finite, and undoes one that is not.

    Batch norm has taken a step's values into its running statistics before anyone knows that they are
    not finite; skipping the optimizer alone would leave NaN there for good. The host never reads the
    flag: what the step has changed is replaced by its copy, on the device, if the flag is false.

    Args:
        model: as trained.
        optimizer: of its parameters.
        ema: the running average of the model's weights, if there is one.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, ema: nn.Module | None = None
    ) -> None:
        self.optimizer = optimizer
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.averaged = [*ema.parameters(), *ema.buffers()] if ema else []
        self.buffers = _by_dtype([*model.buffers()])
        self.kept: dict[torch.dtype, Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the optimizer's state: it has been replaced, by that of a checkpoint."""
        self.changed: dict[torch.dtype, list[Tensor]] = {}
        # Parameters that have been updated, so that their state is there.
        self.updated: set[Tensor] = set()

    @torch.no_grad()
    def before_step(self) -> None:
        """Keep a copy of the buffers, before the forward pass; they are small beside the activations."""
        self.kept = _joined(self.buffers)

    @torch.no_grad()
    def finite(self, loss: Tensor) -> Tensor:
        """Return a boolean on the device: whether the loss and all gradients are finite."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norms = torch._foreach_norm(gradients, float("inf"))
        values = [loss.detach().float(), *(norm.float() for norm in norms)]
        return torch.isfinite(torch.stack(values)).all()

    @torch.no_grad()
    def update_if(self, finite: Tensor, update: Callable[[], None]) -> None:
        """Call ``update``, which steps the optimizer and the average; without a trace unless ``finite``.

        The flag is read on the host by the first step, and any other that updates a parameter for the first
        time, which makes its state; and with optimizers that count steps on the host.
        """
        updated: set[Tensor] = {p for p in self.parameters if p.grad is not None}
        if not updated <= self.updated:
            if finite:
                update()
                self._find_changed(finite.device, updated)
            else:
                _assign(self.buffers, self.kept)
            return
        # After the backward pass, when the activations have made room.
        before = _joined(self.changed)
        update()
        for groups, old in ((self.changed, before), (self.buffers, self.kept)):
            now = _joined(groups)
            _assign(groups, {dtype: torch.where(finite, now[dtype], old[dtype]) for dtype in now})

    def _find_changed(self, device: torch.device, updated: set[Tensor]) -> None:
        """Find what an update of these parameters changes, if all of it is on the device."""
        state = [v for p in self.parameters for v in self.optimizer.state.get(p, {}).values()]
        counted = any("step" in group for group in self.optimizer.param_groups)
        tensors = [v for v in state if isinstance(v, Tensor)]
        if counted or any(v.device != device for v in tensors):
            return
        self.changed = _by_dtype([*self.parameters, *tensors, *self.averaged])
        self.updated |= updated


def _by_dtype(tensors: list[Tensor]) -> dict[torch.dtype, list[Tensor]]:
    """Return flat views of tensors by type, those of dense ones in the order of their memory."""
    groups: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if tensor.numel():
            # Of an expanded tensor, the part that has memory of its own.
            own = [slice(None) if step else slice(1) for step in tensor.stride()]
            groups[tensor.dtype] += _flat(tensor.detach()[tuple(own)])
    return groups


def _flat(tensor: Tensor) -> list[Tensor]:
    """Return 1-D views that have all values of a tensor: one of a dense tensor, or one per row."""
    if torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return [tensor.as_strided((tensor.numel(),), (1,))]
    return [tensor] if tensor.ndim == 1 else [view for row in tensor for view in _flat(row)]


def _joined(groups: dict[torch.dtype, list[Tensor]]) -> dict[torch.dtype, Tensor]:
    """Return all values in one tensor per type: few kernels for many tensors."""
    return {dtype: torch.cat(group) for dtype, group in groups.items()}


def _assign(groups: dict[torch.dtype, list[Tensor]], values: dict[torch.dtype, Tensor]) -> None:
    """Write values, as :func:`_joined` returns them, into the tensors of ``groups``."""
    for dtype, group in groups.items():
        torch._foreach_copy_(group, values[dtype].split([tensor.numel() for tensor in group]))
