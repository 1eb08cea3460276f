"""Typed settings: what a run is made of. A recipe is a YAML file of these names.

This file imports no torch, so that ``--help`` and a wrong flag answer at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from ecanet.errors import UserError

DetectorKind = Literal["faster_rcnn", "mask_rcnn", "retinanet"]
DetectorNorm = Literal["frozen", "batch", "group"]

_LR = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3, "lamb": 5e-3}
_LR_BATCH_SIZE = 128


# Of no run, and within what every library can hold.
_MANY = 10**9
# What each number may be, whichever settings it is of: the least and the greatest; whole numbers where
# these are. A bound that is itself too small or too large is in _OPEN.
_BOUNDS: dict[str, tuple[float, float]] = {
    "crop_padding": (0, 4096), "cutout": (0, 4096), "image_size": (1, 16384), "eval_size": (1, 16384),
    "min_size": (32, 16384), "max_size": (32, 16384), "width": (1, 8192), "anchor_size": (1, 4096),
    "epochs": (1, 10**6), "milestones": (0, 10**6), "warmup_steps": (0, _MANY), "repeats": (1, 10**6),
    "batch_size": (1, 10**6), "lr_batch_size": (1, 10**6), "limit": (1, _MANY), "frames": (1, _MANY),
    "save_every": (1, _MANY), "rollbacks": (0, _MANY), "workers": (0, 1024), "devices": (1, 4096),
    "threads": (1, 4096), "jobs": (1, 4096), "seeds": (1, 10**5),
    "seed": (0, 2**32 - 1), "first_seed": (0, 2**32 - 1),
    "trials": (1, 10**5), "confirm": (0, 10**4), "confirm_seeds": (1, 10**4), "magnitude": (0, 30),
    "frozen_stages": (0, 5), "proposals": (1, 10**5), "box_samples": (1, 10**5), "top": (1, 10**5),
    "num_classes": (1, 10**7), "lr": (0.0, math.inf), "momentum": (0.0, 1.0),
    "weight_decay": (0.0, math.inf), "warmup_epochs": (0.0, 1e6),
    "label_smoothing": (0.0, 1.0), "scale": (0.0, 1.0), "mixup": (0.0, 1e3), "cutmix": (0.0, 1e3),
    "crop_share": (0.0, 1.0), "drop_rate": (0.0, 1.0), "clip_grad": (0.0, math.inf),
    "ema_decay": (0.0, 1.0), "timeout": (0.0, math.inf), "threshold": (0.0, 1.0),
}  # fmt: skip
_OPEN = {
    "lr": "low high", "momentum": "high", "weight_decay": "high", "label_smoothing": "high",
    "scale": "low", "crop_share": "low", "drop_rate": "high", "clip_grad": "low high",
    "ema_decay": "low high", "timeout": "low high",
}  # fmt: skip


def check_ranges(settings: Any, group: str = "") -> None:
    """Refuse settings whose numbers mean nothing, are not finite or too large, and empty texts.

    Args:
        settings: a dataclass of this file, those within it included.
        group: what stands before the names of its fields.

    Raises:
        UserError: one line that names the setting and what it takes.
    """
    for one in fields(settings):
        value = getattr(settings, one.name)
        if is_dataclass(value):
            check_ranges(value, f"{group}{one.name}.")
            continue
        for item in value if isinstance(value, list) else [value]:
            if item == "":
                raise UserError(f"--{group}{one.name} is empty: leave it out, or give a value")
            if isinstance(item, (int, float)) and not _within(one.name, item):
                raise UserError(f"--{group}{one.name} {item}: give {_wanted(one.name)}")


def _within(name: str, value: float) -> bool:
    if name not in _BOUNDS or isinstance(value, bool):
        return True
    (low, high), ends = _BOUNDS[name], _OPEN.get(name, "")
    # NaN is within nothing.
    return (low < value if "low" in ends else low <= value) and (
        value < high if "high" in ends else value <= high
    )


def _wanted(name: str) -> str:
    (low, high), ends = _BOUNDS[name], _OPEN.get(name, "")
    kind = "a whole number" if isinstance(low, int) else "a number"
    start = f"above {low:g}" if "low" in ends else f"from {low:g}"
    if high == math.inf or high == _MANY:
        return f"{kind} {start}"
    return f"{kind} {start} to {'below ' if 'high' in ends else ''}{high:.10g}"


@dataclass
class Augmentation:
    """Random changes to training images, drawn for each image and made in batches on the device."""

    flip: bool | None = None
    """Mirror left and right with probability 1/2. By default where a mirrored image means the same: not
    where the classes are single digits or letters."""
    crop_padding: int = 4
    """Pad each side by this many pixels of zeros and cut a random window of the old size; 0 for none."""
    cutout: int = 0
    """Blank a square of this side at a random place; 0 for none."""


@dataclass
class Optimizer:
    """How the weights are updated."""

    name: Literal["sgd", "adamw", "adam", "lamb"] = "sgd"
    """The algorithm; sgd uses Nesterov's momentum unless told otherwise."""
    lr: float | None = None
    """Peak learning rate, taken as it is. By default that of the algorithm: adam and adamw 0.001, lamb
    0.005, sgd 0.1 for a batch of 128 and in proportion for others. On image folders see lr_batch_size."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = True
    """Nesterov's momentum in sgd."""
    weight_decay: float = 5e-4
    """L2 penalty; not applied to batch norms and biases."""


