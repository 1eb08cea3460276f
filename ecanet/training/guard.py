"""A step whose loss or gradients are not finite must leave no trace."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FiniteGuard:
    """Tells a bad step, and undoes what its forward pass did to the model's buffers.

    Batch norm has taken a step's values into its running statistics before anyone knows that they
    are not finite; skipping the optimizer alone would leave NaN there for good.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.buffers = [b for b in model.buffers() if b.numel()]
        self.kept = [torch.empty_like(b) for b in self.buffers]

    @torch.no_grad()
    def before_step(self) -> None:
        """Keep a copy of the buffers; they are small beside the activations."""
        if self.buffers:
            torch._foreach_copy_(self.kept, self.buffers)

    @torch.no_grad()
    def finite(self, loss: Tensor) -> Tensor:
        """Return a boolean: whether the loss and all gradients are finite. Stays on the device."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norms = torch._foreach_norm(gradients, float("inf"))
        return torch.isfinite(torch.stack([loss.detach().float(), *map(_float, norms)])).all()

    @torch.no_grad()
    def undo_step(self) -> None:
        """Give the buffers back the values they had before the step."""
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.kept)


def _float(value: Tensor) -> Tensor:
    return value.float()
