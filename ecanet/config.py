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
    """Which network it is."""

    model: str | None = None
    """A name of ecanet's or timm's registry, or torchvision/NAME. By default that of the file of weights,
    else resnet20 for small images and resnet50 for photographs or with pretrained."""
    attention: str | None = None
    """Attention module, with arguments if wanted: eca:kernel_size=9. By default that of the model's name."""
    kernel_sizes: str | None = None
    """ECA's kernel size in each stage, in place of the adaptive rule: 3557 for the released ECA-ResNet-50."""


@dataclass
class NewArchitecture(Architecture):
    """Which network is built."""

    replace_attention: bool = False
    """Replace the attention modules that the network has of its own, such as the SE of a RegNetY."""


@dataclass
class Network(NewArchitecture):
    """Which network is built, and the weights it starts from."""

    pretrained: bool = False
    """Start from the ImageNet weights of timm or torchvision."""
    weights: str | None = None
    """Start from the weights in this file, of any layout that `ecanet convert` reads, or of the Hugging Face
    Hub: hf-hub:OWNER/NAME."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register attention modules or models of your own."""


@dataclass
class Machine:
    """Where a run happens, and how it survives that. None of it changes the results."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    devices: int = 1
    """Devices that share each batch, one process per device. torchrun and SLURM set it themselves. Runs that
    fit on one device are done sooner side by side."""
    workers: int | None = None
    """Processes per device that read and augment images; by default one per core, at most 16. 0: none."""


@dataclass
class Numerics:
    """How numbers are computed: the last digits of the results follow from it."""

    threads: int | None = None
    """CPU threads per process. Sums are ordered by their number, so the last digits depend on it, and not on
    the cores of the machine. By default 1 in a study and for data in memory, else 2. No effect on a GPU."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Precision of training; evaluations use float32. auto: bf16 where the device computes in it."""
    channels_last: bool = True
    """Keep images and weights in channels-last layout, which convolutions are fastest in."""


@dataclass
class Compilation:
    """Whether the network is compiled, which changes last digits as well."""

    compile: Literal["auto", "on", "off"] | bool = "auto"
    """torch.compile; auto: when the run is long enough to pay for it."""


@dataclass
class Tracking:
    """Where metrics go beside the CSV that is always written."""

    loggers: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = field(
        default_factory=list
    )
    """tensorboard, wandb, trackio, mlflow, or several of them."""
    project: str | None = None
    """Project of W&B and trackio, experiment of MLflow; by default ecanet. Without one of these loggers it
    turns W&B on."""


@dataclass
class Recovery:
    """How a run survives interruptions and steps that are not finite."""

    save_every: float = 120.0
    """Seconds between checkpoints, and between those at the end of an epoch. Others are saved when the run is
    interrupted and when it ends; what is killed in between is trained again."""
    rollbacks: int = 3
    """How often a run whose loss or gradients are no longer finite returns to its last good state, with half
    the learning rate, before it fails."""


@dataclass
class Augmentation:
    """Random changes to training images, drawn per image from seed, epoch and index."""

    flip: bool | None = None
    """Mirror left and right with probability 1/2. By default where a mirrored image means the same: not
    where the classes are single digits or letters."""
    crop_padding: int | None = None
    """Pad each side by this many zeros and crop at random to the old size; 0 for no crop. By default an
    eighth of the side of small images, and 4 at most."""
    scale: list[float] | None = None
    """Crop a random part of the image, of this share of its area, and resize it: by default '[0.08, 1]' for
    photographs. Takes the place of crop_padding."""
    cutout: int = 0
    """Blank a square of this side at a random place; 0 for none."""
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    """Further changes of color and shape, by torchvision."""
    magnitude: int = 6
    """Strength of randaugment's two changes, 0 to 30."""
    mixup: float = 0.0
    """Alpha of mixup (arXiv 1710.09412), on whole batches; 0 for none."""
    cutmix: float = 0.0
    """Alpha of CutMix (arXiv 1905.04899); with mixup, each batch gets one of the two."""


