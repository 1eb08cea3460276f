"""Metrics of classifiers, from what a model answered for each image.

Scores are logits, (N, C), one row per image and one column per class; labels are (N,), indices of classes.
Classes that no label names have no part in means over classes. A metric that cannot be computed is NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import rankdata

from ecanet.record import Row

Array = NDArray[Any]

BINS = 15


@dataclass(frozen=True)
class Metric:
    """How a metric is written, and which of two values is better."""

    title: str
    higher_is_better: bool = True
    is_share: bool = True
    """A share of 1, printed in percent."""
    plural: str = ""


METRICS = {
    "accuracy": Metric("accuracy", plural="accuracies"),
    "balanced_accuracy": Metric("balanced accuracy", plural="balanced accuracies"),
    "macro_f1": Metric("macro F1", plural="macro F1 scores"),
    "auroc": Metric("AUROC", plural="AUROCs"),
    "loss": Metric("log loss", higher_is_better=False, is_share=False, plural="log losses"),
    "calibration_error": Metric(
        "calibration error", higher_is_better=False, plural="calibration errors"
    ),
}
"""What a comparison of classifiers may be about: columns of a record, behind ``val_`` or ``test_``."""

# Names that other metrics have, of which the trainers of others report any.
_SHARES = re.compile(
    r"acc|top_?\d|f1|auroc|auc|iou|dice|recall|precision|(\b|_)m?ap", re.IGNORECASE
)
_LESSER = re.compile(r"loss|error|perplexity|(\b|_)(r?mse|mae|lpips|fid)(\b|_)", re.IGNORECASE)


def metric_named(column: str) -> Metric:
    """Return what a column of a record measures: ``val_loss``, ``test_auroc``, an AP, or a metric of others.

    Those are taken for shares, and for better if lower, by their names.
    """
    name = column.removeprefix("val_").removeprefix("test_")
    if known := METRICS.get(name):
        return known
    title = re.sub(r"^map(?=\d|$)", "mAP", name).replace("50_95", "50-95").replace("_", " ")
    return Metric(title, not _LESSER.search(name), bool(_SHARES.search(name)), f"{title} values")


def format_metric(column: str, value: float) -> str:
    """Return a value of this column as text: shares in percent, others with four decimals."""
    return f"{100 * value:.2f} %" if metric_named(column).is_share else f"{value:.4f}"


def worth(column: str, value: float) -> float:
    """Return a number that is the higher the better for a value of this column; NaN is the worst."""
    if math.isnan(value):
        return -math.inf
    return value if metric_named(column).higher_is_better else -value


def best_row(rows: Sequence[Row], column: str) -> Row:
    """Return the row with the best value in ``column``, the last of those that are equal."""
    return max(reversed(rows), key=lambda row: worth(column, row[column]))


def top5_tells(classes: int) -> bool:
    """Return whether top-5 accuracy can differ from 1: the right one of five classes is among any five."""
    return classes > 5


def classification_metrics(
    scores: Array, labels: Array, predicted: Array | None = None, *, auroc: bool = True
) -> Row:
    """Return all of :data:`METRICS`, and ``top5``.

    ``accuracy`` is top-1. ``balanced_accuracy`` is the mean of the classes' recalls, ``macro_f1`` that of
    their F1. ``auroc`` is the mean over classes of the area under the ROC curve of the class against all
    others. ``loss`` is the cross-entropy in nats. ``calibration_error`` is the expected calibration error of
    the highest probability in 15 bins of equal width (Guo et al., ICML 2017, Eq. 5).

    Args:
        predicted: (N,), the classes that were predicted, where scores are rounded; by default the highest.
        auroc: include it; it takes longer than all others together.
    """
    if predicted is None:
        predicted = scores.argmax(1)
    table = confusion_matrix(labels, predicted, scores.shape[1])
    of_class = per_class(table)
    there = table.sum(1) > 0
    scores = scores.astype(np.float64)
    probabilities = softmax(scores, axis=1)
    confidence = probabilities.max(1)
    own = scores[np.arange(len(labels)), labels]
    # As topk breaks ties: among equal scores the label counts as one of the first.
    top5 = (predicted == labels) | ((scores > own[:, None]).sum(1) < 5)
    bins = reliability(confidence, predicted == labels)
    found = {
        "accuracy": float((predicted == labels).mean()),
        "top5": float(top5.mean()) if np.isfinite(own).all() else float("nan"),
        "balanced_accuracy": float(of_class["recall"][there].mean()),
        "macro_f1": float(of_class["f1"][there].mean()),
        "loss": float(log_losses(scores, labels, confidence).mean()),
        "calibration_error": float(
            np.nansum(bins["images"] * np.abs(bins["accuracy"] - bins["confidence"])) / len(labels)
        ),
    }
    if auroc:
        areas = _areas(probabilities, labels)
        found["auroc"] = float(np.mean(areas)) if areas else float("nan")
    return found


def log_losses(scores: Array, labels: Array, confidence: Array) -> Array:
    """Return the cross-entropy of each image in nats, (N,), from float64 scores.

    Args:
        confidence: the highest probability of each image, (N,).
    """
    # Of the label's logit: its probability may be too small for a float64.
    return scores.max(1) - scores[np.arange(len(labels)), labels] - np.log(confidence)


def confusion_matrix(labels: Array, predicted: Array, classes: int) -> Array:
    """Return how many images of each class (rows) were taken for each class (columns): int64 (C, C)."""
    flat = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2)
    return flat.reshape(classes, classes)


def per_class(table: Array) -> dict[str, Array]:
    """Return ``images``, ``recall``, ``precision`` and ``f1`` of each class, (C,), of a confusion matrix.

    Recall is the accuracy on the images of the class: NaN where there are none, and so is its F1. Precision
    is NaN where the class was never predicted.
    """
    right, actual, predicted = table.diagonal(), table.sum(1), table.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(actual > 0, 2 * right / (actual + predicted), np.nan)
        return {
            "images": actual,
            "recall": right / actual,
            "precision": right / predicted,
            "f1": f1,
        }


def reliability(confidence: Array, right: Array) -> dict[str, Array]:
    """Return a reliability diagram's bins of the highest probability: 15 of equal width from 0 to 1.

    Args:
        confidence: the highest probability of each image, (N,).
        right: whether each image was predicted right, (N,).

    Returns:
        ``images`` in each bin, their mean ``confidence`` and ``accuracy``; (15,), NaN where it is empty.
    """
    finite = np.isfinite(confidence)
    confidence, right = confidence[finite], right[finite]
    # Bins are open below and closed above, as in the paper.
    number = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    images = np.bincount(number, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return {
            "images": images,
            "confidence": np.bincount(number, confidence, BINS) / images,
            "accuracy": np.bincount(number, right, BINS) / images,
        }


def _areas(probabilities: Array, labels: Array) -> list[float]:
    """Return the area under the ROC curve of each class that some images are of and some are not."""
    if not np.isfinite(probabilities).all():
        return []
    areas = []
    for label, positives in enumerate(np.bincount(labels, minlength=probabilities.shape[1])):
        if 0 < positives < len(labels):
            ranks = rankdata(probabilities[:, label])[labels == label]
            least = positives * (positives + 1) / 2
            areas.append(float((ranks.sum() - least) / (positives * (len(labels) - positives))))
    return areas
