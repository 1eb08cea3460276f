"""Attention modules x seeds on one detector, by the same queue, workers, statistics and report."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch

from ecanet.config import DetectStudySettings, DetectTrainSettings, StudySettings
from ecanet.detection.dataset import CocoFolder, data_root
from ecanet.detection.task import build_detector, check_settings, read_folders, train_detector
from ecanet.errors import UserError
from ecanet.experiments.analysis.compare import BOX_AP, Metric, StudySummary
from ecanet.experiments.compare import check_study, run_plan
from ecanet.experiments.study.location import locate
from ecanet.experiments.study.plan import ComparePlan, Job
from ecanet.experiments.study.study import check_folder
from ecanet.files import write_json
from ecanet.models import list_models
from ecanet.models.batch_check import check_batch_norms
from ecanet.models.built_in import count_built_in, describe_built_in
from ecanet.models.insert import parse_spec
from ecanet.profiling.detectors import measure_detector_costs
from ecanet.record import Cost, DetectionEpoch, DetectionFinal, Record, read_record
from ecanet.training.device import check_devices, resolve_device, resolve_precision
from ecanet.training.optim import few_steps
from ecanet.training.processes import process_rank
from ecanet.typed import typed


@dataclass
class DetectionData:
    """What a study of detectors is about, by its fingerprint: workers read the images themselves."""

    fingerprint: str


@dataclass
class DetectPlan(ComparePlan):
    """Every attention module in one detector over every seed."""

    kind: ClassVar[str] = "detect"
    judged_by: ClassVar[Metric] = BOX_AP

    metric: str = "score"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DetectPlan:
        return typed(cls, {**values, "settings": typed(DetectStudySettings, values["settings"])})

    def title(self) -> str:
        return f"{self.settings.detector}, {self.settings.model} on {Path(self.settings.data).name}"

    def read_data(self) -> DetectionData:
        return DetectionData(fingerprint(self.settings))

    def train(
        self,
        job: Job,
        data: DetectionData,
        folder: Path,
        *,
        progress: bool,
        on_epoch: Callable[[DetectionEpoch], None],
        on_step: Callable[[], None],
    ) -> Record:
        """Train one detector in ``folder``; keep its last weights, delete its checkpoints."""
        finished = folder / "record.json"
        if record := read_record(finished):
            return record
        out = folder / folder.name
        found = train_detector(
            self.settings.data,
            out,
            run_settings(self.settings, job.attention, job.seed, self.plugin),
            progress=progress,
            on_epoch=lambda row: on_epoch(_epoch(row)),
            on_step=on_step,
        )
        epochs = [_epoch(row) for row in found["epochs"]]
        record = Record(
            attention=job.attention,
            seed=job.seed,
            settings=found["settings"],
            environment=found["environment"],
            epochs=epochs,
            final=DetectionFinal(
                figures=epochs[-1].figures,
                epoch=epochs[-1].epoch,
                train_seconds=sum(epoch.seconds for epoch in epochs),
            ),
        )
        if not process_rank(self.settings.devices):
            write_json(finished, record.to_dict())
            shutil.rmtree(out / "checkpoints", ignore_errors=True)
        return record

    def outcome(self, record: Any) -> str:
        return f"box AP {100 * record.final.score:.1f}, {record.final.train_seconds:.0f} s"


def compare_detectors(
    out: str | Path,
    settings: DetectStudySettings,
    study: StudySettings,
    *,
    storage: str | None = None,
    name: str | None = None,
    jobs: int | None = None,
    trust_plugins: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> StudySummary:
    """Train a detector with every attention module over every seed, and write ``out/report``.

    As :func:`ecanet.experiments.compare.compare` does for classifiers, with the same arguments. Runs
    are judged by their box AP after the last epoch.

    Raises:
        UserError: anything the caller can put right; nothing half-written is left behind.
    """
    location = locate(out, storage, name)
    check_study(study, jobs)
    check_folder(location)
    say(f"reading {settings.data}")
    settings = _resolved(settings, say)
    images, _ = read_folders(data_root(settings.data), settings)
    built_in = built_in_of(settings, images)
    assert settings.model is not None
    found = (
        describe_built_in(settings.model, built_in, replaced=settings.replace_attention),
        few_steps(len(images) * settings.repeats, settings.batch_size, settings.epochs),
    )
    plan = DetectPlan(
        attention=list(study.attention),
        seeds=list(range(study.first_seed, study.first_seed + study.seeds)),
        plugin=[str(Path(plugin).resolve()) for plugin in study.plugin],
        settings=settings,
        data_fingerprint=fingerprint(settings),
        skipped_images=[],
        built_in=built_in,
        notices=[line for line in found if line],
    )
    for line in plan.notices:
        say(line)
    return run_plan(
        location,
        plan,
        plan.read_data(),
        lambda: measure(settings, plan.attention),
        jobs=jobs,
        trust_plugins=trust_plugins,
        progress=progress,
        say=say,
    )


def run_settings(
    settings: DetectStudySettings, attention: str, seed: int, plugin: list[str]
) -> DetectTrainSettings:
    """Return the settings of one run of a study; kernel sizes are for modules that have one."""
    shared = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name != "data"}
    own: dict[str, Any] = {"attention": attention, "seed": seed, "plugin": plugin}
    if not parse_spec(attention)[0].startswith("eca"):
        own["kernel_sizes"] = None
    return DetectTrainSettings(**{**shared, **own})


def fingerprint(settings: DetectStudySettings) -> str:
    """Return a hash of the annotations, and of the names and sizes of the image files."""
    found = hashlib.blake2b(digest_size=16)
    for folder in read_folders(data_root(settings.data), settings):
        found.update(folder.file.read_bytes())
        for image in folder.images:
            size = (folder.folder / image["file_name"]).stat().st_size
            found.update(f"{image['file_name']} {size}\n".encode())
    return found.hexdigest()


def built_in_of(settings: DetectStudySettings, images: CocoFolder) -> dict[str, int]:
    """Return the attention modules that the backbone comes with, each kind's number."""
    if settings.model in list_models():
        return {}
    own = dataclasses.replace(
        settings, replace_attention=False, pretrained=False, weights=None, norm=None
    )
    with torch.random.fork_rng(devices=[]):
        detector = build_detector(run_settings(own, "none", 0, []), images)
    return count_built_in(detector.backbone.body)


