"""Training and evaluation of classifiers on image folders of any size, on one device or many."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from timm.data import ImageNetInfo
from timm.layers import convert_sync_batchnorm
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from ecanet.config import EvaluateSettings, TrainSettings, with_lr
from ecanet.data.augment import normalize, with_flip
from ecanet.data.folder import left_out_line
from ecanet.data.image_lists import list_split, list_training
from ecanet.data.shards import ShardedImages
from ecanet.data.stream import Batch, ImageFiles, ImageList, ShardedOrder, stream
from ecanet.data.transforms import MEAN, STD, eval_transform, mixing, train_transform
from ecanet.errors import UserError, at_least
from ecanet.models import create_model
from ecanet.models.save import save_weights
from ecanet.models.weights import build_from_weights, load_weights
from ecanet.plugins import load_plugins
from ecanet.training.device import threads_kept
from ecanet.training.launch import begin, first_says, launch, loader_workers
from ecanet.training.loop import reduced
from ecanet.training.optimizers import build_optimizer
from ecanet.training.schedule import lr_factor
from ecanet.training.session import train_in_folder
from ecanet.training.tracking import with_project


@threads_kept()
def train_classifier(
    root: Path,
    out: Path,
    settings: TrainSettings,
    *,
    accept_changes: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train on ``root``/train and evaluate on ``root``/val after each epoch; go on if ``out`` has a run.

    ``out`` gets ``settings.json``, ``metrics.csv`` with a row an epoch, ``checkpoints/``, the weights
    ``last.safetensors`` and ``best.safetensors`` (highest top-1 on val), and ``record.json`` at the end.

    Args:
        root: folder with train/ and val/, and in each a folder per class.
        out: the run's folder; made if missing.
        settings: of the run.
        accept_changes: go on although settings differ from those the run began with.
        progress: show a progress bar.
        say: called with each line of news.

    Returns:
        The record: ``settings``, ``environment``, ``epochs`` (the rows of metrics.csv) and ``final``.

    Raises:
        UserError: anything the caller can put right.
        Preempted: SIGTERM came; the run was saved.
        OSError: the disk is full; the last checkpoint is intact.
    """
    settings = _checked(settings)
    lr = settings.optimizer.lr
    assert lr is not None
    train_images, val_images = list_training(root)
    check_batch(settings.batch_size, train_images)
    fabric, settings = begin(settings)
    say_once = first_says(fabric, say)
    if left_out := train_images.left_out + val_images.left_out:
        say_once(left_out_line(left_out))
    # Shards number their classes, which tells nothing of what is seen.
    class_names = [] if isinstance(train_images, ShardedImages) else train_images.classes
    augmentation = with_flip(settings.augmentation, class_names, say_once)
    settings = dataclasses.replace(settings, augmentation=augmentation)
    model = _build(settings, len(train_images.classes), say_once)
    transform = train_transform(settings.image_size, settings.augmentation)
    val_transform = eval_transform(settings.eval_size, settings.crop_share)
    loss = _loss(settings, len(train_images.classes), fabric.device)
    order = ShardedOrder(
        len(train_images), settings.batch_size, shuffle=True, seed=settings.seed,
        process=fabric.global_rank, processes=fabric.world_size,
    )  # fmt: skip
    files = ImageFiles(train_images, transform, settings.seed, settings.corrupt)
    workers = loader_workers(settings)
    val_files = ImageFiles(val_images, val_transform, settings.seed, settings.corrupt)

    def evaluate(model: nn.Module) -> dict[str, float]:
        measured = evaluate_model(
            fabric, model, val_files, settings.batch_size, workers, settings.channels_last, say
        )
        return {f"val_{name}": value for name, value in measured.items()}

    def save(path: Path, tensors: dict[str, Tensor], row: dict[str, float]) -> None:
        save_weights(
            path,
            tensors,
            model=settings.model,
            attention=settings.attention
            or ("eca" if settings.model.startswith("eca_") else "none"),
            num_classes=len(train_images.classes),
            further={"classes": json.dumps(train_images.classes)},
        )

    return train_in_folder(
        fabric,
        out,
        root,
        settings,
        fixed={"data", "model", "attention", "kernel_sizes"},
        model=model,
        optimizer=lambda lr: build_optimizer(model, dataclasses.replace(settings.optimizer, lr=lr)),
        lr=lr,
        lr_factor=lambda epoch: lr_factor(settings.schedule, epoch, settings.epochs),
        identity={
            "model": settings.model,
            "attention": settings.attention,
            "kernel_sizes": settings.kernel_sizes,
            "classes": train_images.classes,
        },
        order=order,
        batches=stream(files, order, workers, fabric.device.type == "cuda"),
        loss=loss,
        evaluate=evaluate,
        best="val_top1",
        save=save,
        line=_line,
        accept_changes=accept_changes,
        progress=progress,
        say=say,
    )


