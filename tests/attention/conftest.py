"""Keeps the tests' own modules out of the registry."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from ecanet.attention import registry


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a test register what it likes: the registry is a copy, put back afterwards."""
    modules = set(sys.modules)
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("ecanet_plugin_"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def kernels() -> ModuleType:
    """Return the Triton kernels, for this machine's GPU or for Triton's interpreter."""
    pytest.importorskip("triton")
    return importlib.import_module("ecanet.attention.kernels")
