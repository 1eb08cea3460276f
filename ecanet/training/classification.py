"""Training and evaluation of classifiers on image folders of any size, on one device or many."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from timm.data import ImageNetInfo
from timm.layers import convert_sync_batchnorm
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from ecanet.config import EvaluateSettings, TrainSettings, check_ranges, with_lr
from ecanet.data.augment import normalize, with_flip
from ecanet.data.folder import left_out_line
from ecanet.data.listing import list_evaluated, list_training
from ecanet.data.preprocessing import Preprocessing, class_names
from ecanet.data.shards import ShardedImages
from ecanet.data.stream import Batch, ImageFiles, ImageList, ShardedOrder, stream
from ecanet.data.transforms import mixing, train_transform
from ecanet.errors import UserError, at_least, first_of
from ecanet.models import check_attention, create_model
from ecanet.models.batch_check import check_batch_norms
from ecanet.models.built_in import count_built_in, describe_built_in
from ecanet.models.inputs import input_preprocessing
from ecanet.models.weights.files import read_checkpoint
from ecanet.models.weights.load import build_from_weights, load_weights, read_stem
from ecanet.models.weights.save import save_weights
from ecanet.plugins import load_plugins
from ecanet.training.device import full_float32, resolve_precision, threads_kept
from ecanet.training.launch import begin, first_says, launch, loader_workers
from ecanet.training.optim import few_steps, lr_factor
from ecanet.training.optimizers import build_optimizer
from ecanet.training.run_folder import check_out
from ecanet.training.tracking import with_project
from ecanet.training.train import train_in_folder
from ecanet.training.trainer import reduced


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
    check_out(out)
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
    each = settings.batch_size // fabric.world_size
    check_batch_norms(model, each, settings.image_size)
    steps = few_steps(len(train_images), settings.batch_size, settings.epochs)
    if steps:
        say_once(steps)
    transform = train_transform(settings.image_size, settings.augmentation)
    preprocessing = Preprocessing.of_crop(settings.eval_size, settings.crop_share)
    loss = _loss(settings, len(train_images.classes), preprocessing, fabric.device)
    order = ShardedOrder(
        len(train_images), settings.batch_size, shuffle=True, seed=settings.seed,
        process=fabric.global_rank, processes=fabric.world_size,
    )  # fmt: skip
    files = ImageFiles(train_images, transform, settings.seed, settings.corrupt)
    workers = loader_workers(settings)
    # A figure is of the images that there are: none stands in for another.
    skip = "skip" if settings.corrupt == "replace" else settings.corrupt
    val_files = ImageFiles(val_images, preprocessing, settings.seed, skip)

    def evaluate(model: nn.Module) -> dict[str, float]:
        measured = evaluate_model(
            fabric,
            model,
            val_files,
            preprocessing,
            settings.batch_size,
            workers,
            settings.channels_last,
            say=say,
        )
        return {f"val_{name}": measured[name] for name in ("loss", "top1", "top5")}

    def save(path: Path, tensors: dict[str, Tensor], row: dict[str, float]) -> None:
        save_weights(
            path,
            tensors,
            model=settings.model,
            attention=settings.attention
            or ("eca" if settings.model.startswith("eca_") else "none"),
            num_classes=len(train_images.classes),
            model_args={"replace_attention": True} if settings.replace_attention else {},
            preprocessing=preprocessing,
            classes=train_images.classes,
        )

    return train_in_folder(
        fabric,
        out,
        root,
        settings,
        fixed={"data", "model", "attention", "kernel_sizes", "replace_attention"},
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

    Images are prepared as the weights say, and classes are matched by name, so that some of them, or
    another order, are scored right. A model of ImageNet's 1000 classes is also evaluated on a folder that
    holds some of them, named by their WordNet ids: its answers are taken among all 1000.

    Args:
        root: folder with a folder per class, or tar shards, in each split; or digits, cifar10, cifar100.
        settings: of the evaluation.
        say: called with each line of news: what is assumed, and what flags change.

    Returns:
        ``top1`` and ``top5`` (0..1), ``loss`` (cross-entropy in nats), ``images`` and
        ``images_per_second``.

    Raises:
        UserError: anything the caller can put right.
    """
    if bool(settings.weights) == settings.pretrained:
        raise UserError("which weights? Give --weights FILE, or --pretrained with --model NAME")
    check_ranges(settings)
    if settings.pretrained and not settings.model:
        raise UserError("--pretrained needs --model NAME")
    at_least(1, batch_size=settings.batch_size)
    images = list_evaluated(root, settings.split)
    load_plugins(settings.plugin)
    choice = {
        name: value
        for name in ("model", "attention", "kernel_sizes")
        if (value := getattr(settings, name)) is not None
    }
    metadata: dict[str, str] = {}
    if settings.weights:
        model = build_from_weights(settings.weights, **choice)
        metadata = read_checkpoint(settings.weights).metadata
        if getattr(model, "num_classes", None) == 0:
            raise UserError(
                f"{settings.weights} is a backbone, without a classifier: give the weights of a classifier"
            )
    else:
        model = create_model(choice.pop("model"), pretrained=True, **choice)
    fabric = launch(settings)
    say_once = first_says(fabric, say)
    if images.left_out:
        say_once(left_out_line(images.left_out))
    preprocessing = input_preprocessing(
        model,
        settings.model or metadata.get("model"),
        metadata,
        pretrained=settings.pretrained,
        eval_size=settings.eval_size,
        crop_share=settings.crop_share,
        interpolation=settings.interpolation,
        mean=settings.mean,
        std=settings.std,
        say=say_once,
    )
    label_of = _label_of(images, metadata, _outputs(model, preprocessing), say_once)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model = fabric.to_device(model)
    files = ImageFiles(images, preprocessing, 0, settings.corrupt)
    began = time.perf_counter()
    measured = evaluate_model(
        fabric,
        model,
        files,
        preprocessing,
        settings.batch_size,
        loader_workers(settings),
        settings.channels_last,
        label_of=label_of,
        in_float32=resolve_precision(settings.precision, fabric.device) == "float32",
        say=say,
    )
    seconds = time.perf_counter() - began
    return {**measured, "images_per_second": len(images) / seconds}


