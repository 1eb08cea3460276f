"""Typed settings: what a run is made of. A recipe is a YAML file of these names.

Commands compose the groups below. What may change when a run resumes, what the runs of a study share
and what a recipe leaves out follow from the groups, at the end of this file.

This file imports no torch, so that ``--help`` and a wrong flag answer at once.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from os import PathLike
from pathlib import PurePath
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

from ecanet.errors import UserError
from ecanet.typed import field_types

_Settings = TypeVar("_Settings")

DetectorKind = Literal["faster_rcnn", "mask_rcnn", "retinanet"]
DetectorNorm = Literal["frozen", "batch", "group"]

_LR = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3, "lamb": 5e-3}
_LR_BATCH_SIZE = 128
# Share of the default rate for weights that were trained before: more would undo what they have learned.
_FINE_TUNING = 0.1

# Of no run, and within what every library can hold.
_MANY = 10**9
# What each number may be, whichever settings it is of: the least and the greatest; whole numbers where
# these are. A bound that is itself too small or too large is in _OPEN.
_BOUNDS: dict[str, tuple[float, float]] = {
    "crop_padding": (0, 4096), "cutout": (0, 4096), "image_size": (1, 16384), "eval_size": (1, 16384),
    "min_size": (32, 16384), "max_size": (32, 16384), "width": (1, 8192), "anchor_size": (1, 4096),
    "epochs": (1, 10**6), "milestones": (0, 10**6), "warmup_steps": (0, _MANY), "repeats": (1, 10**6),
    "batch_size": (1, 10**6), "batch_sizes": (1, 10**6), "lr_batch_size": (1, 10**6),
    "limit": (1, _MANY), "cams": (0, 1000), "frames": (1, _MANY),
    "save_every": (0.0, 1e9), "rollbacks": (0, _MANY), "workers": (0, 1024), "devices": (1, 4096),
    "threads": (1, 4096), "jobs": (1, 4096), "seeds": (1, 10**5), "max_seeds": (1, 10**4),
    "detect": (0.0, 100.0), "confidence": (0.5, 1.0), "power": (0.5, 1.0), "sd": (0.0, 100.0),
    "correlation": (0.0, 0.95), "modules": (1, 1000), "seconds": (0.0, 1e9), "watts": (0.0, 1e6),
    "price": (0.0, 1e9),
    "seed": (0, 2**32 - 1), "first_seed": (0, 2**32 - 1),
    "trials": (1, 10**5), "confirm": (0, 10**4), "confirm_seeds": (1, 10**4), "magnitude": (0, 30),
    "freeze": (1, 100), "layer_decay": (0.0, 1.0), "new_lr_scale": (0.0, 1e6),
    "frozen_stages": (0, 5), "proposals": (1, 10**5), "box_samples": (1, 10**5), "top": (1, 10**5),
    "window": (-1e12, 1e12),
    "epoch_length": (1.0, 1e4), "channels": (1, 10**5),
    "num_classes": (1, 10**7), "lr": (0.0, math.inf), "momentum": (0.0, 1.0),
    "weight_decay": (0.0, math.inf), "warmup_epochs": (0.0, 1e6),
    "test": (0.0, 1.0),
    "label_smoothing": (0.0, 1.0), "scale": (0.0, 1.0), "mixup": (0.0, 1e3), "cutmix": (0.0, 1e3),
    "crop_share": (0.0, 1.0), "drop_rate": (0.0, 1.0), "clip_grad": (0.0, math.inf),
    "ema_decay": (0.0, 1.0), "timeout": (0.0, math.inf), "threshold": (0.0, 1.0),
}  # fmt: skip
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_OPEN = {
    "test": "low high", "detect": "low", "confidence": "high", "power": "high", "sd": "low",
    "seconds": "low", "lr": "low high", "momentum": "high", "weight_decay": "high",
    "label_smoothing": "high",
    "scale": "low", "crop_share": "low", "drop_rate": "high", "clip_grad": "low high",
    "ema_decay": "low high", "timeout": "low high", "layer_decay": "low", "new_lr_scale": "low",
}  # fmt: skip


def check_ranges(settings: Any, group: str = "") -> None:
    """Refuse values of other types, numbers that mean nothing, are not finite or too large, empty texts.

    Args:
        settings: a dataclass of this file, those within it included.
        group: what stands before the names of its fields.

    Raises:
        UserError: one line that names the setting and what it takes.
    """
    for name, (kinds, is_list) in _kinds(settings.__class__).items():
        value = getattr(settings, name)
        if is_dataclass(value):
            check_ranges(value, f"{group}{name}.")
            continue
        flag = f"--{group}{name}".replace("_", "-")
        several = isinstance(value, (list, tuple))
        if is_list and not several and value is not None:
            raise UserError(f"{flag} {value}: give a list")
        for item in value if several else [value]:
            if item == "":
                raise UserError(f"{flag} is empty: leave it out, or give a value")
            if isinstance(item, (int, float)) and (wanted := _wanted(name, item)):
                raise UserError(f"{flag} {item}: give {wanted}")
            if not (item in kinds or any(_is(item, kind) for kind in kinds)):
                known = [str(_KINDS.get(kind, kind)) for kind in kinds if kind is not type(None)]
                raise UserError(f"{flag} {item!r}: give {' or '.join(known)}")


@functools.cache
def _kinds(cls: Any) -> dict[str, tuple[list[Any], bool]]:
    """Return what each setting of a class may be, types and words, and whether that is a list's items."""
    found = {}
    for name, declared in field_types(cls).items():
        kinds, is_list, waiting = [], False, [declared]
        while waiting:
            hint = waiting.pop(0)
            is_list |= get_origin(hint) is list
            if options := get_args(hint):
                waiting[:0] = options
            else:
                kinds.append(hint)
        found[name] = kinds, is_list
    return found


