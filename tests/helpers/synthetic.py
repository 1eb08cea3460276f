"""Studies that were never run: summaries with the shape of real ones, from a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ecanet.experiments.analysis.compare import ACCURACY, BOX_AP, PRECISIONS, Metric, StudySummary
from ecanet.record import Cost, Record, Row, Speed

ENVIRONMENT = {
    "versions": {"python": "3.11.7", "ecanet": "0.1.0", "torch": "2.14.1"},
    "commit": "0123abcd",
    "device": "Example CPU, 2 cores",
    "platform": "Linux",
    "host": "node-1",
}
SETTINGS = {
    "data": "digits",
    "model": "resnet20",
    "epochs": 10,
    "batch_size": 128,
    "image_size": None,
    "select": "last",
    "optimizer": {"name": "sgd", "lr": 0.1, "nesterov": True},
    "loggers": [],
}


def make_record(
    attention: str, seed: int, score: float, epochs: int = 10, metric: Metric = ACCURACY
) -> Record:
    """Return a run that ends at ``score``, of a classifier on both splits."""
    noise = np.random.default_rng([seed, *attention.encode()])

    def measured(split: str, score: float, loss: float) -> Row:
        if metric is BOX_AP:
            return {f"box_{name}": score for name in PRECISIONS}
        return {f"{split}_accuracy": min(score, 1.0), f"{split}_loss": loss}

    curve = []
    for epoch in range(epochs):
        done = 1 - math.exp(-4 * (epoch + 1) / epochs)
        reached = score * done + 0.01 * noise.normal()
        loss = 2.3 * math.exp(-4 * done) * float(noise.uniform(0.9, 1.1))
        row = {
            "epoch": epoch,
            "train_loss": loss,
            "lr": 0.1 * (1 - epoch / (epochs - 1 or 1)),
            "seconds": 3.0,
        }
        curve.append(row | measured("val", reached, 1.2 * loss))
    final = measured("test", score, 0.4) | measured("val", score, 0.4)
    final |= {"epoch": epochs - 1, "train_seconds": 3.0 * epochs}
    settings = SETTINGS | {"attention": attention, "seed": seed}
    return Record(settings, dict(ENVIRONMENT), curve, final)


def make_cost(attention: str, index: int) -> Cost:
    """Return the cost of the ``index``-th module: each slower than the one before."""
    train, inference = 2000.0 / (1 + 0.07 * index), 6000.0 / (1 + 0.05 * index)
    return Cost(
        attention=attention,
        parameters=272_474 + 30 * index,
        attention_parameters=30 * index,
        macs=41_214_208 + 1000 * index,
        train=Speed(train, 0.98 * train, 1.01 * train, 5),
        inference=Speed(inference, 0.97 * inference, 1.02 * inference, 5),
        train_peak_bytes=300 * 2**20 + index * 2**20,
        batch_size=128,
        device="Example CPU, 2 cores",
        precision="bf16",
    )


def make_accuracies(
    effects: Mapping[str, float], seeds: int, spread: float = 0.003, generator_seed: int = 0
) -> dict[str, list[float]]:
    """Return accuracies that share a part by seed: paired, as those of a real study."""
    generator = np.random.default_rng(generator_seed)
    shared = generator.normal(scale=spread, size=seeds)
    return {
        name: [float(a) for a in 0.92 + effect + shared + generator.normal(0, spread / 2, seeds)]
        for name, effect in effects.items()
    }


def make_summary(
    accuracies: Mapping[str, Sequence[float]],
    *,
    seeds: int | None = None,
    epochs: int = 10,
    costs: bool = True,
    metric: Metric = ACCURACY,
) -> StudySummary:
    """Return the study in which seed i of a module reached the i-th of its accuracies."""
    names = list(accuracies)
    planned = seeds or max((len(values) for values in accuracies.values()), default=0)
    return StudySummary(
        title="resnet20 on digits",
        attention=names,
        seeds=list(range(planned)),
        settings=dict(SETTINGS),
        environment=dict(ENVIRONMENT),
        records=[
            make_record(name, seed, value, epochs, metric)
            for name, values in accuracies.items()
            for seed, value in enumerate(values)
        ],
        costs=[make_cost(name, i) for i, name in enumerate(names)] if costs else [],
        metric=metric,
    )
