"""Training of detectors on folders in COCO's format, on one device or many."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from ecanet.config import DetectionSettings, DetectorShape, Optimizer, Schedule
from ecanet.detection.batches import DetectionBatch, TrainingImages, collate, shape_groups
from ecanet.detection.dataset import CocoFolder, data_root
from ecanet.detection.detectors import DetectorSpec, create_detector
from ecanet.detection.evaluation import KIND_NAMES, mask_library
from ecanet.detection.inference import evaluate_detector
from ecanet.detection.weights import (
    EVALUATION_KEY,
    describe_detector,
    load_backbone,
    load_into_detector,
    misfits,
    save_detector,
)
from ecanet.errors import UserError, as_user_error
from ecanet.files import absolute
from ecanet.models import check_attention, list_models
from ecanet.models.batch_check import check_batch_norms
from ecanet.models.built_in import count_built_in, describe_built_in
from ecanet.models.insert import parse_kernel_sizes
from ecanet.models.weights.hub import resolve_weights
from ecanet.models.weights.match import LoadReport
from ecanet.plugins import load_plugins
from ecanet.record import Row
from ecanet.training.device import check_devices, resolve_device, resolve_precision
from ecanet.training.launch import loader_workers, sharded_loader
from ecanet.training.optim import build_optimizer, few_steps, lr_factor, scaled_lr

log = logging.getLogger(__name__)

# Peak learning rates of the published detectors, for 16 images (arXiv 1906.07155 and 1708.02002).
_LR = {"faster_rcnn": 0.02, "mask_rcnn": 0.02, "retinanet": 0.01}
_ADAMW_LR = 1e-4
_WARMUP_FROM = 0.001
# What a detector is made of where neither a flag nor a file says it.
_DEFAULTS = {
    "detector": "mask_rcnn", "model": "eca_resnet50", "min_size": [800], "max_size": 1333,
    "width": 256, "anchor_size": 32,
}  # fmt: skip
# Fields of DetectorSpec that have another name among the settings.
_SETTINGS = {"kind": "detector", "backbone": "model"}


class DetectionTask:
    """A detector on its images; see :class:`ecanet.training.task.Task`.

    Its runs are judged by their last epoch, so that the evaluation images choose nothing.
    """

    best = "box_AP"
    select = "best"
    tests = predicts = False
    predictions = None

    def __init__(self, settings: DetectionSettings, data: DetectionData, fabric: Fabric) -> None:
        self.settings, self.fabric = settings, fabric
        train, self.eval_images = data.folders
        self.detector = self.model = build_detector(settings, train)
        arguments = self.detector.arguments
        each = settings.images_per_norm(fabric.world_size)
        check_batch_norms(self.detector.backbone, each, min(arguments["min_size"]))
        self.built_in = count_built_in(self.detector.backbone.body)
        if settings.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        if settings.sync_batchnorm:
            self.model = convert_sync_batchnorm(self.model)
        check_attention(self.model.backbone, min(arguments["min_size"]))
        # The loader's workers resize, to the sizes drawn.
        self.model.transform._skip_resize = True
        images = TrainingImages(
            train,
            masks=arguments["kind"] == "mask_rcnn",
            flip=settings.flip,
            min_size=arguments["min_size"],
            max_size=arguments["max_size"],
            seed=settings.seed,
        )
        self.batches = sharded_loader(
            fabric,
            settings,
            images,
            len(train) * settings.repeats,
            shuffle=True,
            groups=shape_groups(train, settings.repeats),
            collate=collate,
        )
        chosen, epochs = settings.schedule, settings.epochs
        milestones = chosen.milestones
        if milestones is None:
            milestones = [round(epochs * 8 / 12), round(epochs * 11 / 12)]
        self.schedule = Schedule(chosen.name, chosen.warmup_steps / self.batches.steps, milestones)
        self.identity = {
            **{f.name: getattr(settings, f.name) for f in fields(DetectorShape)},
            "norm": arguments["norm"],
            "class_names": self.detector.class_names,
            "category_ids": self.detector.category_ids,
        }

    @staticmethod
    def read(settings: DetectionSettings, *, alone: bool = False) -> DetectionData:
        """Read the annotations of the images to train on and to evaluate on.

        Raises:
            UserError: they cannot be read, or not be used together or with these settings.
        """
        return DetectionData(settings)

    @staticmethod
    def resolve(
        settings: DetectionSettings, data: DetectionData, *, alone: bool = False
    ) -> DetectionSettings:
        """Return settings in which nothing is left open; those that are resolved stay as they are.

        Raises:
            UserError: one line that names the setting and what it takes.
        """
        if not (alone or settings.model or settings.weights):
            # Of a study, whose modules replace the one that eca_resnet50 has by its name.
            settings = dataclasses.replace(settings, model="resnet50")
        settings = resolve_detector(settings)
        assert settings.min_size is not None
        assert settings.max_size is not None
        if not settings.min_size or min(settings.min_size) < 32:
            raise UserError(f"--min-size {settings.min_size}: give sizes from 32, such as 640,800")
        if settings.max_size < max(settings.min_size):
            raise UserError(f"--max-size {settings.max_size}: give at least the largest --min-size")
        if settings.pretrained and settings.backbone_weights:
            raise UserError("--pretrained and --backbone-weights: give only one")
        device = resolve_device(settings.device)
        check_devices(settings.devices, device, settings.batch_size, settings.sync_batchnorm)
        adamw = settings.optimizer.name == "adamw"
        lr = settings.optimizer.lr or (_ADAMW_LR if adamw else _LR[str(settings.detector)])
        return dataclasses.replace(
            settings,
            data=settings.data if settings.data == "shapes" else str(absolute(settings.data)),
            weights=resolve_weights(settings.weights),
            backbone_weights=resolve_weights(settings.backbone_weights),
            threads=settings.threads or (2 if alone else 1),
            device=str(device),
            precision=resolve_precision(settings.precision, device),  # type: ignore[arg-type]
            lr_batch_size=16 if settings.lr_batch_size == "auto" else settings.lr_batch_size,
            optimizer=dataclasses.replace(settings.optimizer, lr=lr),
        )

    @staticmethod
    def notices(
        settings: DetectionSettings, data: DetectionData, *, compared: bool = False
    ) -> list[str]:
        """Return what a user should know of resolved settings before the first step, with what to do."""
        built_in = describe_built_in(
            str(settings.model),
            DetectionTask.built_in_of(settings, data),
            replaced=settings.replace_attention,
            compared=compared,
        )
        images = len(data.folders[0]) * settings.repeats
        few = few_steps(images, settings.batch_size, settings.epochs)
        return [line for line in (built_in, few if compared else None) if line]

    @staticmethod
    def built_in_of(settings: DetectionSettings, data: DetectionData) -> dict[str, int]:
        """Return the attention modules that the backbone comes with, the number of each kind."""
        if settings.model in list_models():
            return {}
        as_it_comes = dataclasses.replace(
            settings, attention="none", kernel_sizes=None, replace_attention=False,
            pretrained=False, weights=None, backbone_weights=None, norm=None,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            detector = build_detector(as_it_comes, data.folders[0])
        return count_built_in(detector.backbone.body)

    @staticmethod
    def majority(data: DetectionData) -> float | None:
        """Return None: there is no answer that is right for all images."""
        return None

    @staticmethod
    def check(settings: DetectionSettings, data: DetectionData) -> None:
        """Build the detector, with the module in its backbone.

        Raises:
            UserError: it cannot be built.
        """
        with (
            torch.random.fork_rng(devices=[]),
            as_user_error(f"attention module {settings.attention} fails in {settings.model}"),
        ):
            detector = build_detector(settings, data.folders[0])
            each = settings.images_per_norm(settings.devices)
            check_batch_norms(detector.backbone, each, min(detector.arguments["min_size"]))

    def optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        self.peak = scaled_lr(settings.optimizer.lr, settings.batch_size, settings.lr_batch_size)  # type: ignore[arg-type]
        chosen = dataclasses.asdict(settings.optimizer) | {"lr": self.peak}
        return build_optimizer(self.model, Optimizer(nesterov=False, **chosen), self.fabric.device)

    def lr(self, epoch: float) -> float:
        return self.peak * lr_factor(self.schedule, epoch, self.settings.epochs, _WARMUP_FROM)

    def tuned(self) -> AbstractContextManager[None]:
        return nullcontext()  # its images have many sizes

    def loss(self, model: nn.Module, batch: DetectionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        device = self.fabric.device
        losses = model(batch.images(device), batch.targets(device))
        value = sum(losses.values(), torch.zeros((), device=device))
        count = len(batch.sizes)
        parts = {f"{name.removeprefix('loss_')}_loss": v.detach() for name, v in losses.items()}
        sums = {name: count * part for name, part in {"loss": value.detach(), **parts}.items()}
        return value, {**sums, "images": torch.full((), count, device=device)}

    def evaluate(self, model: nn.Module) -> Row:
        # One by one: in a batch, images are padded to the largest, and what is found depends on it.
        workers = loader_workers(self.settings)
        evaluator = evaluate_detector(self.fabric, model, self.eval_images, 1, workers)
        return evaluator.compute().row()

    def final(self, model: nn.Module, rows: list[Row], weights: Path | None) -> Row:
        kept = ("epoch", "box_", "mask_")
        return {name: value for name, value in rows[-1].items() if name.startswith(kept)}

    def save(self, path: Path, tensors: dict[str, Tensor], row: Row) -> None:
        evaluation = ("precision", "channels_last", "ignore_exif")
        measured = {name: value for name, value in row.items() if name.startswith(("box", "mask"))}
        metadata = {
            "epoch": str(int(row["epoch"]) + 1),
            "metrics": json.dumps(measured),
            EVALUATION_KEY: json.dumps({n: getattr(self.settings, n) for n in evaluation}),
        }
        save_detector(path, self.detector, tensors, metadata)

    def describe(self, row: Row) -> str:
        found = [
            f"{kind} AP {100 * row[f'{kind}_AP']:.1f} (AP50 {100 * row[f'{kind}_AP50']:.1f})"
            for kind in KIND_NAMES.values()
            if f"{kind}_AP" in row
        ]
        # Without a single finite step there is no loss.
        return (
            f"epoch {row['epoch'] + 1:.0f}/{self.settings.epochs}: "
            f"train loss {row.get('train_loss', float('nan')):.3f}, {', '.join(found)}, "
            f"{row['images_per_second']:.1f} images/s, learning rate {row['lr']:.3g}"
        )


class DetectionData:
    """The annotations of a detector's images; the images are read as they are needed."""

    skipped: tuple[str, ...] = ()

    def __init__(self, settings: DetectionSettings) -> None:
        log.info("reading %s", settings.data)
        mask_library()  # refuses at once what the first evaluation would, hours later
        settings = resolve_detector(settings)
        root = data_root(settings.data)
        train = CocoFolder(
            root,
            settings.split,
            limit=settings.limit,
            keep_empty=settings.keep_empty,
            ignore_exif=settings.ignore_exif,
        )
        same = settings.eval_split == settings.split
        try:
            evaluated = CocoFolder(
                root,
                settings.eval_split,
                limit=settings.limit if same else None,
                keep_classes=train.class_names,
                ignore_exif=settings.ignore_exif,
            )
        except UserError as error:
            if "has no annotations" not in str(error):
                raise
            raise UserError(
                f"{error}. To evaluate on the training images, give --eval-split {settings.split}"
            ) from None
        lists = [(images.category_ids, images.class_names) for images in (train, evaluated)]
        if lists[0] != lists[1]:
            raise UserError(f"{train.file} and {evaluated.file} list different categories")
        if not any(evaluated.objects):
            raise UserError(f"{evaluated.file} has no objects to evaluate on: choose --eval-split")
        if settings.detector == "mask_rcnn":
            train.check_masks()
            evaluated.check_masks()
        count = len(train) * settings.repeats
        if settings.batch_size > count:
            raise UserError(
                f"--batch-size {settings.batch_size}: give a number from 1 to {count}, the images of "
                "an epoch"
            )
        self.folders = train, evaluated

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the annotations, and of the names and sizes of the image files."""
        found = hashlib.blake2b(digest_size=16)
        for folder in self.folders:
            found.update(folder.file.read_bytes())
            for image in folder.images:
                size = (folder.folder / image["file_name"]).stat().st_size
                found.update(f"{image['file_name']} {size}\n".encode())
        return found.hexdigest()


def build_detector(settings: DetectionSettings, images: CocoFolder) -> Any:
    """Build the detector that ``settings`` describe for the classes of ``images``, and load weights.

    Raises:
        UserError: it cannot be built, or the weights do not fit.
    """
    settings = resolve_detector(settings)
    has_weights = bool(settings.pretrained or settings.backbone_weights or settings.weights)
    if settings.norm == "frozen" and not has_weights:
        raise UserError(
            "--norm frozen needs weights to begin with (--pretrained, --backbone-weights FILE or "
            "--weights FILE): from scratch the loss diverges; use --norm batch or group"
        )
    if settings.norm == "group" and settings.backbone_weights:
        raise UserError(
            "--norm group is for training from scratch: --backbone-weights are for batch norm"
        )
    names = [one.name for one in fields(DetectorSpec)]
    spec: dict[str, Any] = {
        name: getattr(settings, _SETTINGS.get(name, name), None) for name in names
    }
    spec["num_classes"] = len(images.class_names)
    spec["norm"] = settings.norm or ("frozen" if has_weights else "batch")
    if settings.frozen_stages is None:
        spec["frozen_stages"] = int(has_weights)
    if settings.weights and settings.detector == "retinanet":
        # No setting says where the level above the pyramid begins: the file does.
        spec["p6_from"] = describe_detector(settings.weights)[0].get("p6_from")
    detector = create_detector(
        **spec,
        pretrained=settings.pretrained,
        class_names=images.class_names,
        category_ids=images.category_ids,
    )
    if settings.backbone_weights:
        _log_report("backbone", load_backbone(detector, settings.backbone_weights))
    if settings.weights:
        report = load_into_detector(detector, settings.weights)
        contradictions = misfits(report)
        if contradictions:
            phrases = [p for p in report.problems() if p.split()[0] in contradictions]
            raise UserError(
                f"{settings.weights} does not fit these settings: {'; '.join(phrases[:3])}. Leave out the "
                "flags that differ from the file, which describes its detector"
            )
        _log_report("detector", report)
    return detector


def _log_report(what: str, report: LoadReport) -> None:
    for line in str(report).splitlines():
        log.info(f"{what}: {line}")


def resolve_detector(settings: DetectionSettings) -> DetectionSettings:
    """Fill in what the settings leave open: from the file of ``weights``, or else the defaults.

    Raises:
        UserError: the file cannot be read, or is of no detector.
    """
    stored: dict[str, Any] = {}
    if settings.weights:
        load_plugins(settings.plugin)
        arguments, _ = describe_detector(settings.weights)
        stored = {_SETTINGS.get(name, name): value for name, value in arguments.items()}
    open_ones = {f.name for f in fields(settings) if getattr(settings, f.name) is None}
    taken = {
        name: value
        for name, value in stored.items()
        if name in open_ones and name != "frozen_stages" and value is not None
    }
    # An attention module of another choice has other kernels, and another backbone other modules.
    if settings.attention not in (None, stored.get("attention")):
        taken.pop("kernel_sizes", None)
    if settings.model not in (None, stored.get("model")):
        taken.pop("attention", None)
    elif stored.get("replace_attention"):
        taken["replace_attention"] = True
    if settings.detector == "retinanet":
        taken = {k: v for k, v in taken.items() if k not in ("proposals", "box_samples")}
    if "kernel_sizes" in taken:
        taken["kernel_sizes"] = ",".join(map(str, parse_kernel_sizes(taken["kernel_sizes"])))
    if isinstance(taken.get("min_size"), int):
        taken["min_size"] = [taken["min_size"]]
    if taken:
        what = ", ".join(f"{name} {value}" for name, value in taken.items())
        log.info(f"read from {settings.weights}: {what}")
    defaults = {name: value for name, value in _DEFAULTS.items() if name in open_ones}
    filled: dict[str, Any] = defaults | taken
    return dataclasses.replace(settings, **filled)
