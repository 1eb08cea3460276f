"""Training of classifiers, on images in memory or streamed, on one device or many."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from sklearn.utils.class_weight import compute_class_weight
from timm.layers import convert_sync_batchnorm
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from ecanet.activity import activity
from ecanet.config import ClassificationSettings, given, with_lr
from ecanet.data import Data, DeviceBatches, Split
from ecanet.data.augment import normalize, with_flip
from ecanet.data.listing import absolute_data, held_images
from ecanet.data.preprocessing import class_names
from ecanet.data.read import SMALL, read_data
from ecanet.data.shards import ShardedImages
from ecanet.data.stream import Batch, ImageDataset, ImageList
from ecanet.data.transforms import is_batched, mixup_or_cutmix, train_transform
from ecanet.errors import UserError, as_user_error, counted, first_of
from ecanet.metrics import best_row, format_metric, metric_named
from ecanet.models import check_attention, checked_attention, create_model, list_models
from ecanet.models.batch_check import check_batch_norms
from ecanet.models.built_in import count_built_in, describe_built_in
from ecanet.models.counts import count_macs, count_parameters
from ecanet.models.holders import attention_modules
from ecanet.models.weights.files import read_checkpoint
from ecanet.models.weights.hub import resolve_weights
from ecanet.models.weights.load import load_weights, read_stem
from ecanet.models.weights.save import save_weights
from ecanet.predictions import Predictions
from ecanet.record import Row
from ecanet.training.compilation import compile_pays, compiling
from ecanet.training.device import (
    check_devices,
    fastest_convolutions,
    resolve_device,
    resolve_precision,
)
from ecanet.training.evaluate import (
    Scores,
    describe_division,
    evaluate_batches,
    top1_and_top5,
)
from ecanet.training.launch import sharded_loader
from ecanet.training.optim import build_optimizer, few_steps, lr_factor, scaled_lr
from ecanet.training.task import Batches
from ecanet.training.transfer import (
    freeze,
    frozen_norms,
    pretrained_classes,
    start_classifier,
    starting_model,
    starting_preprocessing,
    starts_as_identity,
)

log = logging.getLogger(__name__)

# What settings that are left open become: of small images as CIFAR is trained, of photographs as ImageNet.
_SMALL = {"model": "resnet20", "epochs": 30, "batch_size": 128}
_PHOTOGRAPHS = {"model": "resnet50", "epochs": 100, "batch_size": 256}
# Metrics that are sums over images; the others need the scores of all at once.
_SUMS = ("loss", "accuracy", "top5")
# Scores of a split of which all metrics are computed in a fraction of a second.
_CHEAP = 500_000
# Of weights that have been trained before, on either.
_FINE_TUNED = {"epochs": 30}


def read(settings: ClassificationSettings, *, alone: bool = False) -> Data:
    """Read the images that ``settings`` ask for, prepared as the weights that a run starts from need them.

    Raises:
        UserError: as :func:`ecanet.data.read.read_data`, or the weights cannot be read.
    """
    weights, source = starting_preprocessing(settings, alone=alone) or (None, "")
    with activity(f"reading {settings.data}"):
        data = read_data(settings, alone=alone, weights=weights)
    if weights:
        log.info("images are prepared as for the weights, %s: %s", source, data.preprocessing)
    return data


def resolve(
    settings: ClassificationSettings, data: Data, *, alone: bool = False
) -> ClassificationSettings:
    """Return settings in which nothing is left open; those that are resolved stay as they are.

    Args:
        settings: as given.
        data: as read for them.
        alone: for a single run.

    Raises:
        UserError: the batch does not fit the images, or the machine lacks what they name.
    """
    train_size = data.train_size or data.image_size
    small = train_size <= SMALL
    defaults = _SMALL if small else _PHOTOGRAPHS
    if alone and not small:
        defaults = {**defaults, "model": "eca_resnet50"}
    if settings.starts_from_weights:
        model = starting_model(settings, alone=alone)
        defaults = {**defaults, **_FINE_TUNED, "model": str(model)}
    in_memory = isinstance(data.train, Split)
    filled: dict[str, Any] = {
        name: value for name, value in defaults.items() if getattr(settings, name) is None
    }
    if "batch_size" in filled:
        # Few images still make ten steps per epoch, as far as batches of 16 go.
        tenth = 2 ** max(4, (len(data.train) // 10).bit_length() - 1)
        filled["batch_size"] = min(filled["batch_size"], tenth, len(data.train))
    batch_size: Any = filled.get("batch_size", settings.batch_size)
    if not 1 <= batch_size <= len(data.train):
        raise UserError(
            f"--batch-size {batch_size}: give a number from 1 to {len(data.train)}, the images of the "
            "training split"
        )
    lr_batch_size = settings.lr_batch_size
    if lr_batch_size == "auto":
        lr_batch_size = None if small else 256
    optimizer = with_lr(
        settings.optimizer,
        None if lr_batch_size else batch_size,
        fine_tuned=settings.starts_from_weights,
    )
    # Shards number their classes, and a number says nothing about the images.
    names = [] if isinstance(data.train, ShardedImages) else data.classes
    augmentation = with_flip(settings.augmentation, names)
    if augmentation.scale is None and augmentation.crop_padding is None:
        # CIFAR's 4 of 32 pixels; on smaller images they would push much of what is shown out of view.
        crop = (
            {"crop_padding": min(4, max(1, train_size // 8))} if small else {"scale": [0.08, 1.0]}
        )
        augmentation = replace(augmentation, **crop)
    validation = settings.validation
    if validation is None:
        validation = 0.0 if data.test is None else 0.1
    device = resolve_device(settings.device)
    check_devices(settings.devices, device, batch_size, settings.sync_batchnorm)
    settings = replace(
        settings,
        **filled,
        # A name of ours wins over a folder of that name.
        data=absolute_data(settings.data),
        weights=resolve_weights(settings.weights),
        identity=starts_as_identity(settings),
        storage="memory" if in_memory else "stream",
        image_size=train_size,
        eval_size=data.image_size,
        in_chans=data.channels,  # type: ignore[arg-type]
        window=None if data.window is None else list(data.window),
        crop_share=data.preprocessing.crop_share,
        validation=validation,
        test=data.test_fraction,
        select=settings.select or ("best" if data.test is None else "last"),
        augmentation=augmentation,
        optimizer=optimizer,
        lr_batch_size=lr_batch_size,
        threads=settings.threads or (2 if alone and not in_memory else 1),
        device=str(device),
        precision=resolve_precision(settings.precision, device),  # type: ignore[arg-type]
    )
    if settings.compile == "auto":
        pays = _compiling_pays(settings, data, device)
        settings = replace(settings, compile="on" if pays else "off")
    return settings


def _compiling_pays(settings: ClassificationSettings, data: Data, device: torch.device) -> bool:
    with torch.random.fork_rng(devices=[]):
        model = build_model(_without_attention(settings), data, load=False)
    macs = count_macs(model, data.image_size, data.channels)
    images = round(len(data.train) * settings.epochs * settings.epoch_length)  # type: ignore[operator]
    return compile_pays(macs, images, device)


def _without_attention(settings: ClassificationSettings) -> ClassificationSettings:
    """Return settings of the network as its name says."""
    return replace(settings, attention=None, kernel_sizes=None, replace_attention=False)


def built_in_of(settings: ClassificationSettings, data: Data) -> dict[str, int]:
    """Return the attention modules that the network comes with, the number of each kind."""
    if settings.model in list_models():
        return {}
    with torch.random.fork_rng(devices=[]):
        return count_built_in(build_model(_without_attention(settings), data, load=False))


def build_model(settings: ClassificationSettings, data: Data, *, load: bool = True) -> nn.Module:
    """Build the network of a run for the images and classes of ``data``, and load its weights.

    What is frozen takes no gradient.

    Args:
        settings: of the run.
        data: as read for them.
        load: load pretrained weights or those of a file; else the network has their shape and fresh ones.

    Raises:
        UserError: it cannot be built, or the weights do not fit.
    """
    name = str(settings.model)
    kwargs: dict[str, Any] = {"drop_rate": settings.drop_rate} if settings.drop_rate else {}
    if settings.weights:
        stem = read_stem(settings.weights, name)
        if stem and load:
            chosen = ", ".join(f"{name} {value}" for name, value in stem.items())
            log.info(f"read from {settings.weights}: {chosen}")
        kwargs |= stem
    elif not settings.pretrained:
        kwargs["image_size"] = settings.image_size  # small images get a stem for them
    if data.channels != 3:
        kwargs["in_chans"] = data.channels
    if settings.channels:
        kwargs["channels"] = settings.channels
    model = create_model(
        name,
        num_classes=len(data.classes),
        attention=settings.attention,
        kernel_sizes=settings.kernel_sizes,
        pretrained=settings.pretrained and load,
        # The identity is that of the weights, which come first.
        identity=bool(settings.identity) and not (settings.weights and load),
        replace_attention=settings.replace_attention,
        **kwargs,
    )
    if settings.weights and load:
        _load(model, settings.weights, data.classes, identity=bool(settings.identity))
    elif settings.pretrained and load and len(data.classes) != pretrained_classes(model):
        start_classifier(model)
    freeze(model, settings.freeze)
    return model


def balanced_weights(data: Data) -> Tensor:
    """Return a weight for each class, float32 (C,): images / (classes * images of the class) of train.

    As scikit-learn's ``balanced``: the mean over the training images is 1. Classes without an image there
    get 1, and no part in the others' weights.
    """
    labels = np.asarray(data.train.labels)
    present = np.unique(labels)
    weights = torch.ones(len(data.classes))
    balanced = compute_class_weight("balanced", classes=present, y=labels)
    weights[torch.from_numpy(present)] = torch.from_numpy(balanced).float()
    return weights


def _load(model: nn.Module, file: str, classes: list[str], *, identity: bool) -> None:
    """Load the weights of a file; a classifier of classes that the data do not have stays a new one."""
    checkpoint = read_checkpoint(file)
    report = load_weights(model, checkpoint, new_classes=True, identity=identity)
    for line in str(report).splitlines():
        log.info(line)
    if report.fresh:
        start_classifier(model, report.fresh)
    elif (theirs := class_names(checkpoint.metadata, len(classes))) not in (None, classes):
        start_classifier(model)
        log.info(
            f"starting with a new classifier, as the classes differ: {first_of(theirs, 3)} in the file, "
            f"{first_of(classes, 3)} in the data"
        )


def _describe_start(settings: ClassificationSettings, data: Data, *, compared: bool) -> str | None:
    """Describe what resolved settings start from, and what of it is trained; None from scratch."""
    if not settings.starts_from_weights:
        return None
    with torch.random.fork_rng(devices=[]):
        model = build_model(settings, data, load=False)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    source = (settings.weights or "").rpartition("/")[2] or f"pretrained {settings.model}"
    optimizer = settings.optimizer
    rates = [f"learning rate {optimizer.lr:g}"]
    if optimizer.layer_decay is not None:
        rates.append(f"times {optimizer.layer_decay:g} per layer")
    if optimizer.new_lr_scale != 1:
        rates.append(f"times {optimizer.new_lr_scale:g} in new parts")
    start = ""
    if compared or attention_modules(model):
        how = "as the identity" if settings.identity else "as built"
        start = f"; attention modules start {how}"
        if settings.attention is None:
            start += ", and are trained as well"
    return (
        f"starting from {source}: {counted(settings.epochs, 'epoch')}, {', '.join(rates)}; "  # type: ignore[arg-type]
        f"{trained:,} of {count_parameters(model):,} parameters are trained{start}"
    )


class ClassificationTask:
    """A classifier on its images; see :class:`ecanet.training.task.Task`."""

    predicts = True
    read = staticmethod(read)
    resolve = staticmethod(resolve)
    built_in_of = staticmethod(built_in_of)

    def __init__(self, settings: ClassificationSettings, data: Data, fabric: Fabric) -> None:
        self.settings, self.data, self.fabric = settings, data, fabric
        self.best, self.select = settings.best, settings.select
        self.predictions: Predictions | None = None
        self.tests = data.test is not None
        self.preprocessing = data.preprocessing
        self.model = build_model(settings, data)
        self.built_in = count_built_in(self.model)
        size: Any = settings.image_size
        images = settings.images_per_norm(fabric.world_size)
        check_batch_norms(self.model, images, size, data.channels)
        if settings.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        if settings.sync_batchnorm:
            # timm's: torch's would lose the activations that timm's batch norms hold.
            self.model = convert_sync_batchnorm(self.model)
        check_attention(self.model, size, data.channels)
        self.frozen_norms = frozen_norms(self.model)
        if settings.compile == "on":
            self.model.compile()
        names = ("model", "attention", "kernel_sizes", "channels")
        self.identity = {name: getattr(settings, name) for name in names}
        self.identity["classes"] = data.classes
        self.batches = self._training_batches()
        self.evaluation = {"val": self._evaluation_batches(data.val, "val")}
        self.mean, self.std = self.preprocessing.statistics(fabric.device)
        self.mix = mixup_or_cutmix(settings.augmentation, len(data.classes))
        self.criterion: nn.Module
        if settings.loss == "bce":
            # Its smoothing is for labels: mixed targets are taken as they are, as timm does.
            self.criterion = BinaryCrossEntropy(smoothing=settings.label_smoothing)
        elif settings.class_weights == "balanced":
            # The mean over images, and not over their weights, is the same on any number of processes.
            self.criterion = nn.CrossEntropyLoss(
                balanced_weights(data).to(fabric.device),
                label_smoothing=settings.label_smoothing,
                reduction="none",
            )
        else:
            self.criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)

    @staticmethod
    def notices(
        settings: ClassificationSettings, data: Data, *, compared: bool = False
    ) -> list[str]:
        """Return what a user should know of resolved settings before the first step, with what to do."""
        built_in = describe_built_in(
            str(settings.model),
            built_in_of(settings, data),
            replaced=settings.replace_attention,
            compared=compared,
        )
        few = few_steps(len(data.train), settings.batch_size, settings.epochs)  # type: ignore[arg-type]
        lines = (*data.notices, built_in, few, _describe_start(settings, data, compared=compared))
        return [line for line in lines if line]

    @staticmethod
    def majority(data: Data) -> float | None:
        """Return the share of the test split's images that are of its most frequent class, 0..1.

        Raises:
            UserError: there is no test split to judge the runs of a study by.
        """
        if data.test is None:
            raise UserError("--validation 0 leaves no test split: give a fraction of train")
        counts = torch.as_tensor(data.test.labels).bincount()
        return float(counts.max()) / len(data.test)

    @staticmethod
    def check(settings: ClassificationSettings, data: Data) -> None:
        """Build the network and run it once, forward and backward, where the module was inserted.

        Raises:
            UserError: it cannot be built, or the module fails in it.
        """
        size: Any = settings.image_size
        with (
            torch.random.fork_rng(devices=[]),
            as_user_error(
                f"attention module {settings.attention} fails in {settings.model} on images of {size} pixels"
            ),
        ):
            model = build_model(settings, data)
            images = settings.images_per_norm(settings.devices)
            check_batch_norms(model, images, size, data.channels)
            with checked_attention(model):
                model(torch.randn(2, data.channels, size, size)).sum().backward()

    def optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        self.peak = scaled_lr(settings.optimizer.lr, settings.batch_size, settings.lr_batch_size)  # type: ignore[arg-type]
        chosen = replace(settings.optimizer, lr=self.peak)
        return build_optimizer(self.model, chosen, self.fabric.device)

    def lr(self, epoch: float) -> float:
        return self.peak * lr_factor(self.settings.schedule, epoch, self.settings.epochs)  # type: ignore[arg-type]

    @contextmanager
    def tuned(self) -> Iterator[None]:
        compiles = self.settings.compile == "on"
        with fastest_convolutions(), compiling() if compiles else nullcontext():
            yield

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        device = self.fabric.device
        for norm in self.frozen_norms:
            norm.training = False
        images = batch.images.to(device, non_blocking=True)
        images = normalize(images, self.mean, self.std, self.settings.channels_last)
        labels = targets = batch.labels.to(device, non_blocking=True)
        if self.mix is not None:
            images, targets = self.mix(images, labels)
        logits = model(images).float()
        value = self.criterion(logits, targets).mean()
        top1, top5 = top1_and_top5(logits.detach(), labels)
        return value, {
            "loss": value.detach() * len(labels),
            "accuracy": top1,
            "top5": top5,
            "images": torch.full((), len(labels), device=device),
        }

    def evaluate(self, model: nn.Module) -> Row:
        return self._measure(model, "val")[0]

    def final(self, model: nn.Module, rows: list[Row], weights: Path | None) -> Row:
        row = best_row(rows, self.best) if self.select == "best" else rows[-1]
        final = {name: row[name] for name in row if name.startswith(("epoch", "val_"))}
        if weights is None:
            return final
        if self.select == "best":
            load_weights(model, weights)
        split = "val"
        if self.tests and self.data.test is not None:
            split = "test"
            self.evaluation["test"] = self._evaluation_batches(self.data.test, "test")
        measured, scores = self._measure(model, split, whole=True)
        assert scores is not None
        self.predictions = scores.predictions(
            self.data.names(split), self.data.classes, self.data.groups
        )
        return {**measured, **final}

    def save(self, path: Path, tensors: dict[str, Tensor], row: Row) -> None:
        settings = self.settings
        by_name = "eca" if str(settings.model).startswith("eca_") else "none"
        chosen = given(settings, "channels")
        if settings.replace_attention:
            chosen["replace_attention"] = True
        save_weights(
            path,
            tensors,
            model=str(settings.model),
            attention=settings.attention or by_name,
            num_classes=len(self.data.classes),
            in_chans=self.data.channels,
            model_args=chosen,
            preprocessing=self.preprocessing,
            classes=self.data.classes,
            metadata=describe_division(settings),
        )

    def describe(self, row: Row) -> str:
        chosen = ""
        if self.best not in ("val_loss", "val_accuracy"):
            chosen = f"{metric_named(self.best).title} {format_metric(self.best, row[self.best])}, "
        return (
            f"epoch {row['epoch'] + 1:.0f}/{self.settings.epochs}: "
            f"loss {row.get('train_loss', float('nan')):.4f}, validation loss {row['val_loss']:.4f}, "
            f"accuracy {100 * row['val_accuracy']:.2f} %, {chosen}{row['images_per_second']:.0f} images/s, "
            f"learning rate {row['lr']:.3g}"
        )

    def _measure(
        self, model: nn.Module, split: str, whole: bool = False
    ) -> tuple[Row, Scores | None]:
        """Return the metrics of a split, and the scores they are from if all were measured.

        After each epoch of many images or classes, only what choices are made by is measured beside the
        sums.

        Args:
            whole: measure all metrics.
        """
        settings, images = self.settings, len(self.data.images_of(split))
        cheap = images * len(self.data.classes) <= _CHEAP
        scores = None
        if whole or cheap or settings.metric not in _SUMS:
            batch_size: Any = settings.batch_size
            scores = Scores(self.fabric, images, len(self.data.classes), batch_size)
        # Evaluations are not compiled, as those of the weights are not; for one pass over few images, in
        # float32 and in batches of two sizes, it would not pay.
        compiles = settings.compile == "on"
        with torch.compiler.set_stance("force_eager") if compiles else nullcontext():
            measured = evaluate_batches(
                self.fabric,
                model,
                self.evaluation[split],
                self.preprocessing,
                channels_last=settings.channels_last,
                keep=None if scores is None else scores.keep,
            )
        sums = {name: measured[name] for name in _SUMS}
        if scores is not None:
            scores.gather()
            # Sums have more digits than means over rounded scores.
            auroc = whole or cheap or settings.metric == "auroc"
            sums |= scores.metrics(auroc=auroc) | sums
        return {f"{split}_{name}": value for name, value in sums.items()}, scores

    def _training_batches(self) -> Batches:
        settings, train = self.settings, self.data.train
        if isinstance(train, Split) and is_batched(settings.augmentation):
            return self._on_device(train, "train")
        images = held_images(train, self.data.classes)
        size: Any = settings.image_size
        transform = train_transform(
            settings.augmentation,
            replace(self.preprocessing, size=size, resize=max(size, self.preprocessing.resize)),
            size,
        )
        corrupt = "refuse" if settings.corrupt == "refuse" else "replace"
        dataset = ImageDataset(images, transform, settings.seed, corrupt)
        balanced = torch.as_tensor(images.labels) if settings.balanced_sampling else None
        return sharded_loader(
            self.fabric, settings, dataset, len(dataset), shuffle=True, balanced=balanced
        )

    def _evaluation_batches(self, split: Split | ImageList, name: str) -> Batches:
        if isinstance(split, Split):
            return self._on_device(split, name)
        # A metric is of the images that there are: none stands in for another.
        dataset = ImageDataset(split, self.preprocessing, self.settings.seed, self.settings.corrupt)
        return sharded_loader(self.fabric, self.settings, dataset, len(dataset))

    def _on_device(self, split: Split, name: str) -> DeviceBatches:
        train = name == "train"
        return DeviceBatches(
            split,
            self.data,
            self.settings.batch_size,  # type: ignore[arg-type]
            augmentation=self.settings.augmentation if train else None,
            seed=self.settings.seed,
            shuffle=train and (not self.settings.balanced_sampling or "balanced"),
            device=self.fabric.device,
            channels_last=self.settings.channels_last,
            drop_last=train,
            process=self.fabric.global_rank,
            processes=self.fabric.world_size,
        )