def evaluate_classifier(
    root: Path, settings: EvaluateSettings, say: Callable[[str], None] = lambda line: None
) -> dict[str, float]:
    """Evaluate weights on a split of ``root``, each image once, on one process or several.

    A model of ImageNet's 1000 classes is also evaluated on a folder that holds some of them, named by
    their WordNet ids: its answers are taken among all 1000.

    Returns:
        ``top1`` and ``top5`` (0..1), ``loss`` (cross-entropy in nats), ``images`` and
        ``images_per_second``.

    Raises:
        UserError: anything the caller can put right.
    """
    if bool(settings.weights) == settings.pretrained:
        raise UserError("which weights? Give --weights FILE, or --pretrained with --model NAME")
    if settings.pretrained and not settings.model:
        raise UserError("--pretrained needs --model NAME")
    if settings.eval_size < 8 or settings.batch_size < 1:
        raise UserError("give an --eval_size from 8 and a --batch_size from 1")
    images = list_split(root, settings.split)
    load_plugins(settings.plugin)
    choice = {
        name: value
        for name in ("model", "attention", "kernel_sizes")
        if (value := getattr(settings, name)) is not None
    }
    if settings.weights:
        model = build_from_weights(settings.weights, **choice)
    else:
        model = create_model(choice.pop("model"), pretrained=True, **choice)
    fabric = launch(settings)
    if images.left_out:
        first_says(fabric, say)(left_out_line(images.left_out))
    images = _with_labels_of(model, images, settings)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model = fabric.to_device(model)
    files = ImageFiles(
        images, eval_transform(settings.eval_size, settings.crop_share), 0, settings.corrupt
    )
    began = time.perf_counter()
    measured = evaluate_model(
        fabric,
        model,
        files,
        settings.batch_size,
        loader_workers(settings),
        settings.channels_last,
        say=say,
    )
    seconds = time.perf_counter() - began
    return {**measured, "images": len(images), "images_per_second": len(images) / seconds}


def _with_labels_of(model: nn.Module, images: ImageList, settings: EvaluateSettings) -> ImageList:
    """Return the images with the labels that the model knows their classes by."""
    model.eval()  # in training mode a pass would change batch norm's statistics
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, settings.eval_size, settings.eval_size)).shape[1]
    if outputs == len(images.classes):
        return images
    known = ImageNetInfo("imagenet-1k").label_names()
    if outputs != len(known) or not set(images.classes) <= set(known):
        raise UserError(
            f"the model tells {outputs} classes apart and {images.root / settings.split} holds "
            f"{len(images.classes)}: give the data it was trained for"
        )
    number = {name: label for label, name in enumerate(known)}
    labels = [number[images.classes[label]] for label in images.labels]
    return dataclasses.replace(images, labels=labels, classes=list(known))


