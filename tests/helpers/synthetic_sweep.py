"""Sweeps that were never run: summaries with the shape of real ones, from a seed."""

from __future__ import annotations

import math

import numpy as np

from ecanet.experiments.analysis.compare import ACCURACY, BOX_AP, Metric
from ecanet.experiments.analysis.sweep import Confirmed, SweepSummary, Trial
from ecanet.experiments.plans.sweep_file import parse_sweep
from helpers.synthetic import ENVIRONMENT, SETTINGS, make_record

FILE = {
    "method": "random",
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {
        "att": {"values": ["ECA", "CBAM", "SE", "Triplet"]},
        "optimizer": {"values": ["adam", "sgd"]},
        "batch_size": {"values": [64, 128, 256]},
        "lr": {"min": 1e-4, "max": 1.0, "distribution": "log_uniform_values"},
        "weight_decay": {"distribution": "q_normal", "mu": 1e-3, "sigma": 1e-4, "q": 1e-5},
    },
}


def make_sweep(
    trials: int,
    *,
    failed: int = 0,
    early: int = 0,
    waiting: int = 0,
    confirmed: int = 0,
    metric: Metric = ACCURACY,
) -> SweepSummary:
    """Return a sweep of so many trials; the metric follows the learning rate, most of all, and luck."""
    file = parse_sweep(FILE)
    optimized = "val_loss" if metric is ACCURACY else metric.curve_key
    rng = np.random.default_rng(0)
    found = []
    for number in range(trials):
        params, values = {}, {}
        for p in file.swept:
            if hasattr(p.distribution, "choices"):
                params[p.name] = p.distribution.choices[rng.integers(len(p.distribution.choices))]
            else:
                low, high = p.distribution.low, p.distribution.high
                share = rng.random()
                params[p.name] = (
                    math.exp(math.log(low) + share * math.log(high / low))
                    if p.distribution.log
                    else low + share * (high - low)
                )
            values[p.name] = p.value(params[p.name])
        far = abs(math.log10(values["lr"]) + 1.5)
        loss = 0.8 + 0.3 * far + 0.1 * (values["att"] == "cbam") + 0.05 * float(rng.normal())
        if far > 1.45:
            loss = 1e4 * rng.random()
        trial = Trial(f"trial-{number:04d}", number, "finished", params, values)
        trial.final = {"val_loss": loss, "val_accuracy": 1 / (1 + loss), "train_seconds": 100.0}
        if metric is BOX_AP:
            trial.final = {"box_AP": 1 / (1 + loss), "train_seconds": 100.0}
        trial.metric, trial.epochs = trial.final[optimized], 2
        trial.curve = [trial.metric + 0.5, trial.metric]
        found.append(trial)
    for trial in found[:failed]:
        trial.state, trial.error = "failed", "RuntimeError: <b>out of luck</b> " + "x" * 80
        trial.metric, trial.final = math.nan, {}
    for trial in found[failed : failed + early]:
        trial.state, trial.curve = "ended early", trial.curve[:1]
    for trial in found[trials - waiting :]:
        trial.state, trial.params, trial.values = "waiting", {}, {}
        trial.metric = math.nan
    summary = SweepSummary(
        title="resnet20 on cifar10",
        method="random",
        metric=optimized,
        maximize=metric is BOX_AP,
        judged_by=metric,
        parameters={p.name: p.setting for p in file.swept},
        distributions={p.name: p.distribution for p in file.swept if p.distribution},
        settings=dict(SETTINGS),
        sweep=file.content,
        environment=dict(ENVIRONMENT),
        attention="none",
        seed=0,
        trials=found,
    )
    for trial in summary.ranked()[:confirmed]:
        records = {}
        for seed in (1, 2, 3):
            score = 0.6 + 0.01 * float(rng.normal())
            records[seed] = make_record(trial.values["att"], seed, score, metric=metric)
            records[seed].final[optimized] = trial.metric + 0.05 + 0.02 * float(rng.normal())
        summary.confirmed.append(Confirmed(trial.name, trial.values, records, planned=3))
    ranked = summary.ranked()
    summary.recipes = {t.name: {"data": "cifar10", "attention": [t.values["att"]]} for t in ranked}
    return summary
