"""Training of classifiers, on images in memory or streamed, on one device or many."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from timm.layers import convert_sync_batchnorm
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from ecanet.aliases import SOURCES
from ecanet.config import ClassificationSettings, with_lr
from ecanet.data import Data, DeviceBatches, Split
from ecanet.data.augment import normalize, with_flip
from ecanet.data.listing import held_images
from ecanet.data.read import SMALL, read_data
from ecanet.data.shards import ShardedImages
from ecanet.data.stream import Batch, ImageDataset, ImageList
from ecanet.data.transforms import is_batched, mixup_or_cutmix, train_transform
from ecanet.errors import UserError, as_user_error
from ecanet.files import absolute
from ecanet.models import check_attention, checked_attention, create_model, list_models
from ecanet.models.batch_check import check_batch_norms
from ecanet.models.built_in import count_built_in, describe_built_in
from ecanet.models.counts import count_macs
from ecanet.models.weights.load import load_weights, read_stem
from ecanet.models.weights.save import save_weights
from ecanet.record import Row
from ecanet.training.device import check_devices, compile_pays, resolve_device, resolve_precision
from ecanet.training.evaluate import evaluate_batches, top1_and_top5
from ecanet.training.launch import sharded_loader
from ecanet.training.optim import build_optimizer, few_steps, lr_factor, scaled_lr
from ecanet.training.task import Batches

log = logging.getLogger(__name__)

# What settings that are left open become: of small images as CIFAR is trained, of photographs as ImageNet.
_SMALL = {"model": "resnet20", "epochs": 30, "batch_size": 128}
_PHOTOGRAPHS = {"model": "resnet50", "epochs": 100, "batch_size": 256}


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
    in_memory = isinstance(data.train, Split)
    filled: dict[str, Any] = {
        name: value for name, value in defaults.items() if getattr(settings, name) is None
    }
    batch_size: Any = filled.get("batch_size", settings.batch_size)
    if not 1 <= batch_size <= len(data.train):
        raise UserError(
            f"--batch_size {batch_size}{' (the default)' if filled.get('batch_size') else ''}: give a number "
            f"from 1 to {len(data.train)}, the images of the training split"
        )
    lr_batch_size = settings.lr_batch_size
    if lr_batch_size == "auto":
        lr_batch_size = None if small else 256
    optimizer = with_lr(settings.optimizer, None if lr_batch_size else batch_size)
    # Shards number their classes, and a number says nothing about the images.
    names = [] if isinstance(data.train, ShardedImages) else data.classes
    augmentation = with_flip(settings.augmentation, names)
    if augmentation.scale is None and augmentation.crop_padding is None:
        augmentation = replace(
            augmentation, **({"crop_padding": 4} if small else {"scale": [0.08, 1.0]})
        )
    validation = settings.validation
    if validation is None:
        validation = 0.0 if data.test is None else 0.1
    device = resolve_device(settings.device)
    check_devices(settings.devices, device, batch_size)
    settings = replace(
        settings,
        **filled,
        # A name of ours wins over a folder of that name.
        data=settings.data if settings.data in SOURCES else str(absolute(settings.data)),
        weights=absolute(settings.weights),
        storage="memory" if in_memory else "stream",
        image_size=train_size,
        eval_size=data.image_size,
        crop_share=data.preprocessing.crop_share,
        validation=validation,
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
        model = build_model(_without_attention(settings), data)
    macs = count_macs(model, data.image_size, data.channels)
    return compile_pays(macs, len(data.train) * settings.epochs, device)  # type: ignore[operator]


def _without_attention(settings: ClassificationSettings) -> ClassificationSettings:
    """Return settings of the network as its name says, with fresh weights."""
    return replace(
        settings, attention=None, kernel_sizes=None, replace_attention=False, pretrained=False,
        weights=None,
    )  # fmt: skip


def built_in_of(settings: ClassificationSettings, data: Data) -> dict[str, int]:
    """Return the attention modules that the network comes with, the number of each kind."""
    if settings.model in list_models():
        return {}
    with torch.random.fork_rng(devices=[]):
        return count_built_in(build_model(_without_attention(settings), data))


def build_model(settings: ClassificationSettings, data: Data) -> nn.Module:
    """Build the network of a run for the images and classes of ``data``, and load its weights.

    Raises:
        UserError: it cannot be built, or the weights do not fit.
    """
    kwargs: dict[str, Any] = {"drop_rate": settings.drop_rate} if settings.drop_rate else {}
    if settings.weights:
        stem = read_stem(settings.weights, str(settings.model))
        if stem:
            chosen = ", ".join(f"{name} {value}" for name, value in stem.items())
            log.info(f"taken from {settings.weights}: {chosen}")
        kwargs |= stem
    elif not settings.pretrained:
        kwargs["image_size"] = settings.image_size  # small images get a stem for them
    if data.channels != 3:
        kwargs["in_chans"] = data.channels
    model = create_model(
        str(settings.model),
        num_classes=len(data.classes),
        attention=settings.attention,
        kernel_sizes=settings.kernel_sizes,
        pretrained=settings.pretrained,
        replace_attention=settings.replace_attention,
        **kwargs,
    )
    if settings.weights:
        for line in str(load_weights(model, settings.weights, new_classes=True)).splitlines():
            log.info(line)
    return model


class ClassificationTask:
    """A classifier on its images; see :class:`ecanet.training.task.Task`."""

    best = "val_accuracy"
    read = staticmethod(read_data)
    resolve = staticmethod(resolve)
    built_in_of = staticmethod(built_in_of)

    def __init__(self, settings: ClassificationSettings, data: Data, fabric: Fabric) -> None:
        self.settings, self.data, self.fabric = settings, data, fabric
        self.select = settings.select
        self.tests = data.test is not None
        self.preprocessing = data.preprocessing
        self.model = build_model(settings, data)
        self.built_in = count_built_in(self.model)
        size: Any = settings.image_size
        each = settings.batch_size // fabric.world_size  # type: ignore[operator]
        check_batch_norms(self.model, each, size, data.channels)
        if settings.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        if settings.sync_batchnorm:
            # timm's: torch's would lose the activations that timm's batch norms hold.
            self.model = convert_sync_batchnorm(self.model)
        check_attention(self.model, size, data.channels)
        if settings.compile == "on":
            self.model.compile()
        names = ("model", "attention", "kernel_sizes")
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
        return [line for line in (built_in, few) if line]

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
        each = settings.batch_size // settings.devices  # type: ignore[operator]
        with (
            torch.random.fork_rng(devices=[]),
            as_user_error(
                f"attention module {settings.attention} fails in {settings.model} on images of {size} pixels"
            ),
        ):
            model = build_model(settings, data)
            check_batch_norms(model, each, size, data.channels)
            with checked_attention(model):
                model(torch.randn(2, data.channels, size, size)).sum().backward()

    def optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        self.peak = scaled_lr(settings.optimizer.lr, settings.batch_size, settings.lr_batch_size)  # type: ignore[arg-type]
        chosen = replace(settings.optimizer, lr=self.peak)
        return build_optimizer(self.model, chosen, self.fabric.device)

    def lr(self, epoch: float) -> float:
        return self.peak * lr_factor(self.settings.schedule, epoch, self.settings.epochs)  # type: ignore[arg-type]

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        device = self.fabric.device
        images = batch.images.to(device, non_blocking=True)
        images = normalize(images, self.mean, self.std, self.settings.channels_last)
        labels = targets = batch.labels.to(device, non_blocking=True)
        if self.mix is not None:
            images, targets = self.mix(images, labels)
        logits = model(images).float()
        value = self.criterion(logits, targets)
        top1, top5 = top1_and_top5(logits.detach(), labels)
        return value, {
            "loss": value.detach() * len(labels),
            "accuracy": top1,
            "top5": top5,
            "images": torch.full((), len(labels), device=device),
        }

    def evaluate(self, model: nn.Module) -> Row:
        return self._measure(model, "val")

    def final(self, model: nn.Module, rows: list[Row], weights: Path) -> Row:
        row = rows[-1]
        if self.select == "best":
            row = max(reversed(rows), key=lambda row: row[self.best])
        final = {name: row[name] for name in row if name.startswith(("epoch", "val_"))}
        if not self.tests or self.data.test is None:
            return final
        if self.select == "best":
            load_weights(model, weights)
        self.evaluation["test"] = self._evaluation_batches(self.data.test, "test")
        return {**self._measure(model, "test"), **final}

    def save(self, path: Path, tensors: dict[str, Tensor], row: Row) -> None:
        settings = self.settings
        by_name = "eca" if str(settings.model).startswith("eca_") else "none"
        save_weights(
            path,
            tensors,
            model=str(settings.model),
            attention=settings.attention or by_name,
            num_classes=len(self.data.classes),
            in_chans=self.data.channels,
            model_args={"replace_attention": True} if settings.replace_attention else {},
            preprocessing=self.preprocessing,
            classes=self.data.classes,
        )

    def describe(self, row: Row) -> str:
        return (
            f"epoch {row['epoch'] + 1:.0f}/{self.settings.epochs}: "
            f"loss {row.get('train_loss', float('nan')):.4f}, validation loss {row['val_loss']:.4f}, "
            f"accuracy {100 * row['val_accuracy']:.2f} %, {row['images_per_second']:.0f} images/s, "
            f"learning rate {row['lr']:.3g}"
        )

    def _measure(self, model: nn.Module, split: str) -> Row:
        measured = evaluate_batches(
            self.fabric,
            model,
            self.evaluation[split],
            self.preprocessing,
            channels_last=self.settings.channels_last,
        )
        return {f"{split}_{name}": measured[name] for name in ("loss", "accuracy", "top5")}

    def _training_batches(self) -> Batches:
        settings, train = self.settings, self.data.train
        if isinstance(train, Split) and is_batched(settings.augmentation):
            return self._on_device(train, "train")
        images = held_images(train, "train", self.data.classes)
        size: Any = settings.image_size
        transform = train_transform(
            settings.augmentation,
            replace(self.preprocessing, size=size, resize=max(size, self.preprocessing.resize)),
            size,
        )
        corrupt = "refuse" if settings.corrupt == "refuse" else "replace"
        dataset = ImageDataset(images, transform, settings.seed, corrupt)
        return sharded_loader(self.fabric, settings, dataset, len(dataset), shuffle=True)

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
            shuffle=train,
            device=self.fabric.device,
            channels_last=self.settings.channels_last,
            drop_last=train,
            process=self.fabric.global_rank,
            processes=self.fabric.world_size,
        )
