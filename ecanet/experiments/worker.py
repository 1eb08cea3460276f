"""A worker: takes runs from a study's queue until it is empty."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import optuna
import torch
from optuna.trial import TrialState

from ecanet.attention import load_plugin
from ecanet.config import RunSettings
from ecanet.data import Data, load_data
from ecanet.data.memory import keep_freed_memory
from ecanet.errors import UserError, disk_is_full
from ecanet.experiments.study import claimed, load_plan, load_study, one_line, waiting
from ecanet.training.run import train


def read_data(settings: RunSettings) -> Data:
    """Read the data of a study, as its settings say.

    Raises:
        UserError: they cannot be read.
    """
    return load_data(
        settings.data,
        image_size=settings.image_size,
        validation=settings.validation,
        skip_corrupt=settings.skip_corrupt,
    )


def work(
    folder: Path,
    *,
    data: Data | None = None,
    index: int = 0,
    jobs: int = 1,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Train the waiting runs of the study in ``folder``, one after the other.

    Args:
        folder: the study's folder.
        data: the study's data, if the caller has read them already.
        index: which of the ``jobs`` workers of this machine this one is; picks its GPU.
        jobs: how many workers there are: for the time left.
        progress: show a progress bar for each run.
        say: called with a line for each run that ends.

    Raises:
        UserError: the data cannot be read, or differ from those the study was made with.
        OSError: the disk is full. The run's last checkpoint is intact.
    """
    study = load_study(folder)
    plan = load_plan(study)
    settings = plan.settings
    for plugin in plan.plugin:
        load_plugin(plugin)
    if data is None:
        data = read_data(settings)
    if data.fingerprint != plan.data_fingerprint:
        raise UserError(f"the images of {settings.data} are not those that {folder} was made with")
    torch.set_num_threads(plan.threads)
    if settings.device == "cpu":
        keep_freed_memory()
    if settings.device == "cuda" and torch.cuda.device_count() > 1:
        settings.device = f"cuda:{index % torch.cuda.device_count()}"
    total, started, done = len(plan.runs()), time.monotonic(), 0

    def objective(trial: optuna.Trial) -> float:
        if "attention" not in trial.user_attrs:
            # Another worker took the last run between our look and our grasp.
            raise optuna.TrialPruned
        with claimed(trial, folder) as (attention, seed, run_folder):
            try:
                record = train(settings, attention, seed, data, run_folder, progress=progress)
            except (UserError, KeyboardInterrupt):
                raise
            except Exception as error:
                if disk_is_full(error):
                    raise
                trial.set_user_attr("error", one_line(error, run_folder))
                raise _RunFailed(f"{attention} seed {seed}: {trial.user_attrs['error']}") from error
            trial.set_user_attr("record", record.to_dict())
            assert record.final is not None
            return record.final.val_accuracy

    def told(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.state != TrialState.COMPLETE:
            return
        nonlocal done
        done += 1
        final = trial.user_attrs["record"]["final"]
        complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        left = (time.monotonic() - started) / done * (total - complete) / jobs
        say(
            f"[{complete}/{total}] {trial.user_attrs['attention']} seed {trial.user_attrs['seed']}: "
            f"validation {100 * final['val_accuracy']:.2f} %, {final['train_seconds']:.0f} s"
            + (f"; about {_duration(left)} left" if complete < total else "")
        )

    while waiting(study):
        try:
            study.optimize(objective, n_trials=1, callbacks=[told])
        except _RunFailed as failure:
            say(f"failed: {failure}")


class _RunFailed(Exception):
    """A run ended in an error of its own; the others go on."""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