@dataclass
class Optimizer:
    """How the weights are updated."""

    name: Literal["sgd", "adamw", "adam", "lamb"] = "sgd"
    """The algorithm; sgd uses Nesterov's momentum by default."""
    lr: float | None = None
    """Peak learning rate, taken as it is. By default that of the algorithm: adam and adamw 0.001, lamb
    0.005, sgd 0.1 for a batch of 128 and in proportion for others; a tenth of it with pretrained or weights.
    On image folders see lr_batch_size."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = True
    """Nesterov's momentum in sgd."""
    weight_decay: float = 5e-4
    """L2 penalty; not applied to batch norms and biases."""
    layer_decay: float | None = None
    """Multiply the learning rate by this for each layer away from the output, as in BEiT
    (arXiv 2106.08254): 0.75 trains early layers hardly at all. The classifier and the inserted attention
    modules keep the full rate."""
    new_lr_scale: float = 1.0
    """Learning rate of the classifier and the inserted attention modules, relative to lr."""


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
    """How training continues from weights that were trained before."""

    identity: bool | None = None
    """Start inserted attention modules as the identity, so that the network first computes what the plain
    one does. By default with pretrained or weights, unless the file of weights holds attention modules or
    replace_attention is given."""
    freeze: int | Literal["none", "backbone"] = "none"
    """What is not trained, of pretrained weights or those of a file: none of it; the backbone, all but the
    classifier and the inserted attention modules; or a number of stages, counted from the image, with the
    stem before them. Frozen batch norms keep their statistics."""


@dataclass
class Schedule:
    """How the learning rate moves over the epochs."""

    name: Literal["cosine", "onecycle", "step", "exponential", "constant"] = "cosine"
    """cosine: linear warm-up, then half a cosine to zero. onecycle: a rise over the first 30 %, then down.
    step: divided by ten at each milestone, as in the ECA-Net paper. exponential: times 0.98 after each
    epoch, as there for MobileNetV2."""
    warmup_epochs: float = 1.0
    """Length of the linear warm-up from a hundredth of the peak (cosine, step and exponential)."""
    milestones: list[int] = field(default_factory=lambda: [30, 60, 90])
    """Epochs after which step divides the rate by ten."""


@dataclass
class Splitting:
    """Which images are trained on, chosen by and tested on, where the data leaves that open."""

    validation: float | None = None
    """Fraction of train held out for curves and choices. By default 0.1; 0 where there is val/ beside test/,
    and in `ecanet train` where there is val/ alone, which is then not a test split."""
    test: float | None = None
    """Fraction of all images held out as the test split, of data without splits; by default 0.2."""
    group_by: str | None = None
    """Pattern, a regular expression, that finds the group in an image's name, such as the patient or the
    scene: its first group, or all that it matches. All images of a group are in one split."""
    columns: list[str] = field(default_factory=list)
    """Columns of a table: path=file,label=species,split=fold,group=patient. By default those of usual names;
    split= ignores one, and groups are only taken from a column that is named here."""


@dataclass
class Images(Splitting):
    """Which images a classifier is trained and judged on, and how they are kept."""

    data: str = "digits"
    """A folder with a folder per class, in train/, val/ and test/ or by themselves; a CSV or Parquet file of
    path, label and split; digits, cifar10, cifar100, torchvision/NAME or hf:NAME."""
    storage: Literal["auto", "memory", "stream"] = "auto"
    """memory: images are decoded once and kept on the device; stream: they are read as they are needed.
    auto: memory for up to 2 GB of decoded images."""
    image_size: int | None = None
    """Side of training images in pixels; by default that of 64 of them if these are alike and small, else
    224."""
    eval_size: int | None = None
    """Side of evaluated images in pixels; by default image_size."""
    in_chans: Literal[1, 3] | None = None
    """Channels of the images: 1 makes color grey, 3 repeats grey. By default 3, or those of a named set."""
    window: list[float] | None = None
    """Pixel values that become black and white in grey images beyond 8 bits, as in -1000,400. By default
    16 bits keep their upper 8, and floats range from 0 to 1."""
    crop_share: float | None = None
    """Share of the resized short side that evaluation's center crop takes; by default 1 for small images and
    0.875 for photographs."""
    corrupt: Literal["refuse", "skip"] = "refuse"
    """An image that cannot be read stops the run, or is skipped and named. In streamed training another one
    takes its place."""


