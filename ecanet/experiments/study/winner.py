"""The weights that a path stands for: a file, a run's folder, or a study's folder and thus its best run."""

from __future__ import annotations

import logging
from pathlib import Path

from ecanet.errors import UserError, counted
from ecanet.inputs import RUNS, check_weights
from ecanet.training.run_folder import is_run, kept_weights

log = logging.getLogger(__name__)


def find_weights(name: str | None, attended: bool = False) -> str | None:
    """Return the file that is meant by ``--weights``; what is no folder of a run or study stays as it is.

    Of a study it is the best run of the module with the best mean, by the metric that the study's choices
    are made by. Which one was taken is logged.

    Args:
        name: file, or folder.
        attended: of a study, take a run with an attention module.

    Raises:
        UserError: there is no such file or folder, the run or the study's best run has kept no weights, or
            the study cannot be read.
    """
    if name is None:
        return None
    folder = Path(name).expanduser()
    if holds_study(folder):
        return str(_of_study(folder, attended))
    if (folder / "cells.json").is_file():
        raise UserError(
            f"{folder} holds studies of several networks and data sets: name the folder of one of them"
        )
    if not is_run(folder):
        check_weights(name, RUNS)
        return name
    found = kept_weights(folder)
    if found is None:
        raise UserError(
            f"{folder} holds a run that has no weights, or none yet: give a weight file"
        )
    log.info("%s: using %s", folder, found.name)
    return str(found)


def holds_study(folder: Path) -> bool:
    """Whether a folder is that of a study."""
    return (folder / "study.db").is_file() or (folder / "study.json").is_file()


def _of_study(folder: Path, attended: bool) -> Path:
    # With the database, most of a second that a file does not need.
    from ecanet.experiments.study.study import load_study
    from ecanet.experiments.study.weights import best_runs

    study = load_study(folder, "read")
    plan, ranked = study.plan(), best_runs(study)
    if attended:
        plain = ("none", "control")
        ranked = [one for one in ranked if one.module.partition(":")[0] not in plain]
    if not ranked:
        which = " with an attention module" if attended else ""
        raise UserError(f"{folder} is a study without a finished run{which}: give a weight file")
    best = ranked[0]
    found = kept_weights(study.run_folder(best.run))
    metric = plan.metric.replace("val_", "validation ").replace("_", " ")
    over = f", of {best.module} with the best mean over {counted(best.runs, 'run')}"
    chosen = f"{best.run} ({metric} {best.value:.4g}{over if best.module != best.run else ''})"
    if found is None:
        raise UserError(
            f"{folder}: the weights of its best run{' with attention' if attended else ''}, "
            f"{chosen}, were not kept: give another run's folder or a weight file"
        )
    log.info("%s: using %s of the best run, %s", folder, found.name, chosen)
    return found