def _is(value: Any, kind: Any) -> bool:
    if kind is str:
        return isinstance(value, (str, PathLike))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(kind, type) and isinstance(value, kind)


def _wanted(name: str, value: float) -> str:
    """Return what a number must be; "" if it is."""
    if name not in _BOUNDS or isinstance(value, bool):
        return ""
    (low, high), ends = _BOUNDS[name], _OPEN.get(name, "")
    above = low < value if "low" in ends else low <= value
    below = value < high if "high" in ends else value <= high
    if above and below:  # NaN is neither
        return ""
    kind = "a whole number" if isinstance(low, int) else "a number"
    start = f"above {low:g}" if "low" in ends else f"from {low:g}"
    if high == math.inf or high == _MANY:
        return f"{kind} {start}"
    return f"{kind} {start} to {'below ' if 'high' in ends else ''}{high:.10g}"


class Checked:
    """Settings whose values are checked when they are made, by :func:`check_ranges`."""

    def __post_init__(self) -> None:
        check_ranges(self)
        window = getattr(self, "window", None)
        if window is not None and (len(window) != 2 or window[0] >= window[1]):
            raise UserError(
                f"--window {window}: give the values of black and of white, the first the less, such as "
                "-1000,400"
            )


@dataclass
class Architecture:
    """Which network is used."""

    model: str | None = None
    """Name of a network: one of ecanet or timm (`ecanet list models`), or torchvision/NAME. By default the
    one that the weight file names; otherwise resnet50 with `pretrained`, resnet20 for small images, and for
    photographs resnet50, or eca_resnet50 in `ecanet train`."""
    attention: str | None = None
    """Attention module to use, optionally with arguments: eca:kernel_size=9. By default the one in the
    model's name."""
    kernel_sizes: str | None = None
    """ECA's kernel size in each stage, as in 3557 for the released ECA-ResNet-50. By default the kernel size
    follows from the number of channels."""


@dataclass
class NewArchitecture(Architecture):
    """Which network is built."""

    replace_attention: bool = False
    """Replace attention modules that the network already has, such as the SE modules of RegNetY."""


@dataclass
class Network(NewArchitecture):
    """Which network is built, and the weights it starts from."""

    pretrained: bool = False
    """Start from the ImageNet weights of timm or torchvision."""
    weights: str | None = None
    """File of weights to start from, in any layout that `ecanet convert` reads, or hf-hub:OWNER/NAME for the
    Hugging Face Hub."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register your own attention modules or models."""


@dataclass
class Machine:
    """Where a run computes. Nothing here changes the results."""

    device: str = "auto"
    """Device to compute on: auto, cpu, cuda, cuda:1 or mps."""
    devices: int = 1
    """Number of devices that train one run together, one process per device. torchrun and SLURM set it
    themselves. If a run fits on one device, training several runs side by side is faster."""
    workers: int | None = None
    """Processes per device that read and augment images. By default one per CPU core, at most 16. 0 reads
    them in the main process."""


@dataclass
class Numerics:
    """How numbers are computed. These settings change the last digits of the results."""

    threads: int | None = None
    """CPU threads per process. The number of threads decides in which order sums are added, so it changes the
    last digits of the results; the number of cores does not. By default 1 in a study and for data in memory,
    otherwise 2. No effect on a GPU."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Number format for training; evaluation always uses float32. auto selects bf16 where the device supports
    it."""
    channels_last: bool = True
    """Store images and weights in channels-last layout, the fastest for convolutions."""


@dataclass
class Compilation:
    """Whether the network is compiled. This changes the last digits of the results."""

    compile: Literal["auto", "on", "off"] | bool = "auto"
    """Compile the network with torch.compile. auto compiles it if the run is long enough to save time by
    it."""


@dataclass
class Tracking:
    """Where metrics are logged, in addition to the CSV file that is always written."""

    loggers: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = field(
        default_factory=list
    )
    """Experiment trackers to log to, one or several."""
    project: str | None = None
    """Project in W&B or trackio, or experiment in MLflow; by default ecanet. If none of these loggers is
    given, this turns on W&B."""


@dataclass
class Recovery:
    """How a run survives interruptions, and steps whose loss or gradients are not finite."""

    save_every: float = 120.0
    """Seconds between checkpoints. A checkpoint is also saved when the run is interrupted or ends. A run that
    is killed resumes from the last one."""
    rollbacks: int = 3
    """How many times a run may roll back when its loss or gradients stop being finite. Each rollback returns
    to the last good state and halves the learning rate; after the last, the run fails."""


@dataclass
class Augmentation:
    """Random changes to training images, drawn per image from seed, epoch and index."""

    flip: bool | None = None
    """Mirror images left to right with probability 1/2. By default on, except where mirroring changes the
    meaning: if the classes are single digits or letters."""
    crop_padding: int | None = None
    """Pad images with this many zeros on each side, then crop them to their old size at a random place; 0
    turns it off. By default an eighth of the side of small images, at most 4."""
    scale: list[float] | None = None
    """Crop a random part of the image and resize it. The two values are the smallest and largest share of its
    area, by default '[0.08, 1]' for photographs. Replaces crop_padding."""
    cutout: int = 0
    """Side in pixels of a square that is blanked at a random place; 0 turns it off."""
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    """Further random changes of color and shape, from torchvision."""
    magnitude: int = 6
    """Strength of the two changes that randaugment makes, 0 to 30."""
    mixup: float = 0.0
    """Alpha of mixup (arXiv 1710.09412), applied to whole batches; 0 turns it off."""
    cutmix: float = 0.0
    """Alpha of CutMix (arXiv 1905.04899); 0 turns it off. With mixup, each batch gets one of the two."""


