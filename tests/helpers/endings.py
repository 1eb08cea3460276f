"""The end of a residual branch in plain float64, and the operators of one device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

Gate = Callable[[Tensor, Tensor], Tensor]
"""Of means and variances, (N, C) each."""

EPS = 1e-3


@dataclass
class Implementation:
    """The functions of ``operators.SCHEMAS`` for one device."""

    kernels: ModuleType
    device: str
    dtypes: tuple[torch.dtype, ...]


@functools.lru_cache(maxsize=64)
def _noise(seed: int, size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return normal values, the same for the same shape and seed."""
    return _noise(seed, torch.Size(shape).numel()).view(shape).clone()


def feature_map(*shape: int, far: float = 0.0) -> Tensor:
    """Return (N, C, H, W), with means up to ``far`` from zero and clearly different values in a channel."""
    n, channels, h, w = shape
    signs = torch.arange(n * h * w).view(n, 1, h, w) % 2 * 2.0 - 1
    return noise(*shape, seed=1) / 2 + signs + far * torch.linspace(-1, 1, channels)[:, None, None]


def conv_gate(pooled: Tensor, kernel: Tensor) -> Tensor:
    """Return ECA's gate."""
    k = kernel.numel()
    return torch.sigmoid(F.conv1d(pooled[:, None], kernel.view(1, 1, k), padding=k // 2))[:, 0]


@dataclass
class Ending:
    """The end of a branch in float64: all that the operators compute one by one."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    shortcut: Tensor | None = None
    gate: Gate | None = None

    def __post_init__(self) -> None:
        self.mean = self.x.mean((2, 3))
        self.variance = self.x.var((2, 3), correction=0)
        self.center = self.x.mean((0, 2, 3))
        self.spread = self.x.var((0, 2, 3), correction=0)
        self.normed = self.normalized(self.center, self.spread)
        self.pooled = self.normed.mean((2, 3))

    def normalized(self, center: Tensor, spread: Tensor) -> Tensor:
        scale = self.weight * torch.rsqrt(spread + EPS)
        return (self.x - center[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]

    def before_relu(self) -> Tensor:
        y = self.normed
        if self.gate is not None:
            y = y * self.gate(self.pooled, y.var((2, 3), correction=0))[:, :, None, None]
        return y if self.shortcut is None else y + self.shortcut
