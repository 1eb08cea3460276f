"""The weights that a study starts from, its best runs, and which of their weights stay when it has ended."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pooch
from optuna.trial import TrialState

from ecanet.errors import counted, first_of
from ecanet.experiments.study.study import Study
from ecanet.models.weights.files import weight_file
from ecanet.training.run_folder import kept_weights, remove_weights

log = logging.getLogger(__name__)


def hash_weights(settings: Any) -> str:
    """Return a hash of the content of the weight files that runs with these settings start from.

    Raises:
        UserError: one is missing.
    """
    names = (getattr(settings, name, None) for name in ("weights", "backbone_weights"))
    return " ".join(pooch.file_hash(str(weight_file(name))) for name in names if name)


@dataclass(frozen=True)
class Best:
    """The best run of a module, by the metric that choices are made by."""

    module: str
    """Of a sweep, whose runs have no module that others share, the run."""
    run: str
    value: float
    mean: float
    """Of the module's runs."""
    runs: int


def best_runs(study: Study) -> list[Best]:
    """Return the best run of each module, that of the module with the best mean first.

    Runs whose metric is not finite are left out.
    """
    sign = -1 if study.plan().direction == "minimize" else 1
    values: dict[str, dict[str, float]] = {}
    for trial in study.read_trials(TrialState.COMPLETE):
        run = trial.user_attrs["run"]
        if trial.value is not None and math.isfinite(trial.value):
            module = str(trial.user_attrs.get("attention", run))
            values.setdefault(module, {})[run] = trial.value
    found = []
    for module, runs in values.items():
        run = max(runs, key=lambda name: sign * runs[name])
        found.append(Best(module, run, runs[run], fmean(runs.values()), len(runs)))
    return sorted(found, key=lambda best: -sign * best.mean)


def prune_weights(study: Study) -> None:
    """Remove the weights that a comparison does not keep, as far as they are on this machine.

    Nothing is removed while a run is waiting or running: it may turn out to be the best.
    """
    plan: Any = study.plan()
    rule = getattr(plan, "keep_weights", None)
    if rule not in ("best", "none") or study.queue.counts().open:
        return
    kept = [one.run for one in best_runs(study)] if rule == "best" else []
    removed = 0
    for trial in study.read_trials(TrialState.COMPLETE):
        run = trial.user_attrs["run"]
        folder = study.run_folder(run)
        if run not in kept:
            removed += remove_weights(folder)
        elif tested := kept_weights(folder):
            remove_weights(folder, but=tested)
        else:
            log.warning(f"the weights of {run} are not in {folder}: they were removed or moved")
    if removed and kept:
        log.info(
            f"kept the weights of the best run of each module ({first_of(kept, 4)}) and removed those of "
            f"{counted(removed, 'other run')}: --keep-weights last keeps all"
        )