@dataclass
class Optimizer:
    """How the weights are updated."""

    name: Literal["sgd", "adamw", "adam", "lamb"] = "sgd"
    """Optimizer to use. sgd uses Nesterov momentum by default."""
    lr: float | None = None
    """Peak learning rate; lr_batch_size may scale it with the batch size. By default 0.001 for adam and
    adamw, 0.005 for lamb, and 0.1 for sgd, which is for batches of 128 and scaled in proportion where
    lr_batch_size is off; a tenth of that with `pretrained` or `weights`."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = True
    """Use Nesterov momentum in sgd."""
    weight_decay: float = 5e-4
    """L2 penalty; not applied to batch norms and biases."""
    layer_decay: float | None = None
    """Factor on the learning rate for each layer away from the output, as in BEiT (arXiv 2106.08254). With
    0.75, early layers are hardly trained. The classifier and inserted attention modules keep the full
    rate."""
    new_lr_scale: float = 1.0
    """Factor on the learning rate of the classifier and of inserted attention modules."""


def with_lr(
    optimizer: Optimizer, batch_size: int | None = None, *, fine_tuned: bool = False
) -> Optimizer:
    """Return ``optimizer`` with its learning rate settled: the one given, or the algorithm's default.

    The default of sgd is proportional to the batch (Goyal et al., arXiv 1706.02677); Adam and LAMB
    normalise their steps, and theirs stays. Without ``batch_size`` nothing is scaled. Of weights that are
    ``fine_tuned`` the default is a tenth.
    """
    if optimizer.lr is not None:
        return optimizer
    scale = batch_size / _LR_BATCH_SIZE if batch_size and optimizer.name == "sgd" else 1.0
    return replace(
        optimizer, lr=_LR[optimizer.name] * scale * (_FINE_TUNING if fine_tuned else 1.0)
    )


@dataclass
class Transfer:
    """How training starts from pretrained weights."""

    identity: bool | None = None
    """Start inserted attention modules as the identity, so that the network first computes what it does
    without them. By default on with `pretrained` or `weights`, except with replace_attention or if the weight
    file contains attention modules."""
    freeze: int | Literal["none", "backbone"] = "none"
    """Which of the loaded weights are not trained. none: all are trained. backbone: only the classifier and
    inserted attention modules are trained. A number: that many stages from the input, with the stem, are
    frozen. Frozen batch norms keep their statistics."""


@dataclass
class Schedule:
    """How the learning rate changes over the epochs."""

    name: Literal["cosine", "onecycle", "step", "exponential", "constant"] = "cosine"
    """Learning rate schedule. cosine: linear warm-up, then half a cosine to zero. onecycle: up for the first
    30 %, then down. step: divided by ten at each of the milestones, as in the ECA-Net paper. exponential:
    times 0.98 after each epoch, as in the paper for MobileNetV2."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up, from a hundredth of the peak (cosine, step and exponential)."""
    milestones: list[int] = field(default_factory=lambda: [30, 60, 90])
    """Epochs after which the step schedule divides the learning rate by ten."""


@dataclass
class Splitting:
    """How images are divided into training, validation and test splits where the data does not define
    them."""

    validation: float | None = None
    """Fraction of the training images held out for validation. By default 0.1; 0 if the data has both val/
    and test/. If it has only val/, `ecanet train` validates on that and has no test split."""
    test: float | None = None
    """Fraction of all images held out as the test split, if the data has no splits. By default 0.2."""
    group_by: str | None = None
    """Regular expression that finds the group in an image's name, such as the patient or the scene. The group
    is the first capturing group, or the whole match. All images of a group go into the same split."""
    columns: list[str] = field(default_factory=list)
    """Columns of a table to use, as in path=file,label=species,split=fold,group=patient. By default columns
    with the usual names are found, except for groups, which are used only if named here. split= ignores the
    split column."""


@dataclass
class Images(Splitting):
    """Which images a classifier is trained and evaluated on, and how they are loaded."""

    data: str = "digits"
    """Images to train on: a folder with one folder per class, or with train/, val/ and test/ that contain
    these; a CSV or Parquet file with the columns path, label and split; digits, cifar10, cifar100,
    torchvision/NAME or hf:NAME."""
    storage: Literal["auto", "memory", "stream"] = "auto"
    """How images are loaded. memory: all are decoded once and kept on the device. stream: they are read when
    needed. auto: memory for up to 2 GB of decoded images."""
    image_size: int | None = None
    """Side of training images in pixels. By default the size of the images if they are small and all alike
    (64 are looked at), otherwise 224."""
    eval_size: int | None = None
    """Side of evaluation images in pixels; by default image_size."""
    in_chans: Literal[1, 3] | None = None
    """Number of input channels. 1 converts color to grey, 3 repeats grey. By default 3, or those of a named
    data set."""
    window: list[float] | None = None
    """Pixel values that become black and white in grey images of more than 8 bits, as in -1000,400. By
    default 16-bit images keep their upper 8 bits, and floats range from 0 to 1."""
    crop_share: float | None = None
    """Share of the resized short side that the center crop of evaluation keeps. By default 1 for small images
    and 0.875 for photographs."""
    corrupt: Literal["refuse", "skip"] = "refuse"
    """What to do with an image that cannot be read. refuse: stop with an error. skip: report and skip it;
    streamed training uses another image in its place."""


