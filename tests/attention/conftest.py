"""The Triton kernels as a fixture."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def kernels() -> ModuleType:
    """Return the Triton kernels, for this machine's GPU or for Triton's interpreter."""
    pytest.importorskip("triton")
    return importlib.import_module("ecanet.attention.kernels")
