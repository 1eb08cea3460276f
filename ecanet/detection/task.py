"""Training of detectors on folders in COCO's format, on one device or many."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from ecanet.config import DetectTrainSettings, Optimizer, Schedule, check_ranges
from ecanet.data.stream import ShardedOrder, stream
from ecanet.detection.batches import (
    DetectionBatch,
    TrainingImages,
    collate,
    shape_groups,
)
from ecanet.detection.dataset import CocoFolder, data_root
from ecanet.detection.detectors import create_detector
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
from ecanet.errors import UserError
from ecanet.models import check_attention
from ecanet.models.batch_check import check_batch_norms
from ecanet.models.built_in import count_built_in, describe_built_in
from ecanet.models.insert import parse_kernel_sizes
from ecanet.plugins import load_plugins
from ecanet.training.device import threads_kept
from ecanet.training.launch import begin, first_says, loader_workers
from ecanet.training.optim import lr_factor
from ecanet.training.optimizers import build_optimizer
from ecanet.training.run_folder import check_out
from ecanet.training.tracking import with_project
from ecanet.training.train import train_in_folder

Settings = TypeVar("Settings", bound=DetectTrainSettings)

# Peak learning rates of the published detectors, for 16 images (arXiv 1906.07155 and 1708.02002).
_LR = {"faster_rcnn": 0.02, "mask_rcnn": 0.02, "retinanet": 0.01}
_ADAMW_LR = 1e-4
_WARMUP_FROM = 0.001
# Settings that the weights of a checkpoint depend on.
_FIXED = {
    "data", "detector", "model", "attention", "kernel_sizes", "replace_attention", "norm", "width",
}  # fmt: skip
# What a detector is made of where neither a flag nor a file says it.
_DEFAULTS = {
    "detector": "mask_rcnn", "model": "eca_resnet50", "min_size": [800], "max_size": 1333,
    "width": 256, "anchor_size": 32,
}  # fmt: skip
# Arguments of create_detector that are settings, and those of other names there.
_ARGUMENTS = (
    "kind", "backbone", "attention", "kernel_sizes", "replace_attention", "min_size", "max_size",
    "width", "anchor_size", "proposals", "box_samples",
)  # fmt: skip
_SETTINGS = {"kind": "detector", "backbone": "model"}


@threads_kept()
def train_detector(
    data: str,
    out: Path,
    settings: DetectTrainSettings,
    *,
    accept_changes: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
    on_step: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train a detector and evaluate it after each epoch; go on if ``out`` has a run.

    ``out`` gets ``settings.json``, ``metrics.csv`` with a row an epoch, ``checkpoints/``, the weights
    ``last.safetensors`` and ``best.safetensors`` (highest box AP), and ``record.json`` at the end.

    Args:
        data: a folder that :class:`CocoFolder` reads, or ``shapes``.
        out: the run's folder; made if missing.
        settings: of the run.
        accept_changes: go on although settings differ from those the run began with.
        progress: show a progress bar.
        say: called with each line of news.
        on_epoch: called with each epoch's row of metrics.csv, in the first process.
        on_step: called after each step and each evaluation; what it raises ends the run there.

    Returns:
        The record: ``settings``, ``environment``, ``epochs`` (the rows of metrics.csv) and ``final``.

    Raises:
        UserError: anything the caller can put right.
        Preempted: SIGTERM came; the run was saved.
        OSError: the disk is full; the last checkpoint is intact.
    """
    settings = check_settings(settings, say)
    check_out(out)
    root = data_root(data)
    train_images, eval_images = read_folders(root, settings, say)
    fabric, settings = begin(settings)
    say_once = first_says(fabric, say)
    detector = build_detector(settings, train_images, say_once)
    each = settings.batch_size // fabric.world_size
    check_batch_norms(detector.backbone, each, min(detector.arguments["min_size"]))
    counts = count_built_in(detector.backbone.body)
    if built_in := describe_built_in(detector.arguments["backbone"], counts, compared=False):
        say_once(built_in)
    if settings.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    if settings.sync_batchnorm:
        detector = convert_sync_batchnorm(detector)
    check_attention(detector.backbone, min(detector.arguments["min_size"]))
    # The loader's workers do it, at the sizes drawn.
    detector.transform._skip_resize = True
    images = TrainingImages(
        train_images,
        masks=detector.arguments["kind"] == "mask_rcnn",
        flip=settings.flip,
        min_size=detector.arguments["min_size"],
        max_size=detector.arguments["max_size"],
        seed=settings.seed,
    )
    order = ShardedOrder(
        len(train_images) * settings.repeats, settings.batch_size, shuffle=True,
        seed=settings.seed, process=fabric.global_rank, processes=fabric.world_size,
        groups=shape_groups(train_images, settings.repeats),
    )  # fmt: skip
    workers, pin = loader_workers(settings), fabric.device.type == "cuda"
    default_lr = (
        _ADAMW_LR if settings.optimizer.name == "adamw" else _LR[detector.arguments["kind"]]
    )
    schedule = _schedule(settings, order.steps)

    def optimizer(lr: float) -> torch.optim.Optimizer:
        chosen = dataclasses.asdict(settings.optimizer) | {"lr": lr}
        return build_optimizer(detector, Optimizer(nesterov=False, **chosen))

    def evaluate(model: nn.Module) -> dict[str, float]:
        # One by one: in a batch, images are padded to the largest, and what is found depends on it.
        found = evaluate_detector(fabric, model, eval_images, 1, workers)
        return found.compute().row()

    evaluation = {
        name: getattr(settings, name) for name in ("precision", "channels_last", "ignore_exif")
    }

    def save(path: Path, tensors: dict[str, Tensor], row: dict[str, float]) -> None:
        measured = {name: value for name, value in row.items() if name.startswith(("box", "mask"))}
        further = {
            "epoch": str(int(row["epoch"]) + 1),
            "metrics": json.dumps(measured),
            EVALUATION_KEY: json.dumps(evaluation),
        }
        save_detector(path, detector, tensors, further)

    return train_in_folder(
        fabric,
        out,
        root,
        settings,
        fixed=_FIXED,
        model=detector,
        optimizer=optimizer,
        lr=settings.optimizer.lr or default_lr,
        lr_factor=lambda epoch: lr_factor(schedule, epoch, settings.epochs, _WARMUP_FROM),
        identity={
            **{name: getattr(settings, name) for name in sorted(_FIXED - {"data", "norm"})},
            "norm": detector.arguments["norm"],
            "class_names": detector.class_names,
            "category_ids": detector.category_ids,
        },
        order=order,
        batches=stream(images, order, workers, pin, collate),
        loss=_loss(fabric.device),
        evaluate=evaluate,
        best="box_AP",
        keep_epochs=settings.keep_epochs,
        save=save,
        line=_line,
        on_epoch=on_epoch,
        on_step=on_step,
        accept_changes=accept_changes,
        progress=progress,
        say=say,
    )