@dataclass
class Training:
    """How a network of any task is trained."""

    epochs: int | None = None
    """Number of passes over the training images. By default 30 for small images and with `pretrained` or
    `weights`, otherwise 100."""
    epoch_length: float = 1.0
    """Passes over the training images in one epoch. 1.24 trains 24 % longer; the schedule is stretched, and
    the number of evaluations stays the same."""
    batch_size: int | None = None
    """Images per step, summed over all devices. By default 128 for small images and 256 for photographs, and
    less if there are few."""
    lr_batch_size: int | Literal["auto"] | None = "auto"
    """Batch size that optimizer.lr is meant for: the learning rate is multiplied by batch_size over this
    number. auto: 256 for photographs, 16 for detectors, no scaling for small images. null turns it off."""
    clip_grad: float | None = None
    """Maximum norm of the gradient, over all weights; longer gradients are shortened to it."""
    ema_decay: float | None = None
    """Decay per step of an exponential moving average of the weights, which is then evaluated and saved in
    place of the weights. By default none is kept."""
    seed: int = 0
    """Seed of initialization, shuffling, augmentation and dropout."""
    sync_batchnorm: bool = False
    """Compute batch norm statistics over all devices. Only on GPUs."""


@dataclass
class TrainingSettings(Tracking, Recovery, Numerics, Machine, Training, Network, Checked):
    """Settings that the runs of all tasks have."""

    def images_per_norm(self, processes: int) -> int:
        """Return how many images of a step a batch norm computes its statistics of."""
        return self.batch_size // (1 if self.sync_batchnorm else processes)  # type: ignore[operator]

    def title(self) -> str:
        """Return what is trained on what."""
        detector = getattr(self, "detector", None)
        network = f"{detector}, {self.model}" if detector else self.model
        return f"{network} on {self.data.rstrip('/').rpartition('/')[2]}"  # type: ignore[attr-defined]

    @property
    def best(self) -> str:
        """Column of the epochs whose best value makes the best epoch."""
        metric = getattr(self, "metric", None)
        return f"val_{metric}" if metric else "box_AP"

    @property
    def judged(self) -> str:
        """Column of a record's ``final`` that a comparison judges a run by."""
        return self.best.replace("val_", "test_")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.project and not {"wandb", "trackio", "mlflow"} & {*self.loggers}:
            self.loggers = [*self.loggers, "wandb"]


@dataclass
class Judging:
    """Which metric decides."""

    metric: Literal[
        "accuracy", "balanced_accuracy", "macro_f1", "auroc", "loss", "calibration_error"
    ] = "accuracy"
    """Metric that decides. On the validation split it selects the best epoch and, in a sweep whose file names
    no metric, the best settings; on the test split it compares modules. The others are measured, too."""


@dataclass
class ClassificationSettings(Compilation, TrainingSettings, Transfer, Judging, Images):
    """Settings for training a classifier; the defaults depend on the images.

    Small images (up to 96 pixels) are trained as is usual on CIFAR, photographs as on ImageNet:
    :func:`ecanet.training.classification.resolve`.
    """

    select: Literal["last", "best"] | None = None
    """Epoch whose weights are tested and reported: the last one, or the best on the validation split by
    `metric`. By default last, or best if there is no test split."""
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """Loss function. bce is a binary cross-entropy per class, as in ResNet strikes back (arXiv
    2110.00476)."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weights of the classes in the cross-entropy. balanced: in inverse proportion to their number of
    training images, so that rare classes count as much as frequent ones."""
    balanced_sampling: bool = False
    """Draw training images with replacement so that all classes are equally frequent."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""
    drop_rate: float = 0.0
    """Dropout probability before the classifier."""
    channels: list[int] | None = None
    """Number of channels in each stage of a ResNet or mobilenet_v2: 20,40,80 makes resnet20 wider. By default
    those of the model."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)

    @property
    def starts_from_weights(self) -> bool:
        """Whether the network starts from weights that were trained before."""
        return self.pretrained or self.weights is not None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_weights != "none" and self.balanced_sampling:
            raise UserError(
                "--class-weights balanced and --balanced-sampling both make up for rare classes: give one"
            )
        if self.class_weights != "none" and self.loss != "cross_entropy":
            raise UserError(
                f"--class-weights {self.class_weights} is for --loss cross_entropy: leave one out, or "
                "use --balanced-sampling"
            )
        if self.freeze != "none" and not self.starts_from_weights:
            raise UserError(
                f"--freeze {self.freeze}: fresh weights must be trained; give --pretrained or --weights FILE"
            )
        if self.pretrained and self.weights:
            raise UserError("--pretrained and --weights: give only one")
        if self.identity and self.replace_attention:
            raise UserError(
                "--identity with --replace-attention: without its own attention modules the network cannot "
                "compute what it did; leave one out"
            )
        if isinstance(self.compile, bool):  # as YAML has on and off
            self.compile = "on" if self.compile else "off"
        scale = self.augmentation.scale
        if scale is not None:
            if self.augmentation.crop_padding:
                raise UserError("--augmentation.scale and --augmentation.crop_padding: give one")
            if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
                raise UserError(
                    f"--augmentation.scale {scale}: give two shares of the area, such as '[0.08, 1]'"
                )


@dataclass
class OutsideSettings(Checked):
    """Settings of runs that are trained by another library or by your own code."""

    devices: ClassVar[int] = 1
    loggers: ClassVar[tuple[str, ...]] = ()
    program: ClassVar[str] = "ecanet"
    """The command line whose `compare` takes these settings."""
    shares_seed: ClassVar[bool] = False
    """Whether runs of one seed are known to share initial weights, order of images and augmentation."""

    attention: str | None = None
    """Attention module to use, optionally with arguments: eca:kernel_size=9."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda, cuda:1 or mps."""
    threads: int | None = None
    """CPU threads per run; by default 1."""
    seed: int = 0
    """Seed of the run."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register your own attention modules."""

    @property
    def best(self) -> str:
        """Column that a run reports after each epoch."""
        raise NotImplementedError(f"{type(self).__name__} defines no best")

    @property
    def judged(self) -> str:
        """Column of a record's ``final`` that a comparison judges a run by."""
        return self.best

    def title(self) -> str:
        """Return what is trained on what."""
        raise NotImplementedError(f"{type(self).__name__} defines no title")

    @property
    def trainer_name(self) -> str:
        """What trains the runs, in sentences."""
        return self.title()

    def programs(self) -> list[str]:
        """Return what of these settings is a program, which must be trusted before it is run."""
        return []


