"""The report of a sweep of many runs: how long it takes from the study's storage to the page.

    python benchmarks/sweep_report.py --runs 10000

The study is a real one in SQLite, its runs are invented: parameters, epochs and records with the
shape and size of real ones, written into the storage at once.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sides import write_record

from ecanet.config import ClassificationSettings
from ecanet.environment import environment
from ecanet.experiments.plans.sweep import SweepPlan
from ecanet.experiments.plans.sweep_file import parse_sweep
from ecanet.experiments.run import write_report
from ecanet.experiments.study.location import locate
from ecanet.experiments.study.study import create_study, load_study
from ecanet.record import Record
from ecanet.training.device import resolve_device

SWEEP = {
    "method": "random",
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {
        "att": {"values": ["ECA", "CBAM", "SE", "Triplet"]},
        "optimizer": {"values": ["adam", "sgd"]},
        "batch_size": {"values": [64, 128, 256]},
        "lr": {"min": 1e-4, "max": 1.0, "distribution": "log_uniform_values"},
        "weight_decay": {"min": 1e-5, "max": 1e-2, "distribution": "log_uniform_values"},
        "label_smoothing": {"min": 0.0, "max": 0.2},
    },
}


def invent(folder: Path, runs: int, epochs: int) -> None:
    """Create a study in which every run has ended."""
    found, rng = parse_sweep(SWEEP), random.Random(0)
    here = environment(resolve_device("cpu"))
    settings = ClassificationSettings(data="cifar10", epochs=epochs)
    plan = SweepPlan(
        settings=settings, data_fingerprint="", skipped_images=[], plugin=[],
        metric="val_loss", direction="minimize", sweep=found.content, trials=runs,
    )  # fmt: skip
    create_study(locate(folder), plan, [], here)
    study = load_study(folder)
    study.queue.enqueue(plan.runs())
    rows: dict[type, list[dict[str, object]]] = {
        models.TrialParamModel: [], models.TrialValueModel: [],
        models.TrialIntermediateValueModel: [], models.TrialUserAttributeModel: [],
    }  # fmt: skip
    with study.queue.engine.begin() as connection:
        trials = models.TrialModel.__table__
        ids = connection.execute(sql.select(trials.c.trial_id).order_by(trials.c.number)).scalars()
        for trial_id in ids:
            for p in found.swept:
                d: Any = p.distribution
                if hasattr(d, "choices"):
                    stored = float(rng.randrange(len(d.choices)))
                else:
                    share = rng.random()
                    stored = d.low * (d.high / d.low) ** share if d.log else d.low + share * d.high
                rows[models.TrialParamModel].append(
                    {
                        "trial_id": trial_id, "param_name": p.name, "param_value": stored,
                        "distribution_json": distribution_to_json(d),
                    }
                )  # fmt: skip
            loss = 1 + abs(rng.gauss(0, 0.3))
            curve = [
                {
                    "epoch": e, "train_loss": loss, "train_accuracy": 1 / loss,
                    "val_loss": loss + 1 / (e + 1), "val_accuracy": 0.5, "lr": 0.1, "seconds": 60.0,
                }
                for e in range(epochs)
            ]  # fmt: skip
            final = {
                "val_accuracy": 1 / (1 + loss), "val_loss": loss, "epoch": epochs - 1,
                "train_seconds": 60.0,
            }  # fmt: skip
            record = Record(asdict(settings), here, curve, final)
            rows[models.TrialUserAttributeModel].append(
                {"trial_id": trial_id, "key": "record", "value_json": json.dumps(record.to_dict())}
            )
            rows[models.TrialValueModel].append(
                {"trial_id": trial_id, "objective": 0, "value": loss, "value_type": "FINITE"}
            )
            rows[models.TrialIntermediateValueModel] += [
                {
                    "trial_id": trial_id, "step": e["epoch"] + 1, "intermediate_value": e["val_loss"],
                    "intermediate_value_type": "FINITE",
                }
                for e in curve
            ]  # fmt: skip
        for model, values in rows.items():
            table: Any = model
            connection.execute(table.__table__.insert(), values)
        connection.execute(trials.update().values(state=TrialState.COMPLETE))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, help="folder for a JSON file of the result")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "sweep"
        invent(study, flags.runs, flags.epochs)
        begun, cpu = time.perf_counter(), time.process_time()
        page = write_report(load_study(study))
        result = {
            "runs": flags.runs,
            "epochs": flags.epochs,
            "seconds": round(time.perf_counter() - begun, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "page_megabytes": round(page.stat().st_size / 1e6, 1),
            "study_megabytes": round((study / "study.db").stat().st_size / 1e6, 1),
        }
    print(json.dumps(result, indent=2))
    write_record(flags.out, "sweep-report", result)


if __name__ == "__main__":
    main()