@dataclass
class Training:
    """How a network of any task is trained."""

    epochs: int | None = None
    """Epochs, each a pass over the training images: by default 30 for small images and with pretrained or
    weights, else 100."""
    epoch_length: float = 1.0
    """Passes over the training images in an epoch: 1.24 trains 24 % longer, with the schedule stretched as
    much and as many evaluations."""
    batch_size: int | None = None
    """Images per step, over all devices together."""
    lr_batch_size: int | Literal["auto"] | None = "auto"
    """Batch size that optimizer.lr is meant for: the rate is scaled with batch_size. null: it is not."""
    clip_grad: float | None = None
    """Largest norm of all gradients together; longer ones are shortened."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights with this decay per step; evaluate and save that."""
    seed: int = 0
    """Seed of initialization, shuffling, augmentation and dropout."""
    sync_batchnorm: bool = False
    """Compute batch norm's statistics over all devices, which are GPUs."""


@dataclass
class TrainingSettings(Tracking, Recovery, Numerics, Machine, Training, Network, Checked):
    """What runs of all tasks have in common."""

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
    """What the runs of a comparison are compared by."""

    metric: Literal[
        "accuracy", "balanced_accuracy", "macro_f1", "auroc", "loss", "calibration_error"
    ] = "accuracy"
    """What is compared on the test split, and what choices are made by on the validation split: of the best
    epoch, and in sweeps whose file names no metric. All are measured at the end of a run."""


@dataclass
class ClassificationSettings(Compilation, TrainingSettings, Transfer, Judging, Images):
    """Training of a classifier: settings that are left out depend on the images.

    Small ones (up to 96 pixels) are trained as CIFAR is, photographs as ImageNet is:
    :func:`ecanet.training.classification.resolve`.
    """

    select: Literal["last", "best"] | None = None
    """Epoch whose weights are tested and reported: the last, or the best on the validation split by metric.
    By default last, and best where there is no test split."""
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """bce: a binary cross-entropy per class, as in ResNet strikes back (arXiv 2110.00476)."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weights of the images in the cross-entropy. balanced: in inverse proportion to the number of training
    images of their class, so that rare classes count as much as frequent ones."""
    balanced_sampling: bool = False
    """Draw the training images of each epoch with replacement, so that all classes are equally frequent."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    channels: list[int] | None = None
    """Channels of each stage of a ResNet or of mobilenet_v2, in place of its own: 20,40,80 makes resnet20
    wider."""
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
    """What a study knows of runs that are trained by another library, or by code of your own."""

    devices: ClassVar[int] = 1
    loggers: ClassVar[tuple[str, ...]] = ()
    program: ClassVar[str] = "ecanet"
    """The command line whose `compare` takes these settings."""
    shares_seed: ClassVar[bool] = False
    """Whether runs of one seed are known to share initial weights, order of images and augmentation."""

    attention: str | None = None
    """The attention module."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads per run; by default 1."""
    seed: int = 0
    """The seed."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register attention modules of your own."""

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
    """FILE:FUNCTION, as in mine.py:train. The function train(attention, seed, folder, report) trains one run
    and returns its metrics, a dictionary of numbers. It may call report(epoch, name=value, ...) after each
    epoch, and resume from what it has saved in folder."""
    command: str | None = None
    """In place of trainer, a command that trains one run, with {attention}, {seed} and {out} in it:
    "python train.py --attn {attention} --seed {seed} --out {out}". It writes its metrics into {out}, as
    metrics.json or as the last line of metrics.csv, which has a line for each epoch."""
    directory: str | None = None
    """Folder in which the command runs; by default the current one."""
    network: str | None = None
    """FILE:FUNCTION that names what is trained, so that costs are measured: network(attention) returns the
    model and an example batch of images."""
    metric: str = "accuracy"
    """The metric that runs are compared by, one of those that they return. Accuracies, F1, AUROC, IoU, Dice
    and AP are shares of 1, shown in percent; others are in a unit of their own."""
    direction: Literal["max", "min"] | None = None
    """Which values of the metric are better; by default the greater ones, of losses and errors the
    lesser."""

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
    """YAML of a data set as Ultralytics takes it, with path, train, val and names, and test if there is one.
    Runs are judged on test, or else on val."""
    model: str = "yolo11n.yaml"
    """A YAML of Ultralytics, such as yolo11n.yaml, yolo26s-seg.yaml or rtdetr-l.yaml, for fresh weights; or a
    file of weights, such as yolo11n.pt. libreyolo/yolo9-t and the like are trained by LibreYOLO."""
    places: str = "blocks"
    """Where attention modules go. blocks: the end of every C2f, C3, C3k2 and the like; backbone or neck:
    those of them that are there; before-detect: every layer that the head reads; or a pattern of module
    names."""
    identity: bool | None = None
    """Start attention modules as the identity, so that the network first computes what the plain one does. By
    default with a file of weights."""
    epochs: int = 100
    """Passes over the training images; there is no early stopping."""
    image_size: int = 640
    """Longer side of the images in pixels, in multiples of 32."""
    batch_size: int = 16
    """Images per step."""
    workers: int = 8
    """Processes that read and augment images, where a GPU trains. The random numbers depend on how many there
    are."""
    set: list[str] = field(default_factory=list)
    """Further arguments of the library, as in lr0=0.001,warmup_epochs=1."""

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
    """libreyolo/FAMILY-SIZE, such as libreyolo/yolo9-t, libreyolo/yolox-s or libreyolo/rtdetr-r18."""

    @property
    def trainer_name(self) -> str:
        return "LibreYOLO"