@dataclass
class TrainerSettings(OutsideSettings):
    """Training by your own function or command."""

    trainer: str | None = None
    """Function that trains one run, as in mine.py:train. It is called as train(attention, seed, folder,
    report) and returns a dictionary of metrics. It may call report(epoch, name=value, ...) after each epoch,
    and save state in folder to resume from."""
    command: str | None = None
    """Command that trains one run, in place of `trainer`. {attention}, {seed} and {out} are filled in:
    "python train.py --attn {attention} --seed {seed} --out {out}". It writes its metrics to {out}, either as
    metrics.json or as metrics.csv with one line per epoch, of which the last is used."""
    directory: str | None = None
    """Folder in which the command runs; by default the current one."""
    network: str | None = None
    """Function that builds the network, so that its cost can be measured, as in mine.py:network.
    network(attention) returns the model and an example batch of images."""
    metric: str = "accuracy"
    """Metric that modules are compared by, one of those that your runs return. Accuracy, F1, AUROC, IoU, Dice
    and AP are taken as fractions and shown in percent; other metrics are shown as they are."""
    direction: Literal["max", "min"] | None = None
    """Whether larger (max) or smaller (min) values of the metric are better. By default max, and min for
    losses and errors."""

    @property
    def best(self) -> str:
        return self.metric

    def title(self) -> str:
        if self.trainer:
            return self.trainer.rpartition("/")[2]
        return self.command or ""

    def programs(self) -> list[str]:
        return [program for program in (self.trainer, self.command, self.network) if program]

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.trainer is None) == (self.command is None):
            raise UserError("give --trainer FILE:FUNCTION or --command, one of the two")
        if self.command is not None:
            missing = [
                name for name in ("attention", "seed", "out") if f"{{{name}}}" not in self.command
            ]
            if missing:
                raise UserError(
                    f"--command has no {{{missing[0]}}}: write it where the command takes "
                    + {"attention": "the attention module", "seed": "the seed"}.get(
                        missing[0], "the folder that its metrics go to"
                    )
                )
        for flag in ("trainer", "network"):
            value = getattr(self, flag)
            if value is not None and not re.fullmatch(r".+:[A-Za-z_]\w*", value):
                raise UserError(f"--{flag} {value}: give FILE:FUNCTION, as in mine.py:{flag}")


@dataclass
class YoloSettings(OutsideSettings):
    """Training of a YOLO or RT-DETR by Ultralytics, which is licensed under the AGPL-3.0."""

    program: ClassVar[str] = "ecanet yolo"
    license: ClassVar[str] = (
        "Ultralytics is licensed under the AGPL-3.0, which binds what is built on it."
    )
    shares_seed: ClassVar[bool] = True

    data: str | None = None
    """Data set as a YAML file of Ultralytics, with path, train, val, names and optionally test. Runs are
    compared on test if it is there, otherwise on val."""
    model: str = "yolo11n.yaml"
    """Model to train. A YAML name of Ultralytics, such as yolo11n.yaml, yolo26s-seg.yaml or rtdetr-l.yaml,
    starts from fresh weights; a weight file, such as yolo11n.pt, from those. libreyolo/yolo9-t and the like
    are trained by LibreYOLO."""
    places: str = "blocks"
    """Where attention modules are inserted. blocks: at the end of every C2f, C3, C3k2 and similar block.
    backbone, neck: only in these blocks of the backbone or neck. before-detect: behind every layer that the
    head reads. Or a pattern of module names."""
    identity: bool | None = None
    """Start attention modules as the identity, so that the network first computes what it does without them.
    By default on if `model` is a weight file."""
    epochs: int = 100
    """Number of passes over the training images. There is no early stopping."""
    image_size: int = 640
    """Longer side of the images in pixels, a multiple of 32."""
    batch_size: int = 16
    """Images per step."""
    workers: int = 8
    """Processes that read and augment images when training on a GPU. Their number changes the random numbers,
    and so the results."""
    set: list[str] = field(default_factory=list)
    """Further arguments for the library, as in lr0=0.001,warmup_epochs=1."""

    @property
    def best(self) -> str:
        return "map50_95"

    @property
    def trainer_name(self) -> str:
        return "Ultralytics"

    @property
    def weights(self) -> str | None:
        """The file of weights that runs start from."""
        return self.model if self.model.endswith(".pt") else None

    def title(self) -> str:
        model, data = PurePath(self.model), PurePath(self.data or "")
        named = data.parent.name if data.stem == "data" else ""  # as most are called
        return f"{model.stem} on {named or data.stem}"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % 32:
            near = max(32, round(self.image_size / 32) * 32)
            raise UserError(
                f"--image-size {self.image_size}: give a multiple of 32, such as {near}"
            )


@dataclass
class LibreYoloSettings(YoloSettings):
    """Training of a YOLO, RT-DETR or D-FINE by LibreYOLO, from fresh weights."""

    shares_seed: ClassVar[bool] = False

    model: str = "libreyolo/yolo9-t"
    """Model to train: libreyolo/FAMILY-SIZE, such as libreyolo/yolo9-t, libreyolo/yolox-s or
    libreyolo/rtdetr-r18."""

    @property
    def trainer_name(self) -> str:
        return "LibreYOLO"


