"""Does a difference hold on other images, too? Seeds and test images as two crossed sources of chance.

Every run is tested on the same images, so a difference varies with the seeds, with the images, and with both
together: ``difference[seed, image] = mean + seed + image + rest``. The variance of its mean over S seeds and
I images is the sum of three components,

    seeds / S + images / I + rest / (S I),

estimated from mean squares (two-way random effects without replication). docs/images.md gives the reasons
and the coverage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from ecanet.errors import capitalized
from ecanet.experiments.analysis.compare import Metric
from ecanet.experiments.analysis.predictions import Answers
from ecanet.experiments.analysis.statistics import Comparison, StudyStatistics
from ecanet.metrics import Array
from ecanet.statistics.design import Interval, finding_of

FEWEST = 3.5
"""Images on which two modules must differ, counted as :attr:`ImageVariance.differing`: from fewer, their
variance cannot be estimated."""

_MEANS_OVER_IMAGES = ("test_accuracy", "test_balanced_accuracy", "test_loss")


class ImageVariance(NamedTuple):
    """What images contribute to the variance of a mean difference."""

    images: float
    """Variance of the mean over the images that there are, due to which images they are; at least 0."""
    rest: float
    """The same due to seed and image together: images that one seed gets right and another does not."""
    df: int
    """Degrees of freedom of ``images``."""
    differing: float
    """Effective number of images that make the difference, (sum d^2)^2 / sum d^4: k for k images alike."""


@dataclass(frozen=True)
class OtherImages:
    """A module against the baseline, for other seeds on other images like the test images."""

    verdict: str
    """A sentence on what is shown, or on why there is no interval."""
    interval: Interval | None = None
    """At the confidence of the comparison's own interval, and never inside it."""
    shares: tuple[float, float, float] | None = None
    """Of the variance of the difference: seeds, images, and both together; their sum is 1."""
    unit: str = "image"
    """What is drawn independently: image, or group."""
    units: int = 0
    """How many there are."""
    units_needed: int | None = None
    """How many would show for other images what is shown for other seeds alone, about; None otherwise."""


def image_variance(values: Array) -> ImageVariance:
    """Return what images contribute to the variance of ``values.mean()``.

    Args:
        values: (S, I), at least 2 seeds and 2 images.
    """
    seeds, images = values.shape
    column, row = values.mean(0), values.mean(1, keepdims=True)
    deviation = column - column.mean()
    squares, fourth = float(deviation @ deviation), float((deviation**2) @ (deviation**2))
    residual = (values - row) - deviation
    within = float(np.einsum("si,si->", residual, residual)) / ((seeds - 1) * (images - 1))
    between = squares / (images - 1)
    differing = squares**2 / fourth if fourth else 0.0
    rest = within / (seeds * images)
    return ImageVariance(
        images=max(between / images - rest, 0.0),
        rest=rest,
        df=images - 1,
        differing=differing,
    )


def other_half_width(half: Any, error: Any, df: Any, found: ImageVariance) -> Any:
    """Return half the width of a difference's interval for other seeds and other images.

    Student's t with the degrees of freedom of Satterthwaite (Biometrics Bulletin 2, 1946), at the confidence
    of the interval for other seeds, and never narrower than that: two sources of chance leave no less open
    than one. All may be numbers, or arrays of studies.

    Args:
        half: half the width of the interval for other seeds on these images.
        error: standard error over seeds, which includes ``found.rest``.
        df: its degrees of freedom.
    """
    variance = error**2 + found.images
    combined_df = variance**2 / (error**4 / df + found.images**2 / found.df)
    return np.maximum(half, stdtrit(combined_df, stdtr(df, half / error)) * np.sqrt(variance))


def unit_values(
    differences: Array, labels: Array | None = None, groups: Array | None = None
) -> Array:
    """Return values of independent units whose mean varies as the mean of the differences does.

    A mean over images is their mean. A mean over classes weights the images of a class by the inverse of
    their number; classes are strata. Images of one group are one unit.

    Args:
        differences: (S, I).
        labels: (I,), for a mean over classes, each of which has two images or more.
        groups: (I,), numbers from 0.

    Returns:
        (S, I) or (S, groups), 0 in the mean.
    """
    images = differences.shape[1]
    if labels is None:
        values = differences - differences.mean(1, keepdims=True)
    else:
        classes, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        sums = np.stack([np.bincount(index, row) for row in differences])
        # By the square root, the variance of each class has n - 1 in its denominator.
        weights = images / len(classes) / np.sqrt(counts * (counts - 1.0))
        values = (differences - (sums / counts)[:, index]) * weights[index]
    if groups is None:
        return values
    total = np.stack([np.bincount(groups, row) for row in values])
    return total * (total.shape[1] / images)


