"""Evaluation of classifiers: over batches, while they are trained, and of weights on any images."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric
from timm.data import ImageNetInfo
from torch import Tensor, nn

from ecanet.config import EvaluateSettings, given
from ecanet.data.augment import normalize
from ecanet.data.folder import left_out_line
from ecanet.data.listing import list_evaluated
from ecanet.data.preprocessing import Preprocessing, class_names
from ecanet.data.shards import ShardedImages
from ecanet.data.stream import Batch, ImageDataset, ImageList
from ecanet.errors import UserError, first_of
from ecanet.models import create_model
from ecanet.models.hooks import run_in_evaluation
from ecanet.models.inputs import input_preprocessing
from ecanet.models.weights.files import read_checkpoint
from ecanet.models.weights.load import build_from_weights
from ecanet.plugins import load_plugins
from ecanet.record import Row
from ecanet.training.device import full_float32, resolve_precision
from ecanet.training.launch import launch, reduced, sharded_loader

log = logging.getLogger(__name__)


def evaluate_classifier(root: Path, settings: EvaluateSettings) -> Row:
    """Evaluate weights on a split of ``root``, each image once, on one process or several.

    Images are prepared as the weights say, and classes are matched by name, so that some of them, or
    another order, are scored right. A model of ImageNet's 1000 classes is also evaluated on a folder that
    holds some of them, named by their WordNet ids: its answers are taken among all 1000.

    Args:
        root: folder with a folder per class, or tar shards, in each split; or digits, cifar10, cifar100.
        settings: of the evaluation.

    Returns:
        ``accuracy`` (top-1) and ``top5`` (0..1), ``loss`` (cross-entropy in nats), ``images`` and
        ``images_per_second``.

    Raises:
        UserError: anything the caller can put right.
    """
    if bool(settings.weights) == settings.pretrained:
        raise UserError("which weights? Give --weights FILE, or --pretrained with --model NAME")
    if settings.pretrained and not settings.model:
        raise UserError("--pretrained needs --model NAME")
    images = list_evaluated(root, settings.split)
    load_plugins(settings.plugin)
    choice = given(settings, "model", "attention", "kernel_sizes")
    metadata: dict[str, str] = {}
    if settings.weights:
        file = read_checkpoint(settings.weights)
        model, metadata = build_from_weights(file, **choice), file.metadata
        if getattr(model, "num_classes", None) == 0:
            raise UserError(
                f"{settings.weights} is a backbone, without a classifier: give the weights of a classifier"
            )
    else:
        model = create_model(choice.pop("model"), pretrained=True, **choice)
    fabric = launch(settings)
    if images.left_out:
        log.info("%s", left_out_line(images.left_out))
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
    )
    size = preprocessing.size
    outputs = run_in_evaluation(model, torch.zeros(1, preprocessing.channels, size, size)).shape[1]
    label_of = _label_of(images, metadata, outputs)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model = fabric.to_device(model)
    dataset = ImageDataset(images, preprocessing, 0, settings.corrupt)
    began = time.perf_counter()
    measured = evaluate_batches(
        fabric,
        model,
        sharded_loader(fabric, settings, dataset, len(dataset)),
        preprocessing,
        channels_last=settings.channels_last,
        label_of=label_of,
        in_float32=resolve_precision(settings.precision, fabric.device) == "float32",
    )
    seconds = time.perf_counter() - began
    return {**measured, "images_per_second": len(images) / seconds}


def _label_of(images: ImageList, metadata: Mapping[str, str], outputs: int) -> list[int]:
    """Return which of a model's classes each class of the images is."""
    if isinstance(images, ShardedImages):  # their labels are the model's numbers already
        if len(images.classes) > outputs:
            raise UserError(
                f"the shards in {images.root} have labels up to {len(images.classes) - 1}, and the model "
                f"has {outputs} classes"
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
            f"{images.root} holds classes that the weights do not have: {first_of(unknown, 5)}; they have "
            f"{first_of(names, 5)}. Give the folders the names they had in training"
        )
    if outputs != len(images.classes):
        raise UserError(
            f"the model has {outputs} classes and {images.root} holds "
            f"{len(images.classes)}: give the data it was trained for"
        )
    log.info("the weights do not name their classes: taken in the order of the folders' names")
    return list(range(outputs))


def evaluate_batches(
    fabric: Fabric,
    model: nn.Module,
    batches: Iterable[Batch],
    preprocessing: Preprocessing,
    *,
    channels_last: bool,
    label_of: Sequence[int] | None = None,
    in_float32: bool = True,
) -> Row:
    """Return ``loss`` (cross-entropy in nats), ``accuracy`` and ``top5`` (0..1) over the ``images``.

    Exact on any number of processes: each image that can be decoded is counted once.

    Args:
        batches: of this process: uint8 images that have been through ``preprocessing``.
        label_of: the model's number for each class of the images; by default the same.
        in_float32: compute in float32, without TF32, whatever the precision of ``fabric``.

    Raises:
        UserError: an image cannot be decoded, unless such are skipped; or none can.
    """
    mean, std = preprocessing.statistics(fabric.device)
    number = None if label_of is None else torch.tensor(label_of, device=fabric.device)
    dtype = torch.float32 if fabric.device.type == "mps" else torch.float64
    sums = torch.zeros(4, dtype=dtype, device=fabric.device)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            images, labels = batch.images, batch.labels
            for file in batch.corrupt:
                log.warning("cannot be decoded, left out: %s", file)
            if batch.corrupt:
                images, labels = images[labels >= 0], labels[labels >= 0]
            images, labels = fabric.to_device((images, labels))
            labels = labels if number is None else number[labels]
            with full_float32(fabric.device) if in_float32 else fabric.autocast():
                logits = model(normalize(images, mean, std, channels_last)).float()
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            count = torch.full((), len(labels), device=fabric.device)
            sums += torch.stack([loss, *top1_and_top5(logits, labels), count])
    model.train(was_training)
    loss, top1, top5, images = reduced(fabric, sums, "sum").tolist()
    if not images:
        raise UserError("none of the images can be decoded")
    means = {"loss": loss / images, "accuracy": top1 / images, "top5": top5 / images}
    return {**means, "images": images}


def top1_and_top5(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many labels (N,) are the highest logit, and among the five highest, of logits (N, C)."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return best[:, 0].sum(), best.any(dim=1).sum()