@dataclass
class StudySettings(Checked):
    """What a comparison adds to the settings of its runs."""

    attention: list[str] = field(default_factory=lambda: ["none", "se", "eca"])
    """Attention modules to compare, the baseline first, optionally with arguments: eca:kernel_size=9. control
    is the network without a module, trained for as long as the slowest module takes. control:macs and
    control:parameters make it wider until it costs as much as the most expensive module, control:macs=se as
    much as se."""
    seeds: int | Literal["auto"] = "auto"
    """Runs per module. auto trains 4, then one more at a time until each module is better, worse or
    equivalent, or cannot get an answer within max_seeds. A number trains that many for every module and tests
    once at the end."""
    detect: float | None = None
    """Smallest difference that matters, in percentage points, or in nats for log loss. Modules that differ by
    less are equivalent. By default 0.5 points or 0.02 nats."""
    max_seeds: int = 12
    """Most runs per module that `seeds` auto may train."""
    confidence: float = 0.95
    """Probability that all intervals of the study hold at once, no matter after which seed you look."""
    pairing: Literal["auto", "paired", "unpaired"] = "auto"
    """How runs with the same seed are compared: as pairs, or as independent runs. auto decides by their
    correlation."""
    first_seed: int = 0
    """First seed; the others count up from it."""
    keep_weights: Literal["best", "last", "none"] | None = None
    """Which weights are kept when the study ends. best: those of the best run of each module, chosen by the
    validation metric. last: those of every run. none: no weights. By default best; a study that is resumed
    keeps its setting."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds == "auto" and self.max_seeds < 4:
            raise UserError(
                f"--max-seeds {self.max_seeds}: --seeds auto begins with 4; give more, or a number of --seeds"
            )


AnySettings = TrainingSettings | OutsideSettings
"""Settings of the runs of a study."""


@dataclass
class SweepSettings(Checked):
    """What a sweep adds to the settings of its runs and to its file."""

    trials: int | None = None
    """Number of trials, each with settings of its own. By default run_cap of the sweep file, the whole grid,
    or 20."""
    timeout: float | None = None
    """Seconds after which no new run starts. Runs in progress are finished."""
    confirm: int = 0
    """How many of the best trials are trained again with fresh seeds, and then tested."""
    confirm_seeds: int = 3
    """Seeds for each of these."""


@dataclass(kw_only=True)
class Inference:
    """How a trained model computes."""

    precision: Literal["auto", "float32", "bf16", "fp16"] = "float32"
    """Number format. float32 does not use TF32, just as evaluation during training. auto selects bf16 where
    the device supports it."""
    channels_last: bool = True
    """Store images and weights in channels-last layout, the fastest for convolutions."""


@dataclass(kw_only=True)
class ClassifierInference(Inference, Architecture):
    """Which trained classifier is used, and how its images are prepared."""

    weights: str | None = None
    """File of weights, in any layout that `ecanet convert` reads; or the folder of a run or a study, of which
    the best run is used. The file usually names the model."""
    model: str | None = None
    """Name of the model, with `pretrained` or if the weight file does not name it."""
    pretrained: bool = False
    """Use the ImageNet weights of timm or torchvision for `model`, in place of `weights`."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register your own attention modules or models."""
    eval_size: int | None = None
    """Side of the images in pixels. By default this and the next four settings are read from the weight
    file."""
    crop_share: float | None = None
    """Share of the resized short side that the center crop keeps: 0.875 for 224 of 256."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How images are resized."""
    mean: list[float] | None = None
    """Mean of each channel, for values from 0 to 1; for ImageNet '[0.485, 0.456, 0.406]'."""
    std: list[float] | None = None
    """Standard deviation of each channel, for values from 0 to 1; for ImageNet '[0.229, 0.224, 0.225]'."""
    window: list[float] | None = None
    """Pixel values that become black and white in grey images of more than 8 bits, as in -1000,400. By
    default read from the weight file."""


@dataclass
class EvaluateSettings(Splitting, ClassifierInference, Machine, Checked):
    """Evaluation of a classifier on a folder of images."""

    split: str | None = None
    """Split, or folder within the data, to evaluate: by default val, or test if there is no val. For data
    without splits, all evaluates every image; by default only those held out for testing are."""
    batch_size: int = 256
    """Images per step, summed over all devices."""
    corrupt: Literal["refuse", "skip"] = "refuse"
    """What to do with an image that cannot be read. refuse: stop with an error. skip: report and skip it."""


@dataclass
class ClassifySettings(ClassifierInference, Checked):
    """Classification of your own images."""

    top: int = 5
    """Number of classes listed for each image, the most probable first."""
    batch_size: int = 64
    """Images per step."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda, cuda:1 or mps."""
    workers: int | None = None
    """Processes that read images. By default one per CPU core, at most 16. 0 reads them in the main
    process."""


@dataclass
class DetectionOptimizer:
    """How a detector's weights are updated."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimizer to use."""
    lr: float | None = None
    """Peak learning rate at batch size lr_batch_size. By default 0.02, 0.01 for retinanet and 0.0001 with
    adamw."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 1e-4
    """L2 penalty; not applied to norms and biases."""


@dataclass
class DetectionSchedule:
    """How a detector's learning rate changes."""

    name: Literal["step", "cosine", "constant"] = "step"
    """Learning rate schedule. step: divided by ten at each of the milestones. cosine: half a cosine to
    zero."""
    warmup_steps: int = 500
    """Steps of linear warm-up, from a thousandth of the peak."""
    milestones: list[int] | None = None
    """Epochs after which the step schedule divides the learning rate by ten. By default 8 and 11 of 12
    epochs, and in proportion for other numbers of epochs."""