def build_detector(
    settings: DetectTrainSettings,
    images: CocoFolder,
    say: Callable[[str], None] = lambda line: None,
) -> Any:
    """Build the detector that ``settings`` describe for the classes of ``images``, and load weights.

    Raises:
        UserError: it cannot be built, or the weights do not fit.
    """
    settings = resolve_detector(settings)
    has_weights = bool(settings.pretrained or settings.backbone_weights or settings.weights)
    if settings.norm == "frozen" and not has_weights:
        raise UserError(
            "--norm frozen needs weights to begin with (--pretrained, --backbone-weights FILE or "
            "--weights FILE): from scratch the loss explodes; take --norm batch or group"
        )
    if settings.norm == "group" and settings.backbone_weights:
        raise UserError(
            "--norm group is for training from scratch: --backbone-weights are of batch norms"
        )
    arguments: dict[str, Any] = {
        name: getattr(settings, _SETTINGS.get(name, name)) for name in _ARGUMENTS
    }
    detector = create_detector(
        **arguments,
        num_classes=len(images.class_names),
        pretrained=settings.pretrained,
        norm=settings.norm or ("frozen" if has_weights else "batch"),
        frozen_stages=(
            int(has_weights) if settings.frozen_stages is None else settings.frozen_stages
        ),
        p6_from=_p6_from(settings),
        class_names=images.class_names,
        category_ids=images.category_ids,
    )
    if settings.backbone_weights:
        say(f"backbone: {load_backbone(detector, settings.backbone_weights)}")
    if settings.weights:
        report = load_into_detector(detector, settings.weights)
        contradictions = misfits(report)
        if contradictions:
            phrases = [p for p in report.problems() if p.split()[0] in contradictions]
            raise UserError(
                f"{settings.weights} does not fit these settings: {'; '.join(phrases[:3])}. Leave out the "
                "flags that differ from the file: it tells what it is of"
            )
        say(f"detector: {report}")
    return detector


def resolve_detector(
    settings: Settings, say: Callable[[str], None] = lambda line: None
) -> Settings:
    """Fill in what the settings leave open: from the file of ``weights``, or else the defaults.

    Raises:
        UserError: the file cannot be read, or is of no detector.
    """
    told: dict[str, Any] = {}
    if settings.weights:
        load_plugins(settings.plugin)
        arguments, _ = describe_detector(settings.weights)
        told = {_SETTINGS.get(name, name): value for name, value in arguments.items()}
    open_ones = {f.name for f in fields(settings) if getattr(settings, f.name) is None}
    taken = {
        name: value
        for name, value in told.items()
        if name in open_ones and name != "frozen_stages" and value is not None
    }
    # An attention module of another choice has other kernels, and another backbone other modules.
    if settings.attention not in (None, told.get("attention")):
        taken.pop("kernel_sizes", None)
    if settings.model not in (None, told.get("model")):
        taken.pop("attention", None)
    elif told.get("replace_attention"):
        taken["replace_attention"] = True
    if settings.detector == "retinanet":
        taken = {k: v for k, v in taken.items() if k not in ("proposals", "box_samples")}
    if "kernel_sizes" in taken:
        taken["kernel_sizes"] = ",".join(map(str, parse_kernel_sizes(taken["kernel_sizes"])))
    if isinstance(taken.get("min_size"), int):
        taken["min_size"] = [taken["min_size"]]
    if taken:
        what = ", ".join(f"{name} {value}" for name, value in taken.items())
        say(f"{settings.weights}: taken from it: {what}")
    defaults = {name: value for name, value in _DEFAULTS.items() if name in open_ones}
    filled: dict[str, Any] = defaults | taken
    return dataclasses.replace(settings, **filled)