def with_lr(optimizer: Optimizer, batch_size: int | None = None) -> Optimizer:
    """Return ``optimizer`` with its learning rate settled: the one given, or the algorithm's default.

    The default of sgd is proportional to the batch (Goyal et al., arXiv 1706.02677); Adam and LAMB
    normalise their steps, and theirs stays. Without ``batch_size`` nothing is scaled.
    """
    if optimizer.lr is not None:
        return optimizer
    scale = batch_size / _LR_BATCH_SIZE if batch_size and optimizer.name == "sgd" else 1.0
    return replace(optimizer, lr=_LR[optimizer.name] * scale)


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
class RunSettings:
    """Everything that all runs of a study share; attention module and seed come on top."""

    data: str = "digits"
    """digits, cifar10, cifar100, or a folder with train/ and val/ or test/, a folder a class inside."""
    model: str = "resnet20"
    """A name of ecanet's or timm's registry, or torchvision/NAME."""
    replace_attention: bool = False
    """Take out the attention modules that the network has of its own, such as the SE of a RegNetY, and put
    those asked for in their places."""
    epochs: int = 30
    """Passes over the training split."""
    batch_size: int = 128
    """Images a step, over all devices together."""
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
    devices: int = 1
    """Devices of one machine that train a run together, a process each, every one with its own batch norm
    statistics. Runs that fit on one device are done sooner side by side."""
    threads: int = 1
    """CPU threads of each process of a run. The last digits of the figures follow this number, as it orders
    sums, and neither the machine's cores nor what runs beside. What a GPU computes does not depend on it."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Of training; evaluations are in float32. auto: bf16 where the device computes in it, else float32."""
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


@dataclass
class SweepSettings:
    """What a sweep adds to the settings of its runs and to its file."""

    trials: int | None = None
    """Settings to try. By default the file's run_cap, the whole grid, or 20."""
    timeout: float | None = None
    """Seconds after which no further run begins; those under way end."""
    confirm: int = 0
    """How many of the best settings are trained again over fresh seeds, and then tested."""
    confirm_seeds: int = 3
    """Seeds of each of those."""
    attention: str = "none"
    """Attention module where the sweep file does not say, with arguments if wanted: eca:kernel_size=9."""
    seed: int = 0
    """Of the sampler, and of every trial's weights, order and augmentation."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register attention modules or models of your own."""


@dataclass
class ImageAugmentation:
    """Random changes to training images of any size, drawn for each image from seed, epoch and index."""

    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    """Share of the image's area that the random crop takes, from and to."""
    flip: bool | None = None
    """Mirror left and right with probability 1/2. By default where a mirrored image means the same: not
    where the classes are single digits or letters."""
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    """Further changes of colour and shape, by torchvision."""
    magnitude: int = 6
    """Strength of randaugment's two changes, 0 to 30."""
    mixup: float = 0.0
    """Alpha of mixup (arXiv 1710.09412), on whole batches; 0 for none."""
    cutmix: float = 0.0
    """Alpha of CutMix (arXiv 1905.04899); with mixup, each batch gets one of the two."""


