"""Typed settings: what a run is made of. A recipe is a YAML file of these names.

This file imports no torch, so that ``--help`` and a wrong flag answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Augmentation:
    """Random changes to training images, drawn for each image and made in batches on the device."""

    flip: bool = True
    """Mirror left and right with probability 1/2. Turn it off where a mirrored image means something else."""
    crop_padding: int = 4
    """Pad each side by this many pixels of zeros and cut a random window of the old size; 0 for none."""
    cutout: int = 0
    """Blank a square of this side at a random place; 0 for none."""


@dataclass
class Optimizer:
    """How the weights are updated."""

    name: Literal["sgd", "adamw", "adam"] = "sgd"
    """The algorithm; sgd uses Nesterov's momentum unless told otherwise."""
    lr: float = 0.1
    """Peak learning rate, at the batch size given: it is not scaled."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = True
    """Nesterov's momentum in sgd."""
    weight_decay: float = 5e-4
    """L2 penalty; not applied to batch norms and biases."""


@dataclass
class Schedule:
    """How the learning rate moves over the epochs."""

    name: Literal["cosine", "onecycle", "step", "constant"] = "cosine"
    """cosine: linear warm-up, then half a cosine to zero. onecycle: a rise over the first 30 %, then down.
    step: divided by ten at each milestone, as in the ECA-Net paper."""
    warmup_epochs: float = 1.0
    """Length of the linear warm-up from a hundredth of the peak (cosine and step)."""
    milestones: list[int] = field(default_factory=lambda: [30, 60, 90])
    """Epochs after which step divides the rate by ten."""


@dataclass
class RunSettings:
    """Everything that all runs of a study share; attention module and seed come on top."""

    data: str = "digits"
    """digits, cifar10, cifar100, or a folder with train/ and val/ or test/, a folder a class inside."""
    model: str = "resnet20"
    """A name of ecanet's or timm's registry, or torchvision/NAME."""
    epochs: int = 30
    """Passes over the training split."""
    batch_size: int = 128
    """Images a step, on each device."""
    image_size: int | None = None
    """Side in pixels that images are brought to; by default the data's own when all are alike and small."""
    validation: float = 0.1
    """Fraction of train held out for choosing and curves, when the data has no val split beside test."""
    select: Literal["last", "best"] = "last"
    """Weights that are tested: those of the last epoch, or of the best on the validation split."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    skip_corrupt: bool = False
    """Leave out images that cannot be read, and count them, in place of stopping."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the device computes in it, float32 elsewhere."""
    channels_last: bool = True
    """Keep images and weights channels last in memory, as fast convolutions want them."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto: when the run is long enough to pay for it."""
    loggers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)
    """Beside the CSV that is always written."""
    project: str | None = None
    """W&B project; needs the wandb logger."""


@dataclass
class StudySettings:
    """What a comparison adds to the settings of its runs."""

    attention: list[str] = field(default_factory=lambda: ["none", "se", "eca"])
    """Attention modules to compare, the baseline first, with arguments if wanted: eca:kernel_size=9."""
    seeds: int = 6
    """Runs of each module. To show a difference at the 5 % level, one module beside the baseline needs
    at least 6, two or three need 7, four to six 8."""
    first_seed: int = 0
    """The first seed; the others follow it."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register attention modules or models of your own."""