@dataclass
class DetectorShape(NewArchitecture):
    """Which detector is built: the settings that its weights depend on."""

    model: str | None = None
    """Backbone: resnet18 to resnet152 or mobilenet_v2, each also with eca_ in front, or any CNN of timm. By
    default the one in the weight file, or eca_resnet50."""
    detector: DetectorKind | None = None
    """Kind of detector. faster_rcnn and retinanet predict boxes; mask_rcnn also predicts masks. By default
    the one in the weight file, or mask_rcnn."""
    norm: DetectorNorm | None = None
    """Norms of the backbone. frozen: batch norms with the statistics of the loaded weights. batch: trained
    batch norms. group: group norms, for small batches. By default as in the weight file; otherwise frozen if
    the backbone starts from weights, and batch if not."""
    width: int | None = None
    """Channels of the feature pyramid and the heads. By default as in the weight file, or 256."""


@dataclass
class CocoImages:
    """Which images a detector is trained and evaluated on."""

    data: str = "shapes"
    """Folder in COCO's format to train on, or shapes for generated images."""
    split: str = "train"
    """Split to train on: annotations/instances_SPLIT*.json."""
    eval_split: str = "val"
    """Split to evaluate after each epoch. It may equal `split`, to see whether the detector can overfit."""
    limit: int | None = None
    """Train on only this many images, the first of the split."""
    keep_empty: bool = False
    """Also train on images without objects."""
    ignore_exif: bool = False
    """Ignore the EXIF orientation of images, for annotations made without it."""


@dataclass
class DetectionSettings(TrainingSettings, DetectorShape, CocoImages):
    """Training of a detector on a folder in COCO's format."""

    weights: str | None = None
    """File of weights to start from: a detector of ecanet, MMDetection or torchvision. Settings that are not
    given are read from it. If the classes differ, the last layers start fresh."""
    backbone_weights: str | None = None
    """File of weights for the backbone, from `ecanet train`, `ecanet convert` or the official release."""
    frozen_stages: int | None = None
    """Stages of the backbone that are not trained. By default 1 if it starts from weights, otherwise 0."""
    min_size: list[int] | None = None
    """Short side of the images in pixels. With several, each training image gets one of them at random, and
    evaluation uses the last. By default as in the weight file, or 800."""
    max_size: int | None = None
    """Maximum of the long side in pixels. By default as in the weight file, or 1333."""
    anchor_size: int | None = None
    """Side of the smallest anchors in pixels; it doubles at each level of the pyramid. By default as in the
    weight file, or 32."""
    proposals: int | None = None
    """Boxes per image that the proposal network passes to the heads; by default 1000."""
    box_samples: int | None = None
    """Boxes per image that the heads are trained on; by default 512."""
    flip: bool = True
    """Mirror images left to right with probability 1/2."""
    epochs: int = 12
    """Number of passes over the training images, each followed by an evaluation."""
    repeats: int = 1
    """How often each image is used in one epoch, for small data sets."""
    batch_size: int = 16
    """Images per step, summed over all devices."""
    optimizer: DetectionOptimizer = field(default_factory=DetectionOptimizer)
    schedule: DetectionSchedule = field(default_factory=DetectionSchedule)
    keep_epochs: bool = False
    """Keep the weights of each epoch in epochs/, to draw the progress later."""


@dataclass(kw_only=True)
class DetectorSize:
    """The size of the images that a trained detector gets."""

    min_size: int | None = None
    """Short side of the images in pixels; by default as in training."""
    max_size: int | None = None
    """Maximum of the long side in pixels; by default as in training."""


@dataclass
class EvaluateDetectorSettings(DetectorSize, Machine, Checked):
    """Evaluation of a detector on a data set in COCO's format."""

    weights: str | None = None
    """File of weights of `ecanet detect train`, MMDetection or torchvision. It names the detector."""
    split: str = "val"
    """Split to evaluate: train, val, or a full name such as val2017."""
    limit: int | None = None
    """Evaluate only this many images, the first of the split."""
    ignore_exif: bool | None = None
    """Ignore the EXIF orientation of images. By default as in training."""
    batch_size: int = 1
    """Images per step on each device."""
    precision: Literal["auto", "float32", "bf16", "fp16"] | None = None
    """Number format. auto selects bf16 where the device supports it, otherwise float32. By default the one of
    the evaluations during training, or float32."""
    channels_last: bool | None = None
    """Store images and weights in channels-last layout. By default as in training, or true."""


@dataclass
class PredictSettings(DetectorSize, Inference, Checked):
    """Detection of objects in your own images."""

    weights: str | None = None
    """File of weights of `ecanet detect train`, MMDetection or torchvision. It names the detector."""
    threshold: float = 0.5
    """Lowest score, 0 to 1, of the objects that are drawn and written."""
    top: int = 100
    """Maximum number of objects per image, those with the highest scores."""
    color_by: Literal["class", "object"] = "class"
    """What gets a color of its own: each class, the same in all images, or each object."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda, cuda:1 or mps."""


@dataclass
class ExportSettings(DetectorSize, Checked):
    """Which model is exported, and how."""

    model: str | None = None
    """Weight file of a classifier or detector; the folder of a run or study (on the command
    line); or the name of a model of ecanet or timm, or torchvision/NAME."""
    format: Literal["onnx", "torch"] = "onnx"
    """Format to write. onnx: for ONNX Runtime, TensorRT, OpenVINO and others. torch: a .pt2 file of
    torch.export."""
    attention: str | None = None
    """Attention module, if `model` is a name or a weight file that does not name it."""
    kernel_sizes: str | None = None
    """ECA's kernel size in each stage, if `model` is a name or a weight file that does not name them."""
    pretrained: bool = False
    """If `model` is a name: use the ImageNet weights of timm or torchvision, not fresh ones."""
    num_classes: int = 1000
    """If `model` is a name: number of classes."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register your own attention modules or models."""
    image_size: int | None = None
    """Side of the images that a classifier is checked on; by default as in training."""
    threshold: float | None = None
    """Lowest score of the objects that a detector returns; by default 0.05."""
    images: list[str] = field(default_factory=list)
    """Images to check the file on, in addition to two photographs that come with scikit-learn."""