def measure(settings: DetectStudySettings, attention: list[str]) -> list[Cost]:
    """Measure what each module costs in the detector, on real images, under these settings.

    Raises:
        UserError: a module fails in the detector.
    """
    images, _ = read_folders(data_root(settings.data), settings)
    assert settings.min_size is not None
    assert settings.max_size is not None

    def build(name: str) -> Any:
        try:
            detector = build_detector(run_settings(settings, name, 0, []), images)
            each = settings.batch_size // settings.devices
            check_batch_norms(detector.backbone, each, min(detector.arguments["min_size"]))
            return detector
        except UserError:
            raise
        except Exception as error:
            message = " ".join(str(error).split())[:200]
            raise UserError(
                f"attention module {name} fails in {settings.model}: {type(error).__name__}: {message}"
            ) from None

    return measure_detector_costs(
        {name: build(name) for name in attention},
        images,
        batch_size=settings.batch_size,
        min_size=settings.min_size[-1],
        max_size=settings.max_size,
        device=resolve_device(settings.device),
        precision=settings.precision,
        channels_last=settings.channels_last,
    )


def _resolved(settings: DetectStudySettings, say: Callable[[str], None]) -> DetectStudySettings:
    """Return settings in which nothing is left open: every ``auto`` is what it stands for here."""
    settings = check_settings(settings, say)
    device = resolve_device(settings.device)
    check_devices(settings.devices, device, settings.batch_size)
    return dataclasses.replace(
        settings,
        data=settings.data if settings.data == "shapes" else str(Path(settings.data).resolve()),
        device=str(device),
        precision=resolve_precision(settings.precision, device),  # type: ignore[arg-type]
    )


def _epoch(row: dict[str, float]) -> DetectionEpoch:
    return DetectionEpoch(
        epoch=int(row["epoch"]),
        train_loss=row.get("train_loss", float("nan")),
        figures={name: row[name] for name in row if name.startswith(("box_", "mask_"))},
        lr=row["lr"],
        seconds=row["seconds"],
    )