@dataclass
class StudySettings(Checked):
    """What a comparison adds to the settings of its runs."""

    attention: list[str] = field(default_factory=lambda: ["none", "se", "eca"])
    """Attention modules to compare, the baseline first, with arguments if wanted: eca:kernel_size=9. control
    is none trained for as long as the slowest module takes; control:macs and control:parameters are none made
    wider, control:macs=se to the cost of that module."""
    seeds: int | Literal["auto"] = "auto"
    """Runs per module. auto: 4, then one more at a time for the baseline and the modules without an answer,
    until each is better, worse or equivalent, or has no chance of an answer within max_seeds. A number: so
    many for every module, tested once at the end."""
    detect: float | None = None
    """Smallest difference that matters, in percentage points, of log loss in nats: modules are equivalent if
    they differ by less. By default 0.5 points, 0.02 nats."""
    max_seeds: int = 12
    """Runs per module at most, with seeds auto."""
    confidence: float = 0.95
    """Probability that all intervals of the study hold, at whatever seed it is looked at."""
    pairing: Literal["auto", "paired", "unpaired"] = "auto"
    """How runs of one seed are compared: in pairs, or as independent. auto: as their correlation suggests."""
    first_seed: int = 0
    """The first seed; the others follow it."""
    keep_weights: Literal["best", "last", "none"] | None = None
    """Weights that are left when the study ends. best: the tested ones of two runs, the best of the module
    with the best mean and the best of the baseline, both by the validation metric. last: those of every run.
    none: of no run. By default best, and in a study that exists as it was begun."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds == "auto" and self.max_seeds < 4:
            raise UserError(
                f"--max-seeds {self.max_seeds}: --seeds auto begins with 4; give more, or a number of --seeds"
            )


AnySettings = TrainingSettings | OutsideSettings
"""Of the runs of a study."""


@dataclass
class SweepSettings(Checked):
    """What a sweep adds to the settings of its runs and to its file."""

    trials: int | None = None
    """Settings to try. By default the file's run_cap, the whole grid, or 20."""
    timeout: float | None = None
    """Seconds after which no further run starts; those in progress finish."""
    confirm: int = 0
    """How many of the best settings are trained again over fresh seeds, and then tested."""
    confirm_seeds: int = 3
    """Seeds of each of those."""


