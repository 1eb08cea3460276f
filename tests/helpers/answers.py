"""Studies whose runs have answered for single images: made up, from a seed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from ecanet.data.thumbnails import thumbnail
from ecanet.experiments.analysis.compare import StudySummary
from ecanet.experiments.analysis.predictions import Answers
from ecanet.predictions import Predictions
from helpers.synthetic import make_accuracies, make_summary

MODULES = ["none", "se", "eca"]
SOURCE = thumbnail(torch.zeros(3, 40, 60, dtype=torch.uint8))


def make_study(
    classes: list[str], images: int = 6, seeds: int = 3, modules: list[str] = MODULES
) -> StudySummary:
    """Return a study with answers: class i has ``images`` + i images; each run errs at other ones."""
    summary = make_summary(make_accuracies(dict.fromkeys(modules, 0.0), seeds))
    counts = images + np.arange(len(classes))
    labels = np.repeat(np.arange(len(classes)), counts).astype(np.int32)
    names = [f"test/{classes[label]}/{i}.jpg" for i, label in enumerate(labels)]
    summary.answers = Answers(names, labels, classes)
    for place, module in enumerate(modules):
        for seed in range(seeds):
            random = np.random.default_rng([place, seed])
            scores = random.normal(size=(len(labels), len(classes)))
            scores[np.arange(len(labels)), labels] += 1.5
            predicted = scores.argmax(1).astype(np.int32)
            found = Predictions(names, labels, predicted, scores.astype(np.float16), classes)
            summary.answers.add(module, seed, found)
    return summary


def thumbnails(names: Iterable[str]) -> dict[str, str]:
    return dict.fromkeys(names, SOURCE)
