"""Evaluation of classifiers: over batches, while they are trained, and of weights on any images."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from timm.data import ImageNetInfo
from torch import Tensor, nn

from ecanet.config import EvaluateSettings, Splitting
from ecanet.data.augment import normalize
from ecanet.data.folder import left_out_line
from ecanet.data.listing import ALL, HeldImages, has_columns, list_evaluated
from ecanet.data.preprocessing import Preprocessing, class_names
from ecanet.data.shards import ShardedImages
from ecanet.data.stream import Batch, ImageDataset, ImageList
from ecanet.data.survey import look_at
from ecanet.errors import UserError, first_of, one_line
from ecanet.metrics import Array, classification_metrics
from ecanet.models.weights.files import read_checkpoint
from ecanet.predictions import Predictions
from ecanet.record import Row
from ecanet.training.classifier import place_classifier, read_classifier
from ecanet.training.device import full_float32, resolve_precision
from ecanet.training.launch import launch, reduced, sharded_loader

log = logging.getLogger(__name__)

_DIVIDED = "division"
_DIVISION = [field.name for field in fields(Splitting)]


def evaluate_classifier(data: str | Path, settings: EvaluateSettings) -> Row:
    """Return the metrics of :func:`evaluate_images` on a split of ``data``, of any kind."""
    images = list_evaluated(str(data), divided_as_trained(settings, str(data)))[1]
    return evaluate_images(images, settings)[0]


def describe_division(settings: Splitting) -> dict[str, str]:
    """Return the metadata of weights for how the images of their training were divided."""
    chosen = {n: v for n in _DIVISION if (v := getattr(settings, n)) not in (None, [])}
    return {_DIVIDED: json.dumps(chosen)} if chosen else {}


def divided_as_trained(settings: EvaluateSettings, data: str) -> EvaluateSettings:
    """Return settings that divide data without splits as the training of the weights did.

    Otherwise images that were trained on could be evaluated as the test split. Settings with a division of
    their own keep it; groups are of no use where nothing is divided, nor columns where ``data`` has none.

    Raises:
        UserError: the weights cannot be read, or what they describe is no division.
    """
    if not settings.weights or any(getattr(settings, name) for name in _DIVISION):
        return settings
    metadata = read_checkpoint(settings.weights).metadata
    try:
        chosen = json.loads(metadata.get(_DIVIDED, "{}"))
        settings = replace(settings, **{name: chosen[name] for name in _DIVISION if name in chosen})
    except (ValueError, TypeError, RecursionError, UserError) as error:
        raise UserError(
            f"{settings.weights} describes no division of images: {one_line(error)}"
        ) from error
    if settings.split == ALL:
        settings.group_by = None
    if not has_columns(data):
        settings.columns = []
    return settings


def evaluate_images(images: ImageList, settings: EvaluateSettings) -> tuple[Row, Predictions]:
    """Evaluate weights on images, each once, on one process or several.

    Images are prepared as the weights say, and classes are matched by name, so that some of them, or
    another order, are scored right. A model of ImageNet's 1000 classes is also evaluated on a folder that
    holds some of them, named by their WordNet ids: its answers are taken among all 1000.

    Args:
        images: as :func:`ecanet.data.listing.list_evaluated` returns them.
        settings: of the evaluation.

    Returns:
        The metrics of :func:`ecanet.metrics.classification_metrics`, ``images`` and ``images_per_second``;
        and what the model answered for each image that can be decoded, in all processes.

    Raises:
        UserError: anything the caller can put right.
    """
    model, metadata = read_classifier(settings)
    fabric = launch(settings)
    if images.left_out:
        log.info("%s", left_out_line(images.left_out))
    classifier = place_classifier(fabric, model, metadata, settings)
    preprocessing = classifier.preprocessing
    images = replace(images, window=preprocessing.window)
    if not isinstance(images, HeldImages):
        look_at(images, preprocessing.channels)
    elif settings.window:
        raise UserError(f"--window: the pixels of {images.root} have 8 bits, so leave it out")
    label_of, classes = label_numbers(images, classifier.metadata, classifier.outputs)
    dataset = ImageDataset(images, preprocessing, 0, settings.corrupt)
    loader = sharded_loader(fabric, settings, dataset, len(dataset))
    scores = Scores(fabric, len(images), classifier.outputs, settings.batch_size)
    began = time.perf_counter()
    measured = evaluate_batches(
        fabric,
        classifier.model,
        loader,
        preprocessing,
        channels_last=settings.channels_last,
        label_of=label_of,
        in_float32=resolve_precision(settings.precision, fabric.device) == "float32",
        keep=scores.keep,
    )
    seconds = time.perf_counter() - began
    scores.gather()
    there = set(scores.labels.tolist())
    absent = [name for label, name in enumerate(classes) if label not in there]
    if absent:
        log.info(
            f"{len(absent)} of the {len(classes)} classes of the weights have no image here and are left out "
            f"of means over classes: {first_of(absent, 3)}"
        )
    metrics = scores.metrics() | measured
    found = scores.predictions(images.files, classes)
    return {**metrics, "images_per_second": len(images) / seconds}, found


def label_numbers(
    images: ImageList, metadata: Mapping[str, str], outputs: int
) -> tuple[list[int], list[str]]:
    """Return which of a model's classes each class of the images is, and the names of the model's."""
    if isinstance(images, ShardedImages):  # their labels are the model's numbers already
        if len(images.classes) > outputs:
            raise UserError(
                f"the shards in {images.root} have labels up to {len(images.classes) - 1}, and the model "
                f"has {outputs} classes"
            )
        return list(range(outputs)), [str(number) for number in range(outputs)]
    names = class_names(metadata, outputs)
    present = [images.classes[label] for label in sorted(set(images.labels))]
    known = list(names or [])
    if not set(present) <= set(known) and outputs == 1000:
        wordnet = ImageNetInfo("imagenet-1k").label_names()
        known = wordnet if set(present) <= set(wordnet) else known
    if set(present) <= set(known):
        number = {name: label for label, name in enumerate(known)}
        return [number.get(name, -1) for name in images.classes], known
    if names:
        unknown = [name for name in present if name not in names]
        raise UserError(
            f"there are images of classes that the weights do not have: {first_of(unknown, 5)}; they have "
            f"{first_of(names, 5)}. Name the classes as in training"
        )
    if outputs != len(images.classes):
        raise UserError(
            f"the model has {outputs} classes, and the images are of {len(images.classes)}: give the data "
            "it was trained for"
        )
    log.info("the weights do not name their classes: assuming the order of the folders' names")
    return list(range(outputs)), list(images.classes)


def evaluate_batches(
    fabric: Fabric,
    model: nn.Module,
    batches: Iterable[Batch],
    preprocessing: Preprocessing,
    *,
    channels_last: bool,
    label_of: Sequence[int] | None = None,
    in_float32: bool = True,
    keep: Callable[[Tensor, Tensor, Tensor], None] | None = None,
) -> Row:
    """Return ``loss`` (cross-entropy in nats), ``accuracy`` and ``top5`` (0..1) over the ``images``.

    Exact on any number of processes: each image that can be decoded is counted once.

    Args:
        batches: of this process: uint8 images that have been through ``preprocessing``.
        label_of: the model's number for each class of the images; by default the same.
        in_float32: compute in float32, without TF32, whatever the precision of ``fabric``.
        keep: called for each batch with which of its images can be decoded, bool (N,), and logits and
            labels of these.

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
                log.warning("skipped an image that cannot be decoded: %s", file)
            readable = labels >= 0
            if batch.corrupt:
                images, labels = images[readable], labels[readable]
            images, labels = fabric.to_device((images, labels))
            labels = labels if number is None else number[labels]
            with full_float32(fabric.device) if in_float32 else fabric.autocast():
                logits = model(normalize(images, mean, std, channels_last)).float()
            if keep is not None:
                keep(readable, logits, labels)
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
    best = _top5(logits) == labels[:, None]
    return best[:, 0].sum(), best.any(dim=1).sum()


