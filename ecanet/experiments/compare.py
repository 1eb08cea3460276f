"""The main job: attention modules x seeds on one network and one data set, to a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ecanet.aliases import SOURCES
from ecanet.attention import create_attention
from ecanet.config import RunSettings, StudySettings, check_ranges, with_lr
from ecanet.data import Data
from ecanet.data.augment import with_flip
from ecanet.data.dataset import Split
from ecanet.data.memory import keep_freed_memory
from ecanet.errors import UserError, at_least
from ecanet.experiments.analysis.compare import StudySummary
from ecanet.experiments.analysis.notices import notices
from ecanet.experiments.analysis.statistics import study_statistics
from ecanet.experiments.study.location import Location, locate
from ecanet.experiments.study.plan import ComparePlan, read_data
from ecanet.experiments.study.pool import open_study, run_study
from ecanet.experiments.study.study import check_folder, load_study, summarise
from ecanet.models import checked_attention, list_models
from ecanet.models.batch_check import check_batch_norms
from ecanet.models.built_in import count_built_in, describe_built_in
from ecanet.plugins import load_plugins
from ecanet.profiling import count_macs, measure_costs
from ecanet.record import Cost
from ecanet.training.device import (
    check_devices,
    compile_pays,
    resolve_device,
    resolve_precision,
    threads_kept,
)
from ecanet.training.optim import few_steps
from ecanet.training.run import build_model

_MOST_RUNS = 100_000


def compare(
    out: str | Path,
    settings: RunSettings | None = None,
    study: StudySettings | None = None,
    *,
    storage: str | None = None,
    name: str | None = None,
    jobs: int | None = None,
    trust_plugins: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> StudySummary:
    """Train every attention module over every seed, and write the report to ``out/report``.

    Called again with the same arguments it goes on where it stopped; with more seeds or modules it
    adds their runs. Workers on other machines may help (:func:`ecanet.experiments.study.worker.work`).

    Args:
        out: the study's folder; made if missing.
        settings: what all runs share.
        study: which modules and seeds.
        storage: address of a PostgreSQL database that is to hold the study, for several machines; by
            default it is a file in the folder.
        name: of the study in that database; by default the folder's.
        jobs: processes that train at the same time on this machine; by default one a GPU, or one
            a CPU core (at most 8) as far as memory reaches.
        trust_plugins: whether a study that is there may name plugins that ``study`` does not: they
            are programs, and are run.
        progress: show a progress bar for each run, if one job works.
        say: called with each line of news.

    Returns:
        What the study has found: records, costs, failures.

    Raises:
        UserError: anything the caller can put right; nothing half-written is left behind.
    """
    settings, study = settings or RunSettings(), study or StudySettings()
    location = locate(out, storage, name)
    check_settings(settings, study, jobs)
    check_folder(location)
    data = read_data(settings, say)
    with single_thread():
        settings = resolve(settings, study.attention, data)
    plan = ComparePlan(
        attention=list(study.attention),
        seeds=list(range(study.first_seed, study.first_seed + study.seeds)),
        plugin=[str(Path(plugin).resolve()) for plugin in study.plugin],
        settings=settings,
        data_fingerprint=data.fingerprint,
        skipped_images=list(data.skipped),
        built_in=built_in_of(settings, data),
        notices=notices_of(settings, data),
        majority=majority_of(data.test),
    )
    for line in (*plan.notices, guess_of(data)):
        say(line)
    return run_plan(
        location,
        plan,
        data,
        lambda: measure(settings, plan.attention, data),
        jobs=jobs,
        trust_plugins=trust_plugins,
        progress=progress,
        say=say,
    )


def run_plan(
    location: Location,
    plan: ComparePlan,
    data: Any,
    measure: Callable[[], list[Cost]],
    *,
    jobs: int | None,
    trust_plugins: bool,
    progress: bool,
    say: Callable[[str], None],
) -> StudySummary:
    """Make the study of a comparison, or extend the one that is there, and work on it to its report.

    Args:
        location: of the study.
        plan: of a comparison.
        data: as ``plan.read_data()`` gives it.
        measure: the costs of the plan's attention modules, for a new study.
        jobs, trust_plugins, progress, say: as in :func:`compare`.

    Raises:
        UserError: the study that is there is another one.
    """

    def measure_alone() -> tuple[list[Cost], int]:
        say(f"measuring the cost of {', '.join(plan.attention)}")
        with single_thread():
            costs = measure()
        return costs, max(cost.train_peak_bytes or 0 for cost in costs)

    opened, jobs = open_study(location, plan, measure_alone, jobs=jobs, trust_plugins=trust_plugins)
    trusted = None if trust_plugins else plan.plugin
    run_study(opened, data, jobs, plugin=trusted, progress=progress, say=say)
    summary = summarise(opened)
    for notice in notices(summary, study_statistics(summary)):
        say(notice)
    return summary


def built_in_of(settings: RunSettings, data: Data) -> dict[str, int]:
    """Return the attention modules that the network of a study comes with, each kind's number."""
    if settings.model in list_models():
        return {}
    as_it_comes = dataclasses.replace(settings, replace_attention=False)
    with torch.random.fork_rng(devices=[]):
        return count_built_in(build_model(as_it_comes, "none", data))


def majority_of(split: Split) -> float:
    """Return the share of a split's images that are of its most frequent class."""
    return float(split.labels.bincount().max()) / len(split)