@dataclass(kw_only=True)
class Inference:
    """How a trained model computes."""

    precision: Literal["auto", "float32", "bf16", "fp16"] = "float32"
    """float32, without TF32, as training evaluates; auto: bf16 where the device computes in it."""
    channels_last: bool = True
    """Keep images and weights in channels-last layout, which convolutions are fastest in."""


@dataclass(kw_only=True)
class ClassifierInference(Inference, Architecture):
    """Which trained classifier computes, and how its images are prepared."""

    weights: str | None = None
    """File of weights, of any layout that `ecanet convert` reads, which names the model, as a rule; or the
    folder of a run or of a study, whose best run is taken."""
    model: str | None = None
    """Name of the model, for weights that do not name it, or with pretrained."""
    pretrained: bool = False
    """With model, in place of weights: the ImageNet weights of timm or torchvision."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register attention modules or models of your own."""
    eval_size: int | None = None
    """Side of the images in pixels. By default this and the next four are those of the weight file."""
    crop_share: float | None = None
    """Share of the resized short side that the center crop takes: 0.875 for 224 of 256."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How images are resized."""
    mean: list[float] | None = None
    """Mean of each channel in 0..1: ImageNet's is '[0.485, 0.456, 0.406]'."""
    std: list[float] | None = None
    """Standard deviation of each channel in 0..1: ImageNet's is '[0.229, 0.224, 0.225]'."""
    window: list[float] | None = None
    """Pixel values that become black and white in grey images beyond 8 bits, as in -1000,400; by default
    those of the weight file."""


@dataclass
class EvaluateSettings(Splitting, ClassifierInference, Machine, Checked):
    """Evaluation of one classifier on a folder of images."""

    split: str | None = None
    """Split, or folder inside the data, whose images are evaluated: by default val, or test where there is no
    val. all: all images of data without splits, of which by default those held out as test are evaluated."""
    batch_size: int = 256
    """Images per step, over all devices together."""
    corrupt: Literal["refuse", "skip"] = "refuse"
    """An image that cannot be read stops the evaluation, or is named and left out."""


@dataclass
class ClassifySettings(ClassifierInference, Checked):
    """Classification of your own images."""

    top: int = 5
    """Number of classes listed for each image: those of the highest probabilities."""
    batch_size: int = 64
    """Images per step."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    workers: int | None = None
    """Processes that read images; by default one per core, at most 16. 0: none."""


@dataclass
class DetectionOptimizer:
    """How a detector's weights are updated."""

    name: Literal["sgd", "adamw"] = "sgd"
    """The algorithm."""
    lr: float | None = None
    """Peak learning rate for lr_batch_size images; by default 0.02, for retinanet 0.01, of adamw 0.0001."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 1e-4
    """L2 penalty; not applied to norms and biases."""


@dataclass
class DetectionSchedule:
    """How a detector's learning rate moves."""

    name: Literal["step", "cosine", "constant"] = "step"
    """step: divided by ten at each milestone. cosine: half a cosine to zero."""
    warmup_steps: int = 500
    """Steps of the linear warm-up from a thousandth of the peak."""
    milestones: list[int] | None = None
    """Epochs after which step divides the rate by ten; by default 8 and 11 of 12, and so in proportion."""


@dataclass
class DetectorShape(NewArchitecture):
    """Which detector is built: what its weights depend on."""

    model: str | None = None
    """The backbone: resnet18 to 152, mobilenet_v2, with eca_ in front or not, or a CNN of timm's. By
    default that of the file of weights, or eca_resnet50."""
    detector: DetectorKind | None = None
    """faster_rcnn and retinanet find boxes, mask_rcnn masks as well. By default that of the file of
    weights, or mask_rcnn."""
    norm: DetectorNorm | None = None
    """Norms of the backbone. frozen: batch norms keep the statistics of the weights; batch; group: group
    norms, for small batches. By default that of the file of weights, else frozen with a backbone's weights
    to start from, and batch without."""
    width: int | None = None
    """Channels of the pyramid and the heads; by default those of the file of weights, or 256."""


