"""The implementations of the operators as fixtures."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.endings import Implementation


@pytest.fixture(scope="session")
def kernels() -> ModuleType:
    """Return the Triton kernels, for this machine's GPU or for Triton's interpreter."""
    pytest.importorskip("triton")
    gpu_kernels: Any = importlib.import_module("ecanet.attention.gpu_kernels")
    if not torch.cuda.is_available():
        # Few programs, each of which takes milliseconds there; and blocks that small images fill.
        gpu_kernels._PROGRAMS, gpu_kernels._ROWS, gpu_kernels._CHANNELS = 16, 4, 64
    return gpu_kernels


@pytest.fixture(scope="session", params=["cpu", "gpu"])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    """Return the operators of a CPU, in C++, or those of a GPU: without one, in Triton's interpreter."""
    if request.param == "gpu":
        triton_kernels = request.getfixturevalue("kernels")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return Implementation(
            triton_kernels, device, (torch.float32, torch.bfloat16, torch.float16)
        )
    try:
        cpu_kernels = importlib.import_module("ecanet.attention.cpu_kernels")
    except ModuleNotFoundError as error:
        pytest.skip(f"there are no kernels for CPUs: {error}")
    if not cpu_kernels.available():
        pytest.skip("the kernels for CPUs cannot be compiled here")
    return Implementation(cpu_kernels, "cpu", (torch.float32, torch.bfloat16))
