"""A run, from its settings to its record: the only way in which anything is trained.

The run's folder gets ``settings.json``, ``metrics.csv`` with a row per epoch, ``checkpoints/``, the weights
``last.safetensors`` and ``best.safetensors`` (of the epoch that the task selects), and at the end
``predictions.parquet`` and ``record.json``.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ecanet.activity import activity
from ecanet.config import AnySettings, OutsideSettings, TrainingSettings
from ecanet.environment import cpu_cores, environment
from ecanet.errors import UserError, as_user_error
from ecanet.files import write_json
from ecanet.metrics import best_row
from ecanet.notebook import shown_lines
from ecanet.plugins import load_plugins
from ecanet.predictions import PREDICTIONS, write_predictions
from ecanet.recipe_file import settings_class, with_settings
from ecanet.record import Record, Row, read_record
from ecanet.signals import deferred_signals
from ecanet.training.device import threads_kept
from ecanet.training.launch import begin, explain_lost_process
from ecanet.training.processes import spawn_ranks
from ecanet.training.run_folder import check_out, claim_folder, remove_weights
from ecanet.training.task import Hooks, nothing
from ecanet.training.tracking import TrackedRun, check_trackers, open_trackers
from ecanet.training.trainer import Trainer

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger(__name__)

# Where the task of each kind of settings is; imported when a run starts.
_TASKS = {
    "ClassificationSettings": "ecanet.training.classification:ClassificationTask",
    "DetectionSettings": "ecanet.detection.task:DetectionTask",
    "TrainerSettings": "ecanet.integrations.trainer:OwnTrainer",
    "YoloSettings": "ecanet.integrations.ultralytics.task:YoloTask",
    "LibreYoloSettings": "ecanet.integrations.libreyolo.task:LibreYoloTask",
}


def task_of(settings: AnySettings) -> Any:
    """Return the class of the task that settings are of.

    Of :class:`ecanet.config.OutsideSettings` it is an :class:`ecanet.training.task.OutsideTask`.
    """
    module, name = _TASKS[type(settings).__name__].split(":")
    return getattr(importlib.import_module(module), name)


@threads_kept()
def train(
    settings: TrainingSettings | str | os.PathLike[str],
    out: str | Path = "run",
    *,
    accept_changes: bool = False,
    progress: bool = True,
    hooks: Hooks | None = None,
    **keywords: Any,
) -> Record:
    """Train one network by itself and keep its weights; resume if ``out`` has the run.

    Example::

        run = ecanet.train("photos", "run", model="resnet50", attention="eca", pretrained=True)
        run.final["test_accuracy"]
        ecanet.predict("new_photos", weights="run")

    Args:
        settings: of the run, of any task; what is open in them is settled by the data. Or the images alone,
            as ``ecanet train`` takes them: a folder, a table or a name.
        out: the run's folder; made if missing.
        accept_changes: resume although settings differ from those the run began with.
        progress: print a line for each epoch; in a notebook, show the latest lines in place.
        hooks: called on the way.
        keywords: settings by name: the flags of ``ecanet train``, such as ``epochs=8`` and ``lr=0.01``. Names
            of a detector (``detector=``) make it one.

    Raises:
        UserError: anything the caller can put right.
        ProcessLost: another process of the run has ended.
        Preempted: SIGTERM came; the run was saved.
        OSError: the disk is full; the last checkpoint is intact.
    """
    settings = _settings_of(settings, keywords)
    with shown_lines() if progress else nullcontext():
        return _train(settings, Path(out), accept_changes, hooks or Hooks())


def _settings_of(
    given: TrainingSettings | str | os.PathLike[str], keywords: dict[str, Any]
) -> TrainingSettings:
    """Return the settings of a run from data or settings, and keywords."""
    if isinstance(given, (str, os.PathLike)):
        keywords = keywords | {"data": given}
        base: Any = settings_class(keywords)
    else:
        base = given
    modules = keywords.get("attention")
    if isinstance(modules, (list, tuple)):  # as recipes of comparisons have them
        if len(modules) > 1:
            raise UserError(
                f"train takes one attention module, got {', '.join(modules)}: choose by --attention"
            )
        keywords = keywords | {"attention": modules[0] if modules else None}
    (settings,) = with_settings(keywords, base)
    return settings


def _train(settings: TrainingSettings, out: Path, accept_changes: bool, hooks: Hooks) -> Record:
    check_out(out)
    check_trackers(settings.loggers)
    load_plugins(settings.plugin)
    task = task_of(settings)
    data = task.read(settings, alone=True)
    settings = task.resolve(settings, data, alone=True)
    for line in task.notices(settings, data):
        log.info("%s", line)
    fabric, settings = begin(settings)
    used, cores = settings.threads * settings.devices, cpu_cores()  # type: ignore[operator]
    if fabric.device.type == "cpu" and cores > used:
        log.info(
            f"using {used} of {cores} CPU cores: more --threads are faster, but change the last digits of "
            "the results"
        )
    # What cannot be built is refused before anything is written.
    with as_user_error(f"attention module {settings.attention} fails in {settings.model}"):
        built = task(settings, data, fabric)
    claim = claim_folder(out, settings, accept=accept_changes)
    with explain_lost_process(fabric), _claimed(fabric, claim) as check_place:
        return _run(fabric, built, out, hooks, check_place=check_place)


def train_in_study(
    settings: AnySettings,
    folder: Path,
    data: Any = None,
    *,
    test: bool = True,
    keep_weights: bool = True,
    hooks: Hooks | None = None,
) -> Record:
    """Train a run of a study in a folder that the caller holds; leave its metrics and its record.

    With several devices a process is started for each, which end with this one.

    Args:
        settings: resolved.
        folder: of the run.
        data: as the task has read them; None: they are read here.
        test: read the test split at the end, and keep predictions and weights.
        keep_weights: leave the weights that were tested, once the run has ended.
        hooks: called on the way.

    Raises:
        As :func:`train`.
    """
    if record := read_record(folder / "record.json"):
        return record
    folder.mkdir(parents=True, exist_ok=True)
    hooks = hooks or Hooks()
    if isinstance(settings, OutsideSettings):
        outside = task_of(settings)
        record = outside.train(settings, folder, hooks, test=test, keep_weights=keep_weights)
        write_json(folder / "record.json", record.to_dict())
        return record
    how = functools.partial(_train_rank, settings, folder, test, keep_weights)
    if settings.devices == 1:
        return how(hooks.on_epoch, hooks.on_step, data=data)
    assert settings.threads is not None
    return spawn_ranks(
        how,
        settings.devices,
        folder,
        threads=settings.threads,
        on_epoch=hooks.on_epoch,
        on_step=hooks.on_step,
    )


@contextmanager
def warnings_only() -> Iterator[None]:
    """Log no more than warnings of what is trained: of the runs of a study, the study reports."""
    logs = [logging.getLogger(f"ecanet.{name}") for name in ("data", "detection", "training")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


@threads_kept()
@warnings_only()
def _train_rank(
    settings: TrainingSettings,
    folder: Path,
    test: bool,
    keep_weights: bool,
    on_epoch: Callable[[Row], None],
    on_step: Callable[[], None],
    data: Any = None,
) -> Record:
    task = task_of(settings)
    if data is None:  # in a process of its own
        load_plugins(settings.plugin)
        data = task.read(settings)
    settings = task.resolve(settings, data)
    fabric, settings = begin(settings, join=False)
    record = _run(
        fabric, task(settings, data, fabric), folder, Hooks(on_step, on_epoch),
        test=test, weights="tested" if test else "none",
    )  # fmt: skip
    if fabric.is_global_zero:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        if not keep_weights:
            remove_weights(folder)
    return record


def _run(
    fabric: Fabric,
    task: Any,
    out: Path,
    hooks: Hooks,
    *,
    check_place: Callable[[], None] = nothing,
    test: bool = True,
    weights: Literal["all", "tested", "none"] = "all",
) -> Record:
    """Train a task from where its run stands to the record.

    Args:
        weights: which to keep: of every kind; those that the final metrics are of; or none.
    """
    settings = task.settings

    def keep(rows: list[Row]) -> list[str]:
        improved = best_row(rows, task.best) is rows[-1]
        names = ["last"] if weights != "none" else []
        if task.select == "best":
            needed = weights == "all" or (weights == "tested" and task.predicts)
            names += ["best"] * (needed and improved)
        elif weights == "all":
            names.append("best")
        if weights == "all" and getattr(settings, "keep_epochs", False):
            names.append(f"epochs/epoch{len(rows):04d}")
        return names

    trainer = Trainer(fabric, task, out, hooks, check_place=check_place, keep=keep)
    resumes = trainer.load()
    if weights == "all" and fabric.is_global_zero:
        # Changed ones, now that the checkpoint has been accepted with them.
        write_json(out / "settings.json", asdict(settings))
    state, ended = trainer.state, read_record(out / "record.json")
    has_ended = state.epoch == settings.epochs or not resumes
    # The record of a run that has been extended since is shorter.
    if has_ended and ended and len(ended.epochs) == settings.epochs:
        return ended
    if resumes:
        log.info("resuming in epoch %d, after %d of its steps", state.epoch + 1, state.step)

    names = settings.loggers if fabric.is_global_zero else []
    group = settings.attention or settings.model
    tracked = TrackedRun(out, settings.project, group, asdict(settings))
    with open_trackers(names, tracked) as trackers:
        with task.tuned():
            rows = trainer.fit(trackers.log, trackers.log_checkpoint)
        task.tests = task.tests and test
        # SIGTERM does not end the test, which is read once: it is raised after the record is written.
        with deferred_signals():
            kept = None if weights == "none" else out / "best.safetensors"
            with activity("test" if task.tests else "last validation"):
                final = task.final(trainer.evaluated, rows, kept)
            hooks.on_step()
            record = Record(
                settings=asdict(settings),
                environment=environment(fabric.device),
                epochs=rows,
                final={**final, "train_seconds": sum(row["seconds"] for row in rows)},
                built_in=task.built_in,
            )
            if fabric.is_global_zero:
                check_place()
                if task.predictions is not None:
                    # First: a run with a record has its predictions.
                    write_predictions(out / PREDICTIONS, task.predictions)
                write_json(out / "record.json", record.to_dict())
            trackers.log_final(record.final, trainer.epochs.begin(trainer.state.epoch))
    return record


@contextmanager
def _claimed(
    fabric: Fabric, claim: AbstractContextManager[Callable[[], None]]
) -> Iterator[Callable[[], None]]:
    """Let the first process claim the run for all; what it refuses, all refuse."""
    with ExitStack() as stack:
        check_place, refusal = nothing, None
        if fabric.is_global_zero:
            try:
                check_place = stack.enter_context(claim)
            except UserError as error:
                refusal = str(error)
        refusal = fabric.broadcast(refusal)
        if refusal:
            raise UserError(refusal)
        yield check_place