@dataclass
class CocoImages:
    """Which images a detector is trained and judged on."""

    data: str = "shapes"
    """Folder in COCO's format, or shapes, which are drawn."""
    split: str = "train"
    """Images to train on: annotations/instances_SPLIT*.json."""
    eval_split: str = "val"
    """Images to evaluate on after each epoch; those of split too, to see whether it can learn them."""
    limit: int | None = None
    """Take only this many images of split, the first ones."""
    keep_empty: bool = False
    """Train on images without objects too."""
    ignore_exif: bool = False
    """Take images as they are stored, not as EXIF turns them: for annotations that were made so."""


@dataclass
class DetectionSettings(TrainingSettings, DetectorShape, CocoImages):
    """Training of a detector on a folder in COCO's format."""

    weights: str | None = None
    """Start from the detector in this file, MMDetection's and torchvision's too. What no flag gives is
    taken from it; other classes get fresh last layers."""
    backbone_weights: str | None = None
    """Start from the backbone in this file: of `ecanet train`, `ecanet convert` or the official ones."""
    frozen_stages: int | None = None
    """Stages of the backbone that are not trained; by default 1 with weights to start from, 0 without."""
    min_size: list[int] | None = None
    """Short side of the images in pixels; of several, each training image gets one, evaluation the last.
    By default that of the file of weights, or 800."""
    max_size: int | None = None
    """Limit of the long side in pixels; by default that of the file of weights, or 1333."""
    anchor_size: int | None = None
    """Side of the smallest anchors in pixels; each level of the pyramid doubles it. By default that of
    the file of weights, or 32."""
    proposals: int | None = None
    """Boxes per image that go from the proposal network to the heads; by default 1000."""
    box_samples: int | None = None
    """Boxes per image that the heads are trained on; by default 512."""
    flip: bool = True
    """Mirror left and right with probability 1/2."""
    epochs: int = 12
    """Passes over the training images, each followed by an evaluation."""
    repeats: int = 1
    """Times that each image is seen in an epoch, for small sets."""
    batch_size: int = 16
    """Images per step, over all devices together."""
    optimizer: DetectionOptimizer = field(default_factory=DetectionOptimizer)
    schedule: DetectionSchedule = field(default_factory=DetectionSchedule)
    keep_epochs: bool = False
    """Keep the weights after each epoch, in epochs/, for images of the progress."""


@dataclass(kw_only=True)
class DetectorSize:
    """The size of the images that trained weights get."""

    min_size: int | None = None
    """Short side in pixels that images are brought to; by default as the weights were trained."""
    max_size: int | None = None
    """The long side's limit; by default as the weights were trained."""


@dataclass
class EvaluateDetectorSettings(DetectorSize, Machine, Checked):
    """Evaluation of one detector on a data set in COCO's format."""

    weights: str | None = None
    """File of weights: of `ecanet detect train`, MMDetection or torchvision. It describes the detector."""
    split: str = "val"
    """train, val, or the full name of a split: val2017."""
    limit: int | None = None
    """Evaluate the first images alone."""
    ignore_exif: bool | None = None
    """Take images as they are stored, not as EXIF turns them; by default as the weights were trained."""
    batch_size: int = 1
    """Images per step, on each device."""
    precision: Literal["auto", "float32", "bf16", "fp16"] | None = None
    """auto: bf16 where the device computes in it, float32 elsewhere. By default that in which the weights
    were evaluated while they were trained, or float32."""
    channels_last: bool | None = None
    """Keep images and weights in channels-last layout; by default as the weights were trained, or true."""


@dataclass
class PredictSettings(DetectorSize, Inference, Checked):
    """Detection in your own images."""

    weights: str | None = None
    """File of weights: of `ecanet detect train`, MMDetection or torchvision. It describes the detector."""
    threshold: float = 0.5
    """Lowest score, 0 to 1, of what is shown and written."""
    top: int = 100
    """Most objects per image: those of the highest scores."""
    color_by: Literal["class", "object"] = "class"
    """One color per class, the same in all images, or one per object."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


@dataclass
class ExportSettings(DetectorSize, Checked):
    """Which model is exported, and how."""

    model: str | None = None
    """Weight file of a classifier or detector; or a model's name, of ecanet, timm or torchvision/NAME."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx: for ONNX Runtime, TensorRT, OpenVINO ...; torch: a .pt2 file of torch.export."""
    attention: str | None = None
    """Attention module, for a name, or weights that do not name it."""
    kernel_sizes: str | None = None
    """ECA's kernel size in each stage, for a name, or weights that do not name it."""
    pretrained: bool = False
    """With a name: ImageNet weights of timm or torchvision; else fresh ones."""
    num_classes: int = 1000
    """With a name: length of the output."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register attention modules or models of your own."""
    image_size: int | None = None
    """Side of the images that a classifier is checked on; by default as the weights were trained."""
    threshold: float | None = None
    """Lowest score of a detector's objects; by default 0.05."""
    images: list[str] = field(default_factory=list)
    """Images to check the file on, beside two photographs that come with scikit-learn."""


