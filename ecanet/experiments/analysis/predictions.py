"""What the runs of a comparison answered for each test image: by class, and image by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.special import softmax

from ecanet.errors import UserError
from ecanet.metrics import Array, confusion_matrix, log_losses, reliability
from ecanet.predictions import Predictions, read_predictions


@dataclass
class Answers:
    """The answers of all runs that have kept them, for the same images in the same order."""

    images: list[str]
    labels: Array
    """(N,), indices of ``classes``."""
    classes: list[str]
    predicted: dict[str, dict[int, Array]] = field(default_factory=dict)
    """By module and seed, (N,)."""
    losses: dict[str, dict[int, Array]] = field(default_factory=dict)
    """By module and seed, float32 (N,): cross-entropy of each image, in nats."""
    groups: list[str] | None = None
    """Group of each image, where images belong to groups."""
    bins: dict[str, list[dict[str, Array]]] = field(default_factory=dict)
    """By module, of each run: :func:`ecanet.metrics.reliability`."""
    missing: list[str] = field(default_factory=list)
    """Finished runs whose answers are not there, or are for other images."""

    def are_for(self, found: Predictions) -> bool:
        """Whether the predictions are of the same images and classes."""
        return (
            found.images == self.images
            and found.classes == self.classes
            and np.array_equal(found.labels, self.labels)
        )

    def right(self, module: str) -> dict[int, Array]:
        """Return whether each of a module's answers is right, by seed: float64 (N,), 1 or 0."""
        runs = self.predicted.get(module, {})
        return {seed: (found == self.labels).astype(float) for seed, found in runs.items()}

    def add(self, module: str, seed: int, found: Predictions) -> None:
        self.predicted.setdefault(module, {})[seed] = found.predicted
        self.groups = self.groups or found.groups
        scores = found.scores.astype(np.float64)
        confidence = softmax(scores, axis=1).max(1)
        losses = log_losses(scores, found.labels, confidence).astype(np.float32)
        self.losses.setdefault(module, {})[seed] = losses
        self.bins.setdefault(module, []).append(reliability(confidence, found.right))


@dataclass(frozen=True)
class Mean:
    mean: float
    sd: float | None
    interval: tuple[float, float] | None
    runs: int


def mean_of(values: Sequence[float]) -> Mean:
    from scipy import stats

    mean, sd, interval = float(np.mean(values)), None, None
    if len(values) > 1:
        sd = float(np.std(values, ddof=1))
        half = float(stats.t.ppf(0.975, len(values) - 1)) * sd / len(values) ** 0.5
        interval = (mean - half, mean + half) if sd > 1e-12 else None
    return Mean(mean, sd, interval, len(values))


@dataclass(frozen=True)
class ClassRow:
    """A class: how often each module is right about its images."""

    name: str
    images: int
    accuracies: dict[str, Mean]
    differences: dict[str, Mean]
    """From the baseline, over the seeds that both have finished."""


def class_table(answers: Answers, baseline: str) -> list[ClassRow]:
    """Return the accuracy of every module on each class, in the order of the classes that have images."""
    counts = np.bincount(answers.labels, minlength=len(answers.classes))
    shares = {
        module: {
            seed: np.bincount(answers.labels, predicted == answers.labels, len(counts))
            / np.maximum(counts, 1)
            for seed, predicted in runs.items()
        }
        for module, runs in answers.predicted.items()
    }
    base = shares.get(baseline, {})
    rows = []
    for i in np.flatnonzero(counts):
        paired = {
            module: [runs[s][i] - base[s][i] for s in runs if s in base]
            for module, runs in shares.items()
            if module != baseline
        }
        rows.append(
            ClassRow(
                answers.classes[i],
                int(counts[i]),
                {module: mean_of([r[i] for r in runs.values()]) for module, runs in shares.items()},
                {module: mean_of(values) for module, values in paired.items() if values},
            )
        )
    return rows


def confusions(answers: Answers) -> dict[str, Array]:
    """Return each module's confusion matrix, the mean over its runs: float64 (C, C)."""
    count = len(answers.classes)
    found: dict[str, Array] = {}
    for module, runs in answers.predicted.items():
        total = np.zeros((count, count))
        for predicted in runs.values():
            total += confusion_matrix(answers.labels, predicted, count)
        found[module] = total / len(runs)
    return found


def reliabilities(answers: Answers) -> dict[str, dict[str, Array]]:
    """Return each module's reliability diagram over the answers of all its runs."""
    found: dict[str, dict[str, Array]] = {}
    for module, runs in answers.bins.items():
        images = np.sum([run["images"] for run in runs], axis=0)
        found[module] = {"images": images}
        for name in ("confidence", "accuracy"):
            total = np.sum([np.nan_to_num(run[name]) * run["images"] for run in runs], axis=0)
            with np.errstate(invalid="ignore"):
                found[module][name] = total / images
    return found


@dataclass(frozen=True)
class Disagreement:
    """An image that one module gets right in more seeds than the other."""

    index: int
    image: str
    label: str
    right: int
    """Seeds in which the module is right."""
    baseline_right: int
    seeds: int
    """That both have finished."""
    answers: dict[str, int]
    """The module's answers: in how many seeds each, the most frequent first."""
    baseline_answers: dict[str, int]


def disagreements(answers: Answers, module: str, baseline: str) -> list[Disagreement]:
    """Return the images on which they differ, the module's clearest gains first."""
    runs, base = answers.predicted.get(module, {}), answers.predicted.get(baseline, {})
    seeds = sorted(runs.keys() & base.keys())
    if not seeds:
        return []
    own, other = np.stack([runs[s] for s in seeds]), np.stack([base[s] for s in seeds])
    right, base_right = (own == answers.labels).sum(0), (other == answers.labels).sum(0)
    gain = right - base_right
    order = [i for i in np.lexsort((-right, -gain)) if gain[i]]

    def counted(column: Array) -> dict[str, int]:
        return {answers.classes[c]: n for c, n in Counter(column.tolist()).most_common()}

    return [
        Disagreement(
            int(i),
            answers.images[i],
            answers.classes[answers.labels[i]],
            int(right[i]),
            int(base_right[i]),
            len(seeds),
            counted(own[:, i]),
            counted(other[:, i]),
        )
        for i in order
    ]


def pairs(table: Array, classes: Sequence[str], most: int) -> list[tuple[str, str, float, float]]:
    """Return the most frequent confusions of a matrix.

    Returns:
        True class, predicted class, images, and their share of the true class's.
    """
    wrong = table - np.diag(table.diagonal())
    found = np.argsort(-wrong, axis=None, kind="stable")[:most]
    total = table.sum(1)
    return [
        (classes[i], classes[j], float(wrong[i, j]), float(wrong[i, j] / total[i]))
        for i, j in zip(*np.unravel_index(found, wrong.shape), strict=True)
        if wrong[i, j]
    ]


def answers_of(runs: Iterable[tuple[str, int, Path]]) -> Answers | None:
    """Gather what runs answered; one at a time, as the scores of all may not fit into memory.

    Args:
        runs: module, seed and file of predictions of each.

    Returns:
        None if no run has kept its predictions.
    """
    answers, missing = None, []
    for module, seed, file in runs:
        try:
            found = read_predictions(file) if file.is_file() else None
        except (OSError, UserError):
            found = None
        if found and answers is None:
            answers = Answers(found.images, found.labels, found.classes)
        if found and answers and answers.are_for(found):
            answers.add(module, seed, found)
        else:
            missing.append(f"{module} seed {seed}")
    if answers:
        answers.missing = missing
    return answers
