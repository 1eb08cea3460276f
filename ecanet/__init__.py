"""ecanet: does an attention module help my CNN, on my data, and what does it cost?

The names below are imported when first used, so that ``import ecanet`` and ``ecanet --help`` are
instant; ``import ecanet.models`` registers our models with timm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ecanet.attention import (  # noqa: F401
        ECA,
        create_attention,
        list_attention,
        load_plugin,
        register_attention,
    )
    from ecanet.config import (  # noqa: F401
        ClassificationSettings,
        DetectionSettings,
        StudySettings,
        TrainerSettings,
    )
    from ecanet.data import load_data  # noqa: F401
    from ecanet.errors import UserError  # noqa: F401
    from ecanet.experiments.cells import compare_cells, load_result, report  # noqa: F401
    from ecanet.experiments.compare import compare  # noqa: F401
    from ecanet.experiments.evaluate import evaluate  # noqa: F401
    from ecanet.experiments.predict import predict  # noqa: F401
    from ecanet.experiments.sweep import sweep  # noqa: F401
    from ecanet.models import create_model, insert_attention, list_models  # noqa: F401
    from ecanet.models.weights.load import load_weights  # noqa: F401
    from ecanet.recipe_file import recipe  # noqa: F401
    from ecanet.training.train import train  # noqa: F401

_NAMES = {
    "attention": ("ECA", "create_attention", "list_attention", "load_plugin", "register_attention"),
    "config": ("ClassificationSettings", "DetectionSettings", "StudySettings", "TrainerSettings"),
    "data": ("load_data",),
    "errors": ("UserError",),
    "experiments.cells": ("compare_cells", "load_result", "report"),
    "experiments.compare": ("compare",),
    "experiments.evaluate": ("evaluate",),
    "experiments.predict": ("predict",),
    "experiments.sweep": ("sweep",),
    "models": ("create_model", "insert_attention", "list_models"),
    "models.weights.load": ("load_weights",),
    "recipe_file": ("recipe",),
    "training.train": ("train",),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}
_RENAMED = {"RunSettings": "ClassificationSettings"}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        raise AttributeError(f"ecanet.{name} is now ecanet.{_RENAMED[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'ecanet' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ecanet.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