def _top5(logits: Tensor) -> Tensor:
    """Return the classes of the five highest logits, int64 (N, 5), the highest first."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


class Scores:
    """The scores of every image of a split, from all processes; each image once.

    Its :meth:`keep` is for :func:`evaluate_batches`, over batches of which each process gets every
    ``processes``-th image.

    Args:
        images: of the split.
        classes: the number of scores of each.
        batch_size: images a step, over all processes.
    """

    def __init__(self, fabric: Fabric, images: int, classes: int, batch_size: int) -> None:
        self.fabric, self.images, self.classes = fabric, images, classes
        self.batch_size = batch_size
        self.kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def keep(self, readable: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Keep a batch, on its device; nothing waits for that."""
        # Of equal scores the same one is the highest as in the accuracy.
        self.kept.append((readable, logits, labels, _top5(logits)[:, 0]))

    def gather(self) -> None:
        """Gather those of all processes, in the order of the split; to be called in all of them."""
        fabric, device = self.fabric, self.fabric.device
        scores = torch.zeros(self.images, self.classes, device=device)
        # Both plus 1: 0 stays where an image could not be decoded.
        labels = torch.zeros(self.images, dtype=torch.int64, device=device)
        predicted = torch.zeros_like(labels)
        steps = torch.arange(self.images, device=device).split(self.batch_size)
        # Of a last step that is not full, some processes may have no image.
        for step, (readable, logits, own, answer) in zip(steps, self.kept, strict=False):
            here = step[fabric.global_rank :: fabric.world_size][readable.to(device)]
            scores[here], labels[here], predicted[here] = logits, own + 1, answer + 1
        self.kept.clear()
        whole = [reduced(fabric, part, "sum").cpu() for part in (scores, labels, predicted)]
        found = whole[1] > 0
        self.there: Array = found.numpy()
        self.scores: Array = whole[0][found].numpy()
        self.labels: Array = (whole[1][found] - 1).numpy()
        self.predicted: Array = (whole[2][found] - 1).numpy()

    def metrics(self, *, auroc: bool = True) -> Row:
        """Return :func:`ecanet.metrics.classification_metrics` of what was gathered."""
        return classification_metrics(self.scores, self.labels, self.predicted, auroc=auroc)

    def predictions(
        self, names: Sequence[str], classes: list[str], groups: Mapping[str, str] | None = None
    ) -> Predictions:
        """Return what was gathered, given the name of each image of the split and of each class.

        Args:
            groups: the group of each image by name, where images belong to groups.
        """
        images = [name for name, there in zip(names, self.there, strict=True) if there]
        # Beyond the range of float16 a score stays the largest there is.
        most = float(np.finfo(np.float16).max)
        return Predictions(
            images=images,
            labels=self.labels.astype(np.int32),
            predicted=self.predicted.astype(np.int32),
            scores=self.scores.clip(-most, most).astype(np.float16),
            classes=list(classes),
            groups=[groups[name] for name in images] if groups else None,
        )