def evaluate_model(
    fabric: Fabric,
    model: nn.Module,
    files: ImageFiles,
    batch_size: int,
    workers: int,
    channels_last: bool,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """Return ``loss`` (cross-entropy in nats), ``top1`` and ``top5`` (0..1) over all of ``files``.

    Exact on any number of processes: each image is counted once.
    """
    order = ShardedOrder(
        len(files.images), batch_size, shuffle=False,
        process=fabric.global_rank, processes=fabric.world_size,
    )  # fmt: skip
    mean, std = _statistics(fabric.device)
    sums = torch.zeros(4, dtype=torch.float64, device=fabric.device)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in stream(files, order, workers, fabric.device.type == "cuda"):
            for file in batch.corrupt:
                say(f"cannot be decoded, another image stands in for it: {file}")
            images, labels = fabric.to_device((batch.images, batch.labels))
            with fabric.autocast():
                logits = model(normalize(images, mean, std, channels_last)).float()
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            hits = _hits(logits, labels)
            sums += torch.stack([loss, *hits, torch.tensor(float(len(labels)))]).to(sums)
    model.train(was_training)
    loss, top1, top5, images = reduced(fabric, sums, "sum").tolist()
    return {"loss": loss / images, "top1": top1 / images, "top5": top5 / images}


def check_batch(batch_size: int, images: ImageList) -> None:
    """Refuse a batch that the images do not fill.

    Raises:
        UserError: there are fewer images.
    """
    if not 1 <= batch_size <= len(images):
        raise UserError(
            f"--batch_size {batch_size}: give a number from 1 to {len(images)}, the images of train"
        )


def _checked(settings: TrainSettings) -> TrainSettings:
    """Refuse what cannot be run, before anything is read or written."""
    at_least(1, epochs=settings.epochs)
    at_least(8, image_size=settings.image_size, eval_size=settings.eval_size)
    at_least(1, save_every=settings.save_every, devices=settings.devices, threads=settings.threads)
    at_least(0, workers=settings.workers, rollbacks=settings.rollbacks)
    optimizer = with_lr(settings.optimizer)
    if not optimizer.lr or not optimizer.lr > 0:
        raise UserError(f"--optimizer.lr {optimizer.lr}: give a number above 0")
    return with_project(dataclasses.replace(settings, optimizer=optimizer))


def _build(settings: TrainSettings, num_classes: int, say: Callable[[str], None]) -> nn.Module:
    kwargs: dict[str, Any] = {"drop_rate": settings.drop_rate} if settings.drop_rate else {}
    if not settings.pretrained and not settings.weights:
        kwargs["image_size"] = settings.image_size  # small images get a stem for them
    model = create_model(
        settings.model,
        num_classes=num_classes,
        attention=settings.attention,
        kernel_sizes=settings.kernel_sizes,
        pretrained=settings.pretrained,
        **kwargs,
    )
    if settings.weights:
        say(str(load_weights(model, settings.weights)))
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if settings.sync_batchnorm:
        # timm's: torch's would lose the activations that timm's batch norms hold.
        model = convert_sync_batchnorm(model)
    if settings.compile:
        model.compile()
    return model


def _loss(settings: TrainSettings, num_classes: int, device: torch.device) -> Any:
    """Return what the loop minimises: a function of the model and a batch."""
    mix = mixing(settings.augmentation, num_classes)
    criterion: nn.Module
    if settings.loss == "bce":
        # Its smoothing is for labels: mixed targets are taken as they are, as timm does.
        criterion = BinaryCrossEntropy(smoothing=settings.label_smoothing)
    else:
        criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    mean, std = _statistics(device)

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        images = normalize(
            batch.images.to(device, non_blocking=True), mean, std, settings.channels_last
        )
        labels = targets = batch.labels.to(device, non_blocking=True)
        if mix is not None:
            images, targets = mix(images, labels)
        logits = model(images).float()
        value = criterion(logits, targets)
        top1, top5 = _hits(logits.detach(), labels)
        count = torch.tensor(float(len(labels)))
        return value, {
            "loss": value.detach() * len(labels),
            "top1": top1,
            "top5": top5,
            "images": count,
        }

    return loss


def _hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How many labels are the highest logit, and among the five highest."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return best[:, 0].sum(), best.any(dim=1).sum()


def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)


def _line(row: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {row['epoch'] + 1:.0f}/{epochs}: train loss {row['train_loss']:.4f}, "
        f"val top-1 {100 * row['val_top1']:.2f} %, top-5 {100 * row['val_top5']:.2f} %, "
        f"{row['images_per_second']:.0f} images/s, learning rate {row['lr']:.3g}"
    )