def notices_of(settings: RunSettings, data: Data, *, compared: bool = True) -> list[str]:
    """Return what is to be known of network and settings, with the way on."""
    found = (
        describe_built_in(
            settings.model,
            built_in_of(settings, data),
            replaced=settings.replace_attention,
            compared=compared,
        ),
        few_steps(len(data.train), settings.batch_size, settings.epochs),
    )
    return [line for line in found if line]


def guess_of(data: Data) -> str:
    """Return the line on what is reached without looking at the images."""
    return (
        f"one answer for all images would be right for {100 * majority_of(data.test):.2f} % of the test "
        "split: its most frequent class"
    )


def report(
    folder: str | Path | None = None,
    *,
    storage: str | None = None,
    name: str | None = None,
    out: str | Path | None = None,
) -> Path:
    """Write the report of a study of any kind, finished or not, and return its page's path.

    Args:
        folder: of the study.
        storage: address of the study's database, if the folder does not tell it.
        name: of the study in that database; by default the folder's.
        out: folder that gets the report; by default ``report/`` in the study's.

    Raises:
        UserError: there is no such study, or the folder cannot be written.
    """
    study = load_study(locate(folder, storage, name), "read")
    return study.plan().write_report(study, Path(out) if out else None)


def check_settings(settings: RunSettings, study: StudySettings, jobs: int | None) -> None:
    """Refuse what cannot be run, before anything is read or written.

    Raises:
        UserError: one line that names the setting and what it takes.
    """
    check_ranges(settings)
    if settings.project and "wandb" not in settings.loggers:
        raise UserError("--project names a W&B project: add --loggers '[wandb]'")
    check_study(study, jobs)


def check_study(study: StudySettings, jobs: int | None) -> None:
    """Refuse modules, seeds and jobs that no comparison can be made of.

    Raises:
        UserError: one line that names the setting and what it takes.
    """
    check_ranges(study)
    at_least(1, jobs=jobs)
    if study.seeds * len(study.attention) > _MOST_RUNS:
        raise UserError(f"--seeds {study.seeds}: a study may have {_MOST_RUNS} runs")
    if not study.attention:
        raise UserError("--attention is empty: name at least one module, such as none,eca")
    twice = {name for name in study.attention if study.attention.count(name) > 1}
    if twice:
        raise UserError(f"--attention names {', '.join(sorted(twice))} more than once")
    load_plugins(study.plugin)
    for attention in study.attention:
        try:
            create_attention(attention, 64)
        except (ValueError, TypeError) as error:
            raise UserError(str(error)) from None
        except Exception as error:
            raise UserError(f"attention module {attention} cannot be made: {error!r}") from None


def resolve(
    settings: RunSettings, attention: list[str], data: Data, least_batch: int | None = None
) -> RunSettings:
    """Return settings in which every ``auto`` has become what it stands for on this machine.

    Each module is built into the model and run once, forward and backward, where it was inserted.

    Args:
        settings: as given.
        attention: modules that are to be run.
        data: their images and classes.
        least_batch: the smallest batch of several settings, of which these have the largest.

    Raises:
        UserError: the model does not exist, a module fails in it, or the machine lacks what was
            asked for.
    """
    if settings.batch_size > len(data.train.labels):
        raise UserError(
            f"--batch_size {settings.batch_size} is more than the {len(data.train.labels)} images "
            "of the training split: make it smaller"
        )
    device = resolve_device(settings.device)
    check_devices(settings.devices, device, settings.batch_size)
    models = {name: _try(settings, name, data, least_batch) for name in attention}
    macs = count_macs(models[attention[0]], data.image_size, data.channels)
    pays = compile_pays(macs, len(data.train.labels) * settings.epochs, device)
    return dataclasses.replace(
        settings,
        # A name of ours wins over a folder of that name.
        data=settings.data if settings.data in SOURCES else str(Path(settings.data).resolve()),
        image_size=data.image_size,
        augmentation=with_flip(settings.augmentation, data.classes),
        optimizer=with_lr(settings.optimizer, settings.batch_size),
        device=str(device),
        precision=resolve_precision(settings.precision, device),  # type: ignore[arg-type]
        compile={"auto": "on" if pays else "off"}.get(settings.compile, settings.compile),  # type: ignore[arg-type]
    )


def measure(settings: RunSettings, attention: list[str], data: Data) -> list[Cost]:
    """Measure what each module costs in the model, on this machine, under these settings.

    On a CPU, on the threads torch has been given; :func:`compare` gives one, because several threads'
    speed collapses as soon as anything else wants a core.
    """
    return measure_costs(
        {name: lambda name=name: build_model(settings, name, data) for name in attention},  # type: ignore[misc]
        image_size=data.image_size,
        in_chans=data.channels,
        num_classes=len(data.classes),
        batch_size=settings.batch_size,
        device=resolve_device(settings.device),
        precision=settings.precision,
        channels_last=settings.channels_last,
        compile=settings.compile == "on",
    )


@contextmanager
def single_thread() -> Iterator[None]:
    """Let torch work as in one of several runs side by side: on one thread of the CPU."""
    keep_freed_memory()
    with threads_kept():
        torch.set_num_threads(1)
        yield


def _try(settings: RunSettings, attention: str, data: Data, least_batch: int | None) -> nn.Module:
    each = (least_batch or settings.batch_size) // settings.devices
    try:
        model = build_model(settings, attention, data)
        check_batch_norms(model, each, data.image_size, data.channels)
        images = torch.randn(2, data.channels, data.image_size, data.image_size)
        with checked_attention(model):
            model(images).sum().backward()
    except UserError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())[:200]
        raise UserError(
            f"attention module {attention} fails in {settings.model} on images of "
            f"{data.image_size} pixels: {type(error).__name__}: {message}"
        ) from None
    return model