def other_images(answers: Answers | None, statistics: StudyStatistics) -> dict[str, OtherImages]:
    """Return what is shown of each module for other images, of those that are compared with the baseline."""
    baseline, metric = statistics.baseline, statistics.metric
    if metric.reported_by:
        return {}
    return {
        module.attention: _compared(answers, module.attention, baseline, c, metric)
        for module in statistics.modules
        if (c := module.comparison) and c.mean is not None
    }


def _compared(
    answers: Answers | None, module: str, baseline: str, c: Comparison, metric: Metric
) -> OtherImages:
    if metric.key not in _MEANS_OVER_IMAGES:
        return OtherImages(f"No interval: {metric.name} is not a mean over images.")
    if answers is None:
        return OtherImages(
            "No interval: the predictions of the runs are missing or cannot be read."
        )
    if metric.key == "test_loss":
        base, own = (answers.losses.get(name, {}) for name in (baseline, module))
    else:
        base, own = (answers.right(name) for name in (baseline, module))
    seeds = sorted(base.keys() & own.keys())
    if len(seeds) < 2:
        return OtherImages("No interval: fewer than 2 seeds have predictions of both.")
    if c.interval is None:
        return OtherImages("No interval, as there is none for other seeds.")
    differences = np.stack([own[s] - base[s] for s in seeds])
    if not np.isfinite(differences).all():
        return OtherImages("No interval: some scores are not finite.")
    labels = answers.labels if metric.key == "test_balanced_accuracy" else None
    if labels is not None and (np.bincount(labels) == 1).any():
        return OtherImages("No interval: a class has one test image only.")
    groups = np.unique(answers.groups, return_inverse=True)[1] if answers.groups else None
    values = unit_values(differences, labels, groups)
    unit, units = "group" if answers.groups else "image", values.shape[1]
    variance = image_variance(values) if units > 1 else None
    if variance is None or variance.differing < FEWEST:
        differing = int(differences.any(0).sum())
        return OtherImages(
            "No interval: the two differ on too few test images "
            f"({differing:,} of {len(answers.labels):,}).",
            unit=unit,
            units=units,
        )
    return _judged(c, variance, metric, unit, units)


def _judged(
    c: Comparison, found: ImageVariance, metric: Metric, unit: str, units: int
) -> OtherImages:
    assert c.mean is not None
    assert c.interval is not None
    assert c.standard_error is not None
    assert c.df is not None
    half = (c.interval[1] - c.interval[0]) / 2
    wide = float(other_half_width(half, c.standard_error, c.df, found))
    interval = c.mean - wide, c.mean + wide
    parts = max(c.standard_error**2 - found.rest, 0.0), found.images, found.rest
    total = sum(parts)
    needed, noun = None, "images" if unit == "image" else "groups of images"
    finding = capitalized(c.finding)
    shown = finding_of(interval, c.margin, metric.higher_is_better)
    if not c.decided:
        verdict = "Undecided for other seeds, and so for other images."
    elif shown == c.finding:
        verdict = f"{finding} for other seeds and for other {noun} like these."
    elif shown != "undecided":
        # A difference that is smaller than what matters.
        verdict = (
            f"{finding} for other seeds on these test images, {shown} for other {noun} like these."
        )
    else:
        # What seeds leave of the distance is for the images, whose variance falls as 1 / units.
        distance = c.margin - abs(c.mean) if c.finding == "equivalent" else abs(c.mean)
        quantile = float(stdtrit(found.df, stdtr(c.df, half / c.standard_error)))
        needed = _rounded_up(units * quantile**2 * found.images / (distance**2 - half**2))
        verdict = (
            f"{finding} for other seeds on these test images; undecided for other {noun} like these: that "
            f"would take about {needed:,} {noun} in the test split, which has {units:,}."
        )
    return OtherImages(
        verdict=verdict,
        interval=interval,
        shares=(parts[0] / total, parts[1] / total, parts[2] / total),
        unit=unit,
        units=units,
        units_needed=needed,
    )


def _rounded_up(value: float) -> int:
    """Return the next number of two significant digits."""
    step = 10 ** max(len(str(int(value))) - 2, 0)
    return math.ceil(value / step) * step