@dataclass
class Looking(Checked):
    """On which images a trained network is looked at."""

    images: str | None = None
    """Folder of images: with a folder per class, of any images, or with val/ or test/. By default the test
    images of the run."""
    limit: int | None = None
    """Take only so many of them, evenly over the list."""
    batch_size: int = 64
    """Images per step."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register attention modules or models of your own."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    workers: int | None = None
    """Processes that read images; by default one per core, at most 16. 0: none."""


@dataclass
class ExplainSettings(Looking):
    """What is shown of the attention of trained networks."""

    limit: int | None = 1000
    """Take only so many of them, evenly over the list; null: all."""
    classes: list[str] = field(default_factory=list)
    """Classes whose gates are drawn, by name; by default the four with the most images."""
    cams: int = 8
    """Images for which maps of where the networks look are made and scored; 0: none."""


@dataclass
class FoldSettings(Looking):
    """Which gates become constants."""

    threshold: float = 0.01
    """Largest input-dependence index, 0 to 1, of what is folded: the share of the variance of a gate that is
    between images. 1: all."""


@dataclass
class ProfileSettings(Checked):
    """Which models are profiled, and what is measured; or which published figures are checked."""

    model: list[str] = field(default_factory=list)
    """Names of ecanet's, timm's or torchvision's models (torchvision/NAME); by default the six published
    models, with the kernels of the released weights."""
    attention: list[str] = field(default_factory=list)
    """Attention modules to put into each model: none,se,eca:kernel_size=9."""
    kernel_sizes: str | None = None
    """ECA's kernel size in each stage: 3557 for the released ECA-ResNet-50."""
    image_size: int = 224
    """Side of the images in pixels."""
    num_classes: int = 1000
    """Length of the output."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register attention modules or models of your own."""
    batch_sizes: list[int] = field(default_factory=list)
    """Images per step, as in 1,8,64: inference is timed, the models taking turns."""
    train: bool = False
    """Time training steps as well."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """auto: bf16 if the device supports it, else float32."""
    repeats: int = 5
    """Measurements of each speed."""
    check_claims: bool = False
    """Compare the figures of the ECA-Net paper and its repository with ours; exit code 1 if one is
    contradicted."""
    markdown: Literal["short", "all"] | None = None
    """Print the figures as Markdown: the table of the README, or docs/claims.md."""
    out: str | None = None
    """Folder for CSV and JSON files."""


def _names(*groups: type) -> frozenset[str]:
    return frozenset(one.name for group in groups for one in fields(group))


MAY_CHANGE = _names(Machine, Recovery, Tracking) | {"corrupt"}
"""What may differ when a run resumes: the results do not follow from it. In a study the device stays too,
as costs and speeds are compared."""
FIXED = _names(DetectorShape, Judging, Splitting) | {"data", "select", "in_chans", "channels"}
"""What may not differ then, even with --accept-changes: the checkpoint would not fit."""
SHARED = _names(Images, CocoImages, Judging, Machine, Recovery, Numerics, Compilation, Tracking) | {
    "plugin"
}
"""What all runs of a study share: a sweep may set it, and not sweep it."""
NOT_IN_RECIPES = (_names(Machine, Recovery, Tracking) - {"devices"}) | {"seed"}
"""What a machine, an account or a comparison decides, and a recipe made from a run leaves out: from the
rest, `ecanet train` computes what the run has computed."""


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
