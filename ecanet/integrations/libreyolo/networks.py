"""The networks of LibreYOLO that a study trains: built anew, with attention modules."""

from __future__ import annotations

import importlib
from typing import Any

from libreyolo.models.base.model import BaseModel
from libreyolo.training.trainer import BaseTrainer

from ecanet.config import LibreYoloSettings
from ecanet.errors import UserError, did_you_mean
from ecanet.integrations.ultralytics.data import YoloData
from ecanet.models.insert import insert_attention

# Families that train from fresh weights without a download, as seen in tests.
FAMILIES = ("yolo9", "yolox", "rtmdet", "ppyoloe", "picodet", "rtdetr", "dfine")

PREFIX = "libreyolo/"


class Origin:
    """What a network is built from: a family and a size.

    Raises:
        UserError: there is no such network, or it cannot be compared.
    """

    family: str
    size: str
    wrapper: type[Any]
    """Class of LibreYOLO that holds the network."""
    trainer: type[Any]
    """Class of LibreYOLO that trains it."""

    def __init__(self, model: str) -> None:
        name = model.removeprefix(PREFIX)
        self.family, _, self.size = name.rpartition("-")
        if self.family not in FAMILIES or self.size not in _wrapper(self.family).INPUT_SIZES:
            known = [f"{one}-{size}" for one in FAMILIES for size in _wrapper(one).INPUT_SIZES]
            hint = did_you_mean(name, known) or f" Known are {', '.join(known)}."
            raise UserError(f"--model {model} is not a model that trains from fresh weights.{hint}")
        self.wrapper = _wrapper(self.family)
        self.trainer = _own_class(f"libreyolo.models.{self.family}.trainer", BaseTrainer)

    def build(self, settings: LibreYoloSettings, data: YoloData) -> Any:
        """Return LibreYOLO's object with the network, with its attention modules.

        The same seed gives all other weights the same values, whichever module there is.
        """
        wrapper = self.plain(len(data.names), settings.device, settings.seed)
        wrapper.names = dict(data.names)
        if hasattr(wrapper.model, "enable_aux"):  # YOLOv9's second head, for training alone
            wrapper.model.enable_aux(wrapper.TRAIN_CONFIG().aux_weight)
        if settings.attention not in (None, "none"):
            insert_attention(
                wrapper.model, settings.attention, settings.places, identity=bool(settings.identity)
            )
        return wrapper

    def plain(self, classes: int, device: str = "cpu", seed: int = 0) -> Any:
        """Return LibreYOLO's object with a fresh network."""
        return self.wrapper._from_scratch(
            size=self.size, nb_classes=classes, device=device, seed=seed
        )


def _wrapper(family: str) -> type[Any]:
    return _own_class(f"libreyolo.models.{family}.model", BaseModel)


def _own_class(module: str, base: type) -> type[Any]:
    """Return the class derived from ``base`` that a module defines."""
    found = vars(importlib.import_module(module)).values()
    return next(
        one for one in found
        if isinstance(one, type) and issubclass(one, base) and one.__module__ == module
    )  # fmt: skip
