"""One run on a small data set held in memory, by itself: what a study does many times."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ecanet.config import RunSettings, StudySettings
from ecanet.data import Data
from ecanet.errors import ProcessLost, UserError
from ecanet.experiments.compare import check_settings, guess_of, notices_of, resolve
from ecanet.experiments.study.plan import read_data
from ecanet.plugins import load_plugins
from ecanet.record import EpochMetrics, Record
from ecanet.training.processes import train_on_devices
from ecanet.training.run import train
from ecanet.training.run_folder import claim_folder
from ecanet.training.tracking import with_project

# What may differ when a run goes on: it changes where it runs and who is told, not what comes out.
_FREE = {"device", "loggers", "project", "plugin"}
_FIXED = {"data", "model", "attention", "replace_attention", "image_size", "validation"}


def train_one(
    out: Path,
    settings: RunSettings,
    attention: str = "none",
    seed: int = 0,
    *,
    plugin: list[str] | None = None,
    accept_changes: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Record:
    """Train one model, test it once, and keep its weights; go on if ``out`` has the run.

    ``out`` gets ``settings.json``, ``metrics.csv`` with a row an epoch, ``best.safetensors`` (the weights
    that were tested: those of ``settings.select``), ``last.safetensors`` and ``record.json`` at the end.

    Args:
        out: the run's folder; made if missing.
        settings: of the run.
        attention: attention module, as in :func:`ecanet.create_attention`.
        seed: of the weights, the order and the augmentation.
        plugin: files that register attention modules or models.
        accept_changes: go on although settings differ from those the run began with.
        progress: show a progress bar.
        say: called with each line of news.

    Raises:
        UserError: anything the caller can put right.
        OSError: the disk is full; the last checkpoint is intact.
    """
    plugin = plugin or []
    # A project alone is enough here; with_project turns its logger on.
    without = dataclasses.replace(settings, project=None)
    check_settings(without, StudySettings([attention], 1, seed, plugin), None)
    settings = with_project(settings)
    data = read_data(settings, say)
    settings = resolve(settings, [attention], data)
    for line in (*notices_of(settings, data, compared=False), guess_of(data)):
        say(line)
    asked = asdict(settings) | {"attention": attention, "seed": seed, "plugin": plugin}

    def on_epoch(e: EpochMetrics) -> None:
        say(
            f"epoch {e.epoch + 1}/{settings.epochs}: loss {e.train_loss:.4f}, validation loss "
            f"{e.val_loss:.4f}, accuracy {100 * e.val_accuracy:.2f} %, {e.seconds:.0f} s"
        )

    with claim_folder(out, asked, _FREE, _FIXED, accept=accept_changes, say=say) as check_place:
        how = functools.partial(
            _train, settings, attention, seed, out, check_place, plugin=plugin, progress=progress
        )
        if settings.devices == 1:
            return how(on_epoch, lambda: None, data=data)
        try:
            return train_on_devices(
                how,
                settings.devices,
                out,
                threads=settings.threads,
                on_epoch=on_epoch,
                on_step=check_place,
            )
        except ProcessLost as error:
            raise UserError(f"{error}; the same command goes on from the last checkpoint") from None


def _train(
    settings: RunSettings,
    attention: str,
    seed: int,
    out: Path,
    check_place: Callable[[], None],
    on_epoch: Callable[[EpochMetrics], None],
    on_step: Callable[[], None],
    *,
    plugin: list[str],
    progress: bool,
    data: Data | None = None,
) -> Record:
    if data is None:
        # A process of its own.
        load_plugins(plugin)
        data = read_data(settings)

    def after_step() -> None:
        on_step()
        check_place()

    return train(
        settings,
        attention,
        seed,
        data,
        out,
        keep_weights=True,
        progress=progress,
        on_epoch=on_epoch,
        on_step=after_step,
    )