@dataclass
class Looking(Checked):
    """Which images a trained network is analyzed on."""

    images: str | None = None
    """Folder of images: with one folder per class, with val/ or test/, or just images. By default the test
    images of the run."""
    limit: int | None = None
    """Use only this many of the images, evenly spaced over the list."""
    batch_size: int = 64
    """Images per step."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register your own attention modules or models."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda, cuda:1 or mps."""
    workers: int | None = None
    """Processes that read images. By default one per CPU core, at most 16. 0 reads them in the main
    process."""


@dataclass
class ExplainSettings(Looking):
    """What is shown about the attention of trained networks."""

    limit: int | None = 1000
    """Use only this many of the images, evenly spaced over the list; null uses all."""
    classes: list[str] = field(default_factory=list)
    """Names of the classes whose gates are drawn; by default the four with the most images."""
    cams: int = 8
    """Number of images for which saliency maps are drawn and scored; 0 turns them off."""


@dataclass
class FoldSettings(Looking):
    """Which gates become constants."""

    threshold: float = 0.01
    """Fold gates whose input-dependence index, 0 to 1, is at most this. The index is the share of a gate's
    variance that is between images. 1 folds all gates."""


@dataclass
class ProfileSettings(Checked):
    """Which models are profiled and what is measured, or which published figures are checked."""

    model: list[str] = field(default_factory=list)
    """Models to profile: names of ecanet or timm, or torchvision/NAME. By default the six published models,
    with the kernel sizes of the released weights."""
    attention: list[str] = field(default_factory=list)
    """Attention modules to insert into each model: none,se,eca:kernel_size=9."""
    kernel_sizes: str | None = None
    """ECA's kernel size in each stage, as in 3557 for the released ECA-ResNet-50."""
    image_size: int = 224
    """Side of the images in pixels."""
    num_classes: int = 1000
    """Number of classes."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register your own attention modules or models."""
    batch_sizes: list[int] = field(default_factory=list)
    """Batch sizes at which inference is timed, as in 1,8,64. The models take turns."""
    train: bool = False
    """Time training steps as well."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Number format. auto selects bf16 where the device supports it, otherwise float32."""
    repeats: int = 5
    """Number of measurements of each speed."""
    check_claims: bool = False
    """Compare the published figures of the ECA-Net paper and its repository with ours. The exit code is 1 if
    one is contradicted."""
    markdown: Literal["short", "all"] | None = None
    """Print the figures as Markdown: the table of the README (short), or docs/claims.md (all)."""
    out: str | None = None
    """Folder for CSV and JSON files."""


def _names(*groups: type) -> frozenset[str]:
    return frozenset(one.name for group in groups for one in fields(group))


MAY_CHANGE = _names(Machine, Recovery, Tracking) | {"corrupt"}
"""Settings that may differ when a run resumes, as they do not change the results. In a study the device may
not, because costs and speeds are compared."""
FIXED = _names(DetectorShape, Judging, Splitting) | {"data", "select", "in_chans", "channels"}
"""Settings that may not differ when a run resumes, even with --accept-changes: the checkpoint would not
fit."""
SHARED = _names(Images, CocoImages, Judging, Machine, Recovery, Numerics, Compilation, Tracking) | {
    "plugin"
}
"""Settings that all runs of a study share: a sweep file may set them, but not vary them."""
NOT_IN_RECIPES = (_names(Machine, Recovery, Tracking) - {"devices"}) | {"seed"}
"""Settings that depend on a machine, an account or a comparison, which a recipe made from a run leaves out.
From the others, `ecanet train` computes what the run computed."""


def as_recipe(settings: AnySettings, study: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a recipe that `train` and `compare` take.

    Args:
        settings: what all runs share.
        study: those of :class:`StudySettings` that the recipe has, ``attention`` among them.
    """
    left_out = NOT_IN_RECIPES if settings.plugin else NOT_IN_RECIPES | {"plugin"}
    values = {name: value for name, value in asdict(settings).items() if name not in left_out}
    first: dict[str, Any] = {n: values.pop(n) for n in ("data", "model") if n in values}
    return {**first, **values, **study}


def replaced(settings: _Settings, values: Mapping[str, Any]) -> _Settings:
    """Return ``settings`` with other values, by dotted names: ``optimizer.lr``."""
    changed: dict[str, Any] = {}
    for name, value in values.items():
        group, dot, leaf = name.partition(".")
        there = changed.get(group, getattr(settings, group))
        changed[group] = replace(there, **{leaf: value}) if dot else value
    return replace(settings, **changed)  # type: ignore[type-var]


def given(settings: Any, *names: str) -> dict[str, Any]:
    """Return those of the named settings that are not None."""
    values = {name: getattr(settings, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= (
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Describe how nested settings differ, one line per name: ``epochs: 1 there, 2 requested``."""
    there, requested = flatten(old), flatten(new)
    return [
        f"{name}: {_written(there.get(name))} there, {_written(requested.get(name))} requested"
        for name in dict.fromkeys([*there, *requested])
        if there.get(name) != requested.get(name)
    ]


def _written(value: Any) -> Any:
    return "nothing" if value is None else value