@dataclass
class TrainSettings:
    """Training of one classifier on an image folder of any size."""

    model: str = "eca_resnet50"
    """A name of ecanet's or timm's registry, or torchvision/NAME."""
    attention: str | None = None
    """Attention module, with arguments if wanted: eca:kernel_size=9. By default that of the name."""
    kernel_sizes: str | None = None
    """ECA's kernel size in each stage, in place of the rule: 3557 is that of the released ECA-ResNet-50."""
    replace_attention: bool = False
    """Take out the attention modules that the network has of its own, such as the SE of a RegNetY, and put
    those asked for in their places."""
    pretrained: bool = False
    """Begin with ImageNet weights of timm or torchvision."""
    weights: str | None = None
    """Begin with the weights of this file, of any layout that `ecanet convert` reads."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register attention modules or models of your own."""
    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 256
    """Images a step, over all devices together."""
    lr_batch_size: int | None = 256
    """Batch that optimizer.lr, given or not, is meant for: the rate is scaled with batch_size. null: it is
    not."""
    image_size: int = 224
    """Side of training images in pixels."""
    eval_size: int = 224
    """Side of evaluated images in pixels."""
    crop_share: float = 0.875
    """Share of the resized short side that evaluation's centre crop takes: 224 of 256."""
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """bce: a binary cross-entropy for each class, as in ResNet strikes back (arXiv 2110.00476)."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    augmentation: ImageAugmentation = field(default_factory=ImageAugmentation)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    clip_grad: float | None = None
    """Largest norm of all gradients together; longer ones are shortened."""
    ema_decay: float | None = None
    """Keep a running mean of the weights with this decay a step, and evaluate and save that."""
    seed: int = 0
    """Of the weights, the order, the augmentation and dropout."""
    corrupt: Literal["refuse", "replace"] = "refuse"
    """An image that cannot be read stops the run, or is named once and replaced by another; in evaluations
    it is left out."""
    workers: int | None = None
    """Processes that read and augment for each device; by default one a core, at most 16. 0: none."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    devices: int = 1
    """Processes on this machine, a device each. torchrun and SLURM say it themselves."""
    threads: int = 2
    """CPU threads of each process of a run. The last digits of the figures follow this number, as it orders
    sums, and neither the machine's cores nor what runs beside. What a GPU computes does not depend on it."""
    sync_batchnorm: bool = False
    """Take batch norm's statistics over all devices."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Of training; evaluations are in float32. auto: bf16 where the device computes in it, else float32."""
    channels_last: bool = True
    """Keep images and weights channels last in memory, as fast convolutions want them."""
    compile: bool = False
    """torch.compile: minutes at the start, then faster steps on a GPU."""
    save_every: int = 1000
    """Steps between checkpoints; one more at each epoch's end."""
    rollbacks: int = 3
    """How often a run whose loss or gradients are no longer finite goes back to its last checkpoint,
    with half the learning rate, before it gives up."""
    loggers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)
    """Beside the CSV that is always written."""
    project: str | None = None
    """W&B project; turns the wandb logger on."""


