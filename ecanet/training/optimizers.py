"""From settings to an optimizer, by way of timm."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from ecanet.config import Optimizer

_NAMES = {("sgd", True): "sgd", ("sgd", False): "momentum"}


def build_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer of the model's parameters; batch norms and biases are not decayed."""
    # Without momentum there is nothing for Nesterov's to look ahead along.
    nesterov = settings.nesterov and settings.momentum > 0
    name = _NAMES.get((settings.name, nesterov), settings.name)
    extra: dict[str, Any] = {"momentum": settings.momentum} if settings.name == "sgd" else {}
    return create_optimizer_v2(
        model, opt=name, lr=settings.lr, weight_decay=settings.weight_decay, **extra
    )
