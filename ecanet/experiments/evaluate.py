"""Trained classifiers measured on images, as a whole and per class."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ecanet.config import EvaluateSettings
from ecanet.data.listing import list_evaluated
from ecanet.experiments.report.classes import class_rows, class_table
from ecanet.experiments.study.winner import find_weights
from ecanet.frames import frame
from ecanet.metrics import METRICS, Array, confusion_matrix, top5_tells
from ecanet.notebook import shown_lines
from ecanet.predictions import Predictions
from ecanet.recipe_file import with_settings
from ecanet.record import Row
from ecanet.training.evaluate import divided_as_trained, evaluate_images

if TYPE_CHECKING:
    import pandas as pd

_FURTHER = ("balanced_accuracy", "macro_f1", "auroc", "calibration_error")


@dataclass(repr=False)
class Evaluation:
    """How a classifier does on a split. In a notebook and printed it shows its metrics and classes."""

    split: str
    """Which images they are."""
    metrics: Row
    """Accuracy, top-5 accuracy and others as fractions of 1, loss in nats, images, images per second."""
    predictions: Predictions
    """What the model answered for each image."""

    @property
    def accuracy(self) -> float:
        """Fraction of the images whose most probable class is right."""
        return self.metrics["accuracy"]

    @cached_property
    def confusion(self) -> Array:
        """Number of images (C, C), by their class and by the predicted one."""
        found = self.predictions
        return confusion_matrix(found.labels, found.predicted, len(found.classes))

    @property
    def class_rows(self) -> list[dict[str, Any]]:
        """Name, images, accuracy, precision and F1 of each class that there are images of."""
        return class_rows(self.confusion, self.predictions.classes)

    def to_frame(self) -> pd.DataFrame:
        """Return the classes as a pandas DataFrame, one per row; shares are fractions of 1.

        Raises:
            UserError: pandas is not installed.
        """
        return frame(self.class_rows)

    def summary(self) -> list[str]:
        """Return the metrics of all images as lines of text."""
        m = self.metrics
        further = ", ".join(f"{METRICS[name].title} {100 * m[name]:.2f} %" for name in _FURTHER)
        tells = top5_tells(len(self.predictions.classes))
        top5 = f"top-5 {100 * m['top5']:.2f} %, " if tells else ""
        return [
            f"top-1 {100 * m['accuracy']:.2f} %, {top5}loss {m['loss']:.4f}, "
            f"{m['images']:.0f} images of {self.split}, {m['images_per_second']:.0f} images/s",
            further.replace("nan %", "-"),
        ]

    def __repr__(self) -> str:
        table = class_table(self.class_rows, "to_frame() has all")
        return "\n".join([*self.summary(), table])


def evaluate(
    data: str | os.PathLike[str], settings: EvaluateSettings | None = None, **keywords: Any
) -> Evaluation:
    """Measure trained weights on images, prepared as in training.

    Example::

        found = ecanet.evaluate("photos", weights="study")     # the best run of a study, or a file
        found.accuracy, found.to_frame()

    Args:
        data: the images: a folder with a folder per class, a table, or whatever ``ecanet train`` takes.
        settings: which weights, which split, and how they are computed.
        keywords: settings by name: the flags of ``ecanet evaluate``, such as ``weights="run"``.

    Raises:
        UserError: anything the caller can put right.
    """
    (settings,) = with_settings(keywords, settings or EvaluateSettings())
    data = os.fspath(data)
    settings = replace(settings, weights=find_weights(settings.weights))
    with shown_lines():
        split, images = list_evaluated(data, divided_as_trained(settings, data))
        metrics, found = evaluate_images(images, settings)
    return Evaluation(split, metrics, found)