@dataclass
class EvaluateSettings:
    """Evaluation of one classifier on an image folder of any size."""

    weights: str | None = None
    """File of weights, of any layout that `ecanet convert` reads; tells the model itself, as a rule."""
    model: str | None = None
    """Name of the model, for weights that do not tell it, or with pretrained."""
    attention: str | None = None
    """Attention module, for weights that do not tell it."""
    kernel_sizes: str | None = None
    """ECA's kernel size in each stage, for weights that do not tell it."""
    pretrained: bool = False
    """Take the model's ImageNet weights of timm or torchvision in place of a file's."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register attention modules or models of your own."""
    split: str | None = None
    """Folder inside the data whose images are evaluated; by default val, or test where there is no val."""
    batch_size: int = 256
    """Images a step, over all devices together."""
    eval_size: int | None = None
    """Side of evaluated images in pixels. By default this and the next four are as the weights say; where
    they say nothing, a line tells what is taken."""
    crop_share: float | None = None
    """Share of the resized short side that the centre crop takes: 0.875 for 224 of 256."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How images are resized."""
    mean: list[float] | None = None
    """Mean of each channel in 0..1: ImageNet's is '[0.485, 0.456, 0.406]'."""
    std: list[float] | None = None
    """Standard deviation of each channel in 0..1: ImageNet's is '[0.229, 0.224, 0.225]'."""
    corrupt: Literal["refuse", "skip"] = "refuse"
    """An image that cannot be read stops the evaluation, or is named and left out."""
    workers: int | None = None
    """Processes that read for each device; by default one a core, at most 16. 0: none."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    devices: int = 1
    """Processes on this machine, a device each. torchrun and SLURM say it themselves."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "float32"
    """float32, without TF32, as training evaluates; auto: bf16 where the device computes in it."""
    channels_last: bool = True
    """Keep images and weights channels last in memory, as fast convolutions want them."""


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
class DetectorSettings:
    """What a detector is made of."""

    detector: DetectorKind | None = None
    """faster_rcnn and retinanet find boxes, mask_rcnn masks as well. By default that of the file of
    weights, or mask_rcnn."""
    model: str | None = None
    """The backbone: resnet18 to 152, mobilenet_v2, with eca_ in front or not, or a CNN of timm's. By
    default that of the file of weights, or eca_resnet50."""
    attention: str | None = None
    """Attention module, with arguments if wanted: eca:kernel_size=9. By default that of the name."""
    kernel_sizes: str | None = None
    """ECA's kernel size in each stage, in place of the rule: 3377 is that of the released Mask R-CNN."""
    replace_attention: bool = False
    """Take out the attention modules that the network has of its own, such as the SE of a RegNetY, and put
    those asked for in their places."""
    pretrained: bool = False
    """Begin with the backbone's ImageNet weights of timm."""
    backbone_weights: str | None = None
    """Begin with the backbone of this file: of `ecanet train`, `ecanet convert` or the official ones."""
    weights: str | None = None
    """Begin with the detector of this file, MMDetection's and torchvision's too. What no flag says is
    taken from it; other classes get fresh last layers."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register attention modules or models of your own."""
    norm: DetectorNorm | None = None
    """Norms of the backbone. frozen: batch norms keep the statistics of the weights; batch; group: group
    norms, for small batches. By default that of the file of weights, else frozen with a backbone's weights
    to begin with, and batch without."""
    frozen_stages: int | None = None
    """Stages of the backbone that are not trained; by default 1 with weights to begin with, 0 without."""
    min_size: list[int] | None = None
    """Short side of the images in pixels; of several, each training image gets one, evaluation the last.
    By default that of the file of weights, or 800."""
    max_size: int | None = None
    """Limit of the long side in pixels; by default that of the file of weights, or 1333."""
    width: int | None = None
    """Channels of the pyramid and the heads; by default those of the file of weights, or 256."""
    anchor_size: int | None = None
    """Side of the smallest anchors in pixels; each level of the pyramid doubles it. By default that of
    the file of weights, or 32."""
    proposals: int | None = None
    """Boxes an image that go from the proposal network to the heads; by default 1000."""
    box_samples: int | None = None
    """Boxes an image that the heads are trained on; by default 512."""


@dataclass
class DetectTrainSettings(DetectorSettings):
    """Training of one detector on a folder in COCO's format."""

    split: str = "train"
    """Images to train on: annotations/instances_SPLIT*.json."""
    eval_split: str = "val"
    """Images to evaluate on after each epoch; those of split too, to see whether it can learn them."""
    limit: int | None = None
    """Take only so many images of split, the first ones."""
    keep_empty: bool = False
    """Train on images without objects too."""
    ignore_exif: bool = False
    """Take images as they are stored, not as EXIF turns them: for annotations that were made so."""
    flip: bool = True
    """Mirror left and right with probability 1/2."""
    epochs: int = 12
    """Passes over the training images, each followed by an evaluation."""
    repeats: int = 1
    """Times that each image is seen in an epoch, for small sets."""
    batch_size: int = 16
    """Images a step, over all devices together."""
    lr_batch_size: int | None = 16
    """Batch that optimizer.lr is meant for: the rate is scaled with batch_size. null: it is not."""
    optimizer: DetectionOptimizer = field(default_factory=DetectionOptimizer)
    schedule: DetectionSchedule = field(default_factory=DetectionSchedule)
    clip_grad: float | None = None
    """Largest norm of all gradients together; longer ones are shortened."""
    ema_decay: float | None = None
    """Keep a running mean of the weights with this decay a step, and evaluate and save that."""
    seed: int = 0
    """Of the weights, the order, the augmentation and the sampling of boxes."""
    keep_epochs: bool = False
    """Keep the weights after each epoch, in epochs/, for pictures of the progress."""
    workers: int | None = None
    """Processes that read and augment for each device; by default one a core, at most 16. 0: none."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    devices: int = 1
    """Processes on this machine, a device each. torchrun and SLURM say it themselves."""
    threads: int = 2
    """CPU threads of each process of a run. The last digits of the figures follow this number, as it orders
    sums, and neither the machine's cores nor what runs beside. What a GPU computes does not depend on it."""
    sync_batchnorm: bool = False
    """Take batch norm's statistics over all devices."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the device computes in it, float32 elsewhere."""
    channels_last: bool = True
    """Keep images and weights channels last in memory, as fast convolutions want them."""
    save_every: int = 1000
    """Steps between checkpoints; one more at each epoch's end."""
    rollbacks: int = 3
    """How often a run whose loss or gradients are no longer finite goes back to its last checkpoint,
    with half the learning rate, before it gives up."""
    loggers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)
    """Beside the CSV that is always written."""
    project: str | None = None
    """W&B project; turns the wandb logger on."""


