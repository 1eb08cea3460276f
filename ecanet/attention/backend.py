"""Decides which tensors the Triton kernels process."""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor


def usable_kernels(x: Tensor) -> ModuleType | None:
    """Return :mod:`ecanet.attention.kernels` if it can process ``x``, else None.

    Not in compiled code: the compiler generates kernels with the same passes, and fuses the surrounding
    operations into them.
    """
    if not x.is_cuda or x.dtype == torch.float64 or torch.compiler.is_compiling():
        return None
    return _load_kernels()


@functools.cache
def _load_kernels() -> ModuleType | None:
    """Import the kernels; return None if torch has no Triton."""
    try:
        from . import kernels
    except ImportError:
        return None
    return kernels


def in_memory_format(x: Tensor) -> Tensor:
    """Return ``x`` dense, contiguous or channels last, as the kernels require."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()
