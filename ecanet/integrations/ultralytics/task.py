"""Networks of Ultralytics as runs of a study: see :class:`ecanet.config.YoloSettings`.

What imports Ultralytics is imported when it is needed, as it may be missing.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pooch
import torch

from ecanet.config import YoloSettings
from ecanet.errors import UserError, as_user_error, counted, did_you_mean, one_line
from ecanet.integrations.ultralytics.data import YoloData, read_data
from ecanet.integrations.ultralytics.library import contained, require
from ecanet.models.hooks import run_in_evaluation
from ecanet.record import Cost, Record
from ecanet.training.device import resolve_device, threads_kept
from ecanet.training.task import Hooks, OutsideTask
from ecanet.yaml_file import load_yaml

# Arguments of Ultralytics that a study sets, and the setting that stands for each; "" is for none.
_OURS = {
    "task": "", "mode": "", "model": "model", "data": "data", "epochs": "epochs", "imgsz": "image_size",
    "batch": "batch_size", "device": "device", "workers": "workers", "seed": "seed", "deterministic": "",
    "project": "", "name": "", "exist_ok": "", "save_dir": "", "save": "", "save_period": "", "resume": "",
    "patience": "", "pretrained": "model", "time": "epochs", "val": "", "plots": "", "verbose": "",
    "split": "", "fraction": "", "cfg": "", "distill_model": "", "quantize": "",
}  # fmt: skip

FEW_STEPS = 1000
"""Steps of the optimizer below which a network from a YAML hardly finds an object."""


class YoloTask(OutsideTask):
    """Runs that Ultralytics trains."""

    @staticmethod
    def read(settings: YoloSettings, alone: bool = False) -> YoloData:
        data = _data(settings)
        with contained():
            from ecanet.integrations.ultralytics.labels import name_faults

            name_faults(data)
        return data

    @staticmethod
    def resolve(settings: YoloSettings, data: YoloData, alone: bool = False) -> YoloSettings:
        arguments_of(settings.set)
        own = Path(settings.model).expanduser()
        return replace(
            settings,
            data=str(data.file),
            model=str(own.resolve()) if own.is_file() else settings.model,
            identity=settings.weights is not None
            if settings.identity is None
            else settings.identity,
            device=str(resolve_device(settings.device)),
            threads=settings.threads or 1,
        )

    @staticmethod
    def check(settings: YoloSettings, data: YoloData) -> None:
        with contained():
            from ecanet.integrations.ultralytics.networks import Origin

            network = Origin(settings.model).build(settings, data)
            size = settings.image_size
            with as_user_error(f"{settings.model} with attention {settings.attention} fails"):
                run_in_evaluation(network, torch.zeros(1, data.channels, size, size))

    @staticmethod
    def notices(settings: YoloSettings, data: YoloData, compared: bool = False) -> list[str]:
        return [*judged_on(data), *_few_steps(settings, data)]

    @staticmethod
    def costs(settings: YoloSettings, attention: list[str], data: YoloData) -> list[Cost]:
        with contained():
            from ecanet.integrations.ultralytics.costs import measure

            return measure(settings, attention, data)

    @staticmethod
    @threads_kept()
    def train(
        settings: YoloSettings,
        folder: Path,
        hooks: Hooks,
        *,
        test: bool = True,
        keep_weights: bool = True,
    ) -> Record:
        folder = folder.resolve()
        data = _data(settings)  # whose faults have been named
        with contained(folder):
            from ecanet.integrations.ultralytics.networks import Origin
            from ecanet.integrations.ultralytics.trainer import StudyRun, train_run

            run = StudyRun(settings, data, Origin(settings.model), folder, hooks, test)
            train_run(run, training_arguments(settings, run.origin.task, folder))
            version = require().__version__
        return run.end({"ultralytics": version}, keep_weights)


def _data(settings: YoloSettings) -> YoloData:
    require()
    data = read_data(settings.data)
    own = Path(settings.model).expanduser()
    if own.is_file() and settings.weights is None:
        # The network is built from this file, which must be the same wherever a run is trained.
        data.fingerprint += f" {pooch.file_hash(str(own))}"
    return data


def judged_on(data: YoloData) -> list[str]:
    """Return what is to be said of the images that runs are judged on."""
    found, judged = list(data.notices), data.test or data.val
    if data.test is None:
        found.append(
            "there is no test split: runs are judged on val by the weights of their last epoch, "
            "so that no epoch is selected on it"
        )
    if shared := len(set(data.train).intersection(judged)):
        found.append(
            f"{shared} of the {len(judged)} images that runs are judged on are also trained on, "
            f"so the results do not carry over to other images"
        )
    return found


def _few_steps(settings: YoloSettings, data: YoloData) -> list[str]:
    if settings.weights is not None:
        return []
    batches = settings.epochs * math.ceil(len(data.train) / settings.batch_size)
    nominal = arguments_of(settings.set).get("nbs", 64)
    summed = max(round(nominal / settings.batch_size), 1)
    if batches >= FEW_STEPS * summed:
        return []
    steps = counted(math.ceil(batches / summed), "step")
    line = f"fresh weights learn little in about {steps}: give more epochs"
    if summed > 1:
        line += (
            f", or --set nbs={settings.batch_size}, as Ultralytics accumulates the gradients of "
            f"{summed} batches per step"
        )
    return [line]


def training_arguments(settings: YoloSettings, task: str, folder: Path) -> dict[str, Any]:
    """Return what Ultralytics is given for a run."""
    device = torch.device(settings.device)
    return {
        **arguments_of(settings.set),
        "task": task,
        "mode": "train",
        "model": settings.model,
        "data": settings.data,
        "epochs": settings.epochs,
        "imgsz": settings.image_size,
        "batch": settings.batch_size,
        "device": str(device.index or 0) if device.type == "cuda" else device.type,
        "workers": settings.workers,
        "seed": settings.seed,
        "deterministic": True,
        "patience": 0,
        "plots": False,
        "verbose": False,
        "save_dir": str(folder),
    }


def arguments_of(given: list[str]) -> dict[str, Any]:
    """Return arguments of Ultralytics given as ``name=value``.

    Raises:
        UserError: it has no such argument, takes another value, or a setting of ours stands for it.
    """
    cfg = require("ultralytics.cfg")
    found = parse_arguments(given, cfg.DEFAULT_CFG_DICT, _OURS, "Ultralytics")
    try:
        cfg.get_cfg(overrides=found)
    except (TypeError, ValueError, SyntaxError) as error:
        raise UserError(f"--set: {one_line(error)}") from None
    return found


def parse_arguments(
    given: list[str], known: Collection[str], ours: dict[str, str], library: str
) -> dict[str, Any]:
    """Return a library's arguments given as ``name=value``.

    Args:
        given: as the flag ``--set`` has them.
        known: names of the library's arguments.
        ours: names of those that a setting of ours stands for, with the setting; "" is for none.
        library: its name.

    Raises:
        UserError: it has no such argument, or a setting of ours stands for it.
    """
    found: dict[str, Any] = {}
    for item in given:
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not name:
            raise UserError(f"--set {item}: give name=value, as in lr0=0.001")
        if name in ours:
            setting = ours[name].replace("_", "-")
            hint = f"give --{setting}" if setting else "a comparison sets it"
            raise UserError(f"--set {name}: {hint}")
        if name not in known:
            near = did_you_mean(name, set(known) - ours.keys())
            raise UserError(f"--set {name}: {library} has no such argument.{near}")
        found[name] = load_yaml(value)
    return found
