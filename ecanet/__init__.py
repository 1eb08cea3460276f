"""ecanet: does an attention module help my CNN, on my data, and what does it cost?

The names below are imported when first used, so that ``import ecanet`` and ``ecanet --help`` are
instant; ``import ecanet.models`` registers our models with timm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ecanet.attention import (
        ECA,
        create_attention,
        list_attention,
        load_plugin,
        register_attention,
    )
    from ecanet.config import RunSettings, StudySettings
    from ecanet.data import load_data
    from ecanet.errors import UserError
    from ecanet.experiments.compare import compare, report
    from ecanet.models import create_model, insert_attention, list_models
    from ecanet.models.weights.load import load_weights

_HOMES = {
    "ECA": "attention",
    "create_attention": "attention",
    "list_attention": "attention",
    "load_plugin": "attention",
    "register_attention": "attention",
    "RunSettings": "config",
    "StudySettings": "config",
    "load_data": "data",
    "UserError": "errors",
    "compare": "experiments.compare",
    "report": "experiments.compare",
    "create_model": "models",
    "insert_attention": "models",
    "list_models": "models",
    "load_weights": "models.weights.load",
}

__all__ = [
    "ECA",
    "RunSettings",
    "StudySettings",
    "UserError",
    "compare",
    "create_attention",
    "create_model",
    "insert_attention",
    "list_attention",
    "list_models",
    "load_data",
    "load_plugin",
    "load_weights",
    "register_attention",
    "report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ecanet' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ecanet.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