@dataclass
class DetectStudySettings(DetectTrainSettings):
    """Everything that all runs of a study of detectors share; attention and seed come on top."""

    data: str = "shapes"
    """Folder in COCO's format, or shapes, which are drawn."""
    threads: int = 1
    """CPU threads of each process of a run, as runs side by side on a core each get more done. The last
    digits of the figures follow this number."""


@dataclass
class EvaluateDetectorSettings:
    """Evaluation of one detector on a data set in COCO's format."""

    weights: str | None = None
    """File of weights: of `ecanet detect train`, MMDetection or torchvision. It tells the detector."""
    split: str = "val"
    """train, val, or the full name of a split: val2017."""
    limit: int | None = None
    """Evaluate the first images alone."""
    ignore_exif: bool | None = None
    """Take images as they are stored, not as EXIF turns them; by default as the weights were trained."""
    min_size: int | None = None
    """Short side in pixels that images are brought to; by default as the weights were trained."""
    max_size: int | None = None
    """The long side's limit; by default as the weights were trained."""
    batch_size: int = 1
    """Images a step, on each device."""
    workers: int | None = None
    """Processes that read for each device; by default one a core, at most 16. 0: none."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    devices: int = 1
    """Processes on this machine, a device each. torchrun and SLURM say it themselves."""
    precision: Literal["auto", "float32", "bf16", "fp16"] | None = None
    """auto: bf16 where the device computes in it, float32 elsewhere. By default that in which the weights
    were evaluated while they were trained, or float32."""
    channels_last: bool | None = None
    """Keep images and weights channels last in memory, as fast convolutions want them; by default as the
    weights were trained, or true."""


@dataclass
class PredictSettings:
    """Detection in pictures of one's own."""

    weights: str | None = None
    """File of weights: of `ecanet detect train`, MMDetection or torchvision. It tells the detector."""
    threshold: float = 0.5
    """Lowest score, 0 to 1, of what is shown and written."""
    top: int = 100
    """Most objects in a picture: those of the highest scores."""
    color_by: Literal["class", "object"] = "class"
    """A colour for each class, the same in all pictures, or one for each object."""
    min_size: int | None = None
    """Short side in pixels that images are brought to; by default as the weights were trained."""
    max_size: int | None = None
    """The long side's limit; by default as the weights were trained."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "float32"
    """auto: bf16 where the device computes in it, float32 elsewhere."""
    channels_last: bool = True
    """Keep images and weights channels last in memory, as fast convolutions want them."""


@dataclass
class ExportSettings:
    """Which model is exported, and how."""

    model: str | None = None
    """Weight file of a classifier or detector; or a model's name, of ecanet, timm or torchvision/NAME."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx: for ONNX Runtime, TensorRT, OpenVINO ...; torch: a .pt2 file of torch.export."""
    attention: str | None = None
    """Attention module, for a name, or weights that do not tell it."""
    kernel_sizes: str | None = None
    """ECA's kernel size in each stage, for a name, or weights that do not tell it."""
    pretrained: bool = False
    """With a name: ImageNet weights of timm or torchvision; else fresh ones."""
    num_classes: int = 1000
    """With a name: length of the output."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register attention modules or models of your own."""
    image_size: int | None = None
    """Side of the images that a classifier is checked on; by default as the weights were trained."""
    min_size: int | None = None
    """Short side in pixels that a detector brings images to; by default as the weights were trained."""
    max_size: int | None = None
    """The long side's limit; by default as the weights were trained."""
    threshold: float | None = None
    """Lowest score of a detector's objects; by default 0.05."""
    images: list[str] = field(default_factory=list)
    """Pictures to check the file on, beside two photographs that come with scikit-learn."""
