"""Detectors of LibreYOLO as runs of a study: see :class:`ecanet.config.LibreYoloSettings`.

What imports LibreYOLO is imported when it is needed, as it may be missing.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from ecanet.config import LibreYoloSettings
from ecanet.errors import UserError, as_user_error, one_line
from ecanet.integrations.libreyolo.library import contained, require
from ecanet.integrations.ultralytics.data import YoloData, read_data
from ecanet.integrations.ultralytics.task import YoloTask, judged_on, parse_arguments
from ecanet.models.built_in import count_built_in
from ecanet.models.hooks import run_in_evaluation
from ecanet.record import Cost, Record
from ecanet.training.device import resolve_device, threads_kept
from ecanet.training.task import Hooks

# Arguments of LibreYOLO that a study sets, and the setting that stands for each; "" is for none.
_OURS = {
    "size": "model", "num_classes": "", "data": "data", "data_dir": "data", "imgsz": "image_size",
    "epochs": "epochs", "batch": "batch_size", "device": "device", "workers": "workers", "seed": "seed",
    "project": "", "name": "", "exist_ok": "", "save_period": "", "eval_interval": "", "resume": "",
    "patience": "", "single_cls": "", "classes": "", "lora": "", "distill_model": "", "average_best": "",
    "val_loss": "", "save_plots": "", "plot_samples": "", "profile": "", "profile_then_stop": "",
    "export_check": "", "allow_download_scripts": "", "aux_weight": "", "persistent_workers": "", "cache": "",
}  # fmt: skip


class LibreYoloTask(YoloTask):
    """Runs that LibreYOLO trains."""

    @staticmethod
    def read(settings: LibreYoloSettings, alone: bool = False) -> YoloData:  # type: ignore[override]
        require()
        data = read_data(settings.data)
        if data.channels != 3:
            raise UserError(f"{data.file}: LibreYOLO trains on images of 3 channels")
        from ecanet.integrations.libreyolo.labels import name_faults

        name_faults(data)
        return data

    @staticmethod
    def resolve(  # type: ignore[override]
        settings: LibreYoloSettings, data: YoloData, alone: bool = False
    ) -> LibreYoloSettings:
        with contained():
            from ecanet.integrations.libreyolo.networks import Origin

            arguments_of(settings, Origin(settings.model).trainer)
        return dataclasses.replace(
            settings,
            data=str(data.file),
            identity=bool(settings.identity),
            device=str(resolve_device(settings.device)),
            threads=settings.threads or 1,
        )

    @staticmethod
    def check(settings: LibreYoloSettings, data: YoloData) -> None:  # type: ignore[override]
        with contained():
            from ecanet.integrations.libreyolo.networks import Origin

            network = Origin(settings.model).build(settings, data).model
            size, device = settings.image_size, next(network.parameters()).device
            with as_user_error(f"{settings.model} with attention {settings.attention} fails"):
                run_in_evaluation(network, torch.zeros(1, 3, size, size, device=device))

    @staticmethod
    def notices(  # type: ignore[override]
        settings: LibreYoloSettings, data: YoloData, compared: bool = False
    ) -> list[str]:
        return judged_on(data)

    @staticmethod
    def built_in_of(settings: LibreYoloSettings, data: YoloData) -> dict[str, int]:
        """Return the attention modules that the network comes with, the number of each kind."""
        with contained():
            from ecanet.integrations.libreyolo.networks import Origin

            return count_built_in(Origin(settings.model).plain(len(data.names)).model)

    @staticmethod
    def costs(  # type: ignore[override]
        settings: LibreYoloSettings, attention: list[str], data: YoloData
    ) -> list[Cost]:
        with contained():
            from ecanet.integrations.libreyolo.costs import measure

            return measure(settings, attention, data)

    @staticmethod
    @threads_kept()
    def train(  # type: ignore[override]
        settings: LibreYoloSettings,
        folder: Path,
        hooks: Hooks,
        *,
        test: bool = True,
        keep_weights: bool = True,
    ) -> Record:
        folder = folder.resolve()
        data = read_data(settings.data)  # whose faults have been named
        with contained(folder):
            from ecanet.integrations.libreyolo.networks import Origin
            from ecanet.integrations.libreyolo.trainer import train_run
            from ecanet.integrations.study_run import StudyRun

            run = StudyRun(settings, data, Origin(settings.model), folder, hooks, test)
            train_run(run, training_arguments(settings, data, run.origin.trainer, folder))
            version = require("importlib.metadata").version("libreyolo")
        shutil.rmtree(folder / "libreyolo", ignore_errors=True)
        return run.end({"libreyolo": version}, keep_weights)


def training_arguments(
    settings: LibreYoloSettings, data: YoloData, trainer: Any, folder: Path
) -> dict[str, Any]:
    """Return what LibreYOLO is given for a run; write the data set's images to a folder of its own.

    Args:
        settings: resolved.
        data: of the run.
        trainer: class of LibreYOLO.
        folder: of the run; ``libreyolo`` in it is written.
    """
    own = folder / "libreyolo"
    own.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"path": str(own), "nc": len(data.names), "names": dict(data.names)}
    for split, images in (("train", data.train), ("val", data.val), ("test", data.test)):
        if images is not None:
            content[split] = f"{split}.txt"
            lines = "".join(f"{image}\n" for image in images)
            (own / f"{split}.txt").write_text(lines, encoding="utf-8")
    (own / "data.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    fields = {field.name for field in dataclasses.fields(trainer._config_class())}
    # Processes that last would have random numbers of their own, which no state holds.
    lasting = {"persistent_workers": False} if "persistent_workers" in fields else {}
    return {
        **arguments_of(settings, trainer),
        **lasting,
        "data": str(own / "data.yaml"),
        "epochs": settings.epochs,
        "imgsz": settings.image_size,
        "batch": settings.batch_size,
        "device": settings.device,
        "workers": settings.workers if settings.device != "cpu" else 0,
        "seed": settings.seed,
        "project": str(folder),
        "name": "libreyolo",
        "exist_ok": True,
        "eval_interval": 1,
        "patience": 0,
    }


def arguments_of(settings: LibreYoloSettings, trainer: Any) -> dict[str, Any]:
    """Return arguments of LibreYOLO given as ``name=value``.

    Raises:
        UserError: the family has no such argument, takes another value, or a setting of ours stands for it.
    """
    config = trainer._config_class()
    known = [field.name for field in dataclasses.fields(config)]
    found = parse_arguments(settings.set, known, _OURS, "LibreYOLO")
    try:
        config(**found)
    except (TypeError, ValueError) as error:
        raise UserError(f"--set: {one_line(error)}") from None
    return found