def _outputs(model: nn.Module, preprocessing: Preprocessing) -> int:
    """Return how many classes a model tells apart."""
    size = preprocessing.size
    model.eval()  # in training mode a pass would change batch norm's statistics
    with torch.no_grad():
        return model(torch.zeros(1, preprocessing.channels, size, size)).shape[1]


def _label_of(
    images: ImageList, metadata: Mapping[str, str], outputs: int, say: Callable[[str], None]
) -> list[int]:
    """Return which of a model's classes each class of the images is."""
    if isinstance(images, ShardedImages):  # their labels are the model's numbers already
        if len(images.classes) > outputs:
            raise UserError(
                f"the shards in {images.root} have labels up to {len(images.classes) - 1}, and the model "
                f"tells {outputs} classes apart"
            )
        return list(range(outputs))
    names = class_names(metadata, outputs)
    present = [images.classes[label] for label in sorted(set(images.labels))]
    known = list(names or [])
    if not set(present) <= set(known) and outputs == 1000:
        wordnet = ImageNetInfo("imagenet-1k").label_names()
        known = wordnet if set(present) <= set(wordnet) else known
    if set(present) <= set(known):
        number = {name: label for label, name in enumerate(known)}
        return [number.get(name, -1) for name in images.classes]
    if names:
        unknown = [name for name in present if name not in names]
        raise UserError(
            f"{images.root} holds classes that the weights do not know: {first_of(unknown, 5)}; they know "
            f"{first_of(names, 5)}. Give the folders the names they had in training"
        )
    if outputs != len(images.classes):
        raise UserError(
            f"the model tells {outputs} classes apart and {images.root} holds "
            f"{len(images.classes)}: give the data it was trained for"
        )
    say("the weights do not name their classes: taken in the order of the folders' names")
    return list(range(outputs))


