"""What tests of networks share: random batch norms, equal weights, ECA according to the paper."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def eca(x: Tensor, weight: Tensor) -> Tensor:
    """ECA according to the paper, independent of our implementation."""
    gate = F.conv1d(x.mean((2, 3)).unsqueeze(1), weight, padding=weight.shape[-1] // 2)
    return x * torch.sigmoid(gate).squeeze(1)[:, :, None, None]


def randomize_norms(model: nn.Module) -> None:
    """Randomize batch norms, so that an attention module at a wrong place changes the output."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts are the same to the bit."""
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
    )