def _p6_from(settings: DetectTrainSettings) -> Any:
    """Return where the level above the pyramid begins in the file of ``weights``; no setting says it."""
    if not settings.weights or settings.detector != "retinanet":
        return None
    return describe_detector(settings.weights)[0].get("p6_from")


def check_settings(settings: Settings, say: Callable[[str], None] = lambda line: None) -> Settings:
    """Refuse what cannot be run, before anything is written; fill in what is left open.

    Args:
        settings: of a run, or of all runs of a study.
        say: called with what was taken from a file of weights.

    Raises:
        UserError: one line that names the setting and what it takes.
    """
    settings = resolve_detector(settings, say)
    assert settings.min_size is not None
    assert settings.max_size is not None
    if not settings.min_size or min(settings.min_size) < 32:
        raise UserError(f"--min_size {settings.min_size}: give sizes from 32, such as 640,800")
    if settings.max_size < max(settings.min_size):
        raise UserError(f"--max_size {settings.max_size}: give at least the largest --min_size")
    check_ranges(settings)
    if settings.pretrained and settings.backbone_weights:
        raise UserError("--pretrained and --backbone-weights: give one of the two")
    return with_project(settings)


def read_folders(
    root: Path, settings: DetectTrainSettings, say: Callable[[str], None] = lambda line: None
) -> tuple[CocoFolder, CocoFolder]:
    """Return the images to train on and to evaluate on.

    Raises:
        UserError: they cannot be read, or not be used together or with these settings.
    """
    mask_library()  # refuses at once what the first evaluation would, hours later
    train = CocoFolder(
        root,
        settings.split,
        limit=settings.limit,
        keep_empty=settings.keep_empty,
        ignore_exif=settings.ignore_exif,
        say=say,
    )
    same = settings.eval_split == settings.split
    try:
        evaluated = CocoFolder(
            root,
            settings.eval_split,
            limit=settings.limit if same else None,
            keep_classes=train.class_names,
            ignore_exif=settings.ignore_exif,
            say=(lambda line: None) if same else say,
        )
    except UserError as error:
        if "has no annotations" not in str(error):
            raise
        raise UserError(
            f"{error}. To evaluate on the training images say --eval-split {settings.split}"
        ) from None
    if evaluated.category_ids != train.category_ids or evaluated.class_names != train.class_names:
        raise UserError(f"{train.file} and {evaluated.file} list other categories")
    if settings.detector == "mask_rcnn":
        for images in (train, evaluated):
            images.check_masks()
    count = len(train) * settings.repeats
    if settings.batch_size > count:
        raise UserError(
            f"--batch_size {settings.batch_size}: give a number from 1 to {count}, the images of an "
            "epoch"
        )
    return train, evaluated


def _schedule(settings: DetectTrainSettings, steps: int) -> Schedule:
    chosen, epochs = settings.schedule, settings.epochs
    milestones = chosen.milestones
    if milestones is None:
        milestones = [round(epochs * 8 / 12), round(epochs * 11 / 12)]
    return Schedule(chosen.name, chosen.warmup_steps / steps, milestones)


def _loss(device: torch.device) -> Any:
    """Return what the loop minimises: the sum of a detector's losses."""

    def loss(model: nn.Module, batch: DetectionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        losses = model(batch.images(device), batch.targets(device))
        value = sum(losses.values(), torch.zeros((), device=device))
        count = len(batch.sizes)
        parts = {f"{name.removeprefix('loss_')}_loss": v.detach() for name, v in losses.items()}
        sums = {name: count * part for name, part in {"loss": value.detach(), **parts}.items()}
        return value, {**sums, "images": torch.tensor(float(count))}

    return loss


def _line(row: dict[str, float], epochs: int) -> str:
    found = [
        f"{kind} AP {100 * row[f'{kind}_AP']:.1f} (AP50 {100 * row[f'{kind}_AP50']:.1f})"
        for kind in KIND_NAMES.values()
        if f"{kind}_AP" in row
    ]
    # Without a single finite step there is no loss.
    return (
        f"epoch {row['epoch'] + 1:.0f}/{epochs}: train loss {row.get('train_loss', float('nan')):.3f}, "
        f"{', '.join(found)}, {row['images_per_second']:.1f} images/s, "
        f"learning rate {row['lr']:.3g}"
    )