def evaluate_model(
    fabric: Fabric,
    model: nn.Module,
    files: ImageFiles,
    preprocessing: Preprocessing,
    batch_size: int,
    workers: int,
    channels_last: bool,
    *,
    label_of: Sequence[int] | None = None,
    in_float32: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """Return ``loss`` (cross-entropy in nats), ``top1`` and ``top5`` (0..1) over ``images`` of ``files``.

    Exact on any number of processes: each image that can be decoded is counted once.

    Args:
        files: images that have been through ``preprocessing``.
        label_of: the model's number for each class of the files; by default the same.
        in_float32: compute in float32, without TF32, whatever the precision of ``fabric``.

    Raises:
        UserError: an image cannot be decoded, unless ``files`` skip such; or none can.
    """
    order = ShardedOrder(
        len(files), batch_size, shuffle=False,
        process=fabric.global_rank, processes=fabric.world_size,
    )  # fmt: skip
    mean, std = preprocessing.statistics(fabric.device)
    number = None if label_of is None else torch.tensor(label_of, device=fabric.device)
    sums = torch.zeros(4, dtype=torch.float64, device=fabric.device)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in stream(files, order, workers, fabric.device.type == "cuda"):
            images, labels = batch.images, batch.labels
            for file in batch.corrupt:
                say(f"cannot be decoded, left out: {file}")
            if batch.corrupt:
                images, labels = images[labels >= 0], labels[labels >= 0]
            images, labels = fabric.to_device((images, labels))
            labels = labels if number is None else number[labels]
            with full_float32(fabric.device) if in_float32 else fabric.autocast():
                logits = model(normalize(images, mean, std, channels_last)).float()
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            hits = _hits(logits, labels)
            sums += torch.stack([loss, *hits, torch.tensor(float(len(labels)))]).to(sums)
    model.train(was_training)
    loss, top1, top5, images = reduced(fabric, sums, "sum").tolist()
    if not images:
        raise UserError(f"{files.images.root}: none of the images can be decoded")
    return {
        "loss": loss / images,
        "top1": top1 / images,
        "top5": top5 / images,
        "images": images,
    }


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
    check_ranges(settings)
    at_least(8, image_size=settings.image_size, eval_size=settings.eval_size)
    return with_project(dataclasses.replace(settings, optimizer=with_lr(settings.optimizer)))


def _build(settings: TrainSettings, num_classes: int, say: Callable[[str], None]) -> nn.Module:
    kwargs: dict[str, Any] = {"drop_rate": settings.drop_rate} if settings.drop_rate else {}
    if settings.weights:
        stem = read_stem(settings.weights, settings.model)
        if stem:
            say(f"the stem is that of {settings.weights}: {stem}")
        kwargs |= stem
    elif not settings.pretrained:
        kwargs["image_size"] = settings.image_size  # small images get a stem for them
    model = create_model(
        settings.model,
        num_classes=num_classes,
        attention=settings.attention,
        kernel_sizes=settings.kernel_sizes,
        pretrained=settings.pretrained,
        replace_attention=settings.replace_attention,
        **kwargs,
    )
    built_in = describe_built_in(settings.model, count_built_in(model), compared=False)
    if built_in:
        say(built_in)
    if settings.weights:
        for line in str(load_weights(model, settings.weights, new_classes=True)).splitlines():
            say(line)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if settings.sync_batchnorm:
        # timm's: torch's would lose the activations that timm's batch norms hold.
        model = convert_sync_batchnorm(model)
    check_attention(model, settings.image_size)
    if settings.compile:
        model.compile()
    return model


def _loss(
    settings: TrainSettings, num_classes: int, preprocessing: Preprocessing, device: torch.device
) -> Any:
    """Return what the loop minimises: a function of the model and a batch."""
    mix = mixing(settings.augmentation, num_classes)
    criterion: nn.Module
    if settings.loss == "bce":
        # Its smoothing is for labels: mixed targets are taken as they are, as timm does.
        criterion = BinaryCrossEntropy(smoothing=settings.label_smoothing)
    else:
        criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    mean, std = preprocessing.statistics(device)

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


def _line(row: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {row['epoch'] + 1:.0f}/{epochs}: train loss {row['train_loss']:.4f}, "
        f"val top-1 {100 * row['val_top1']:.2f} %, top-5 {100 * row['val_top5']:.2f} %, "
        f"{row['images_per_second']:.0f} images/s, learning rate {row['lr']:.3g}"
    )
