"""Which tensors go through the Triton kernels."""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor


def usable_kernels(x: Tensor) -> ModuleType | None:
    """Return :mod:`ecanet.attention.kernels` if ``x`` is for them, else None.

    Compiled code does without: there the compiler writes kernels that make the same passes, and
    join what stands before and behind them.
    """
    if not x.is_cuda or x.dtype == torch.float64 or torch.compiler.is_compiling():
        return None
    return _load_kernels()


@functools.cache
def _load_kernels() -> ModuleType | None:
    """Import the kernels; None where torch came without Triton."""
    try:
        from . import kernels
    except ImportError:
        return None
    return kernels


def in_memory_format(x: Tensor) -> Tensor:
    """Return ``x`` as the kernels take it: dense, contiguous or channels last."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()
