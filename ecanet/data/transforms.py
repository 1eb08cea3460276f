"""Random transforms of training images on uint8 tensors, for images of any size.

uint8 throughout, as decoded: a quarter of the memory traffic of floats. Normalisation comes last, on
the device, for a whole batch.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from ecanet.config import Augmentation
from ecanet.data.augment import cutout
from ecanet.data.decode import as_channels
from ecanet.data.preprocessing import Preprocessing
from ecanet.data.stream import Transform


def is_batched(augmentation: Augmentation) -> bool:
    """Whether whole batches can be augmented (:mod:`ecanet.data.augment`); else images are, one by one."""
    return augmentation.scale is None and augmentation.policy == "none"


def train_transform(
    augmentation: Augmentation, prepare: Preprocessing, image_size: int
) -> Transform:
    """Return the random transform of a training image: uint8 (1 or 3, H, W) to (C, S, S).

    With ``scale``, a crop of random area and shape (3:4 to 4:3), brought to ``image_size``: Szegedy et al.,
    Going Deeper with Convolutions, arXiv 1409.4842, Sec. 6. Otherwise what evaluation gets, padded and
    cropped. Then a flip, the policy and cutout.

    Args:
        augmentation: with ``flip`` settled.
        prepare: from an image to what evaluation gets of it, without randomness.
        image_size: S, in pixels.
    """
    steps: list[Transform]
    if augmentation.scale is not None:
        low, high = augmentation.scale
        # A partial: workers that are not forked get it pickled.
        drawer = v2.RandomResizedCrop(image_size, scale=(low, high))
        steps = [
            functools.partial(_random_resized_crop, drawer, prepare.interpolation),
            functools.partial(as_channels, channels=prepare.channels),
        ]
    else:
        steps = [prepare]
        if augmentation.crop_padding:
            steps.append(v2.RandomCrop(image_size, padding=augmentation.crop_padding))
    if augmentation.flip is not False:
        steps.append(v2.RandomHorizontalFlip())
    if augmentation.policy == "randaugment":
        steps.append(v2.RandAugment(magnitude=augmentation.magnitude))
    elif augmentation.policy == "trivialaugment":
        steps.append(v2.TrivialAugmentWide())
    if augmentation.cutout:
        steps.append(functools.partial(_cutout, augmentation.cutout, prepare.mean))
    return v2.Compose(steps)


def mixup_or_cutmix(augmentation: Augmentation, num_classes: int) -> nn.Module | None:
    """Return what mixes the images and targets of a batch, None if nothing does.

    It takes normalised images (N, C, H, W) and labels (N,), and gives targets (N, classes).
    """
    found: list[nn.Module] = []
    if augmentation.mixup:
        found.append(v2.MixUp(alpha=augmentation.mixup, num_classes=num_classes))
    if augmentation.cutmix:
        found.append(v2.CutMix(alpha=augmentation.cutmix, num_classes=num_classes))
    return v2.RandomChoice(found) if found else None


def _random_resized_crop(drawer: v2.RandomResizedCrop, interpolation: str, image: Tensor) -> Tensor:
    """What ``drawer`` does, without what it does for other kinds of input: a fifth faster."""
    drawn = drawer.make_params([image])
    bottom, right = drawn["top"] + drawn["height"], drawn["left"] + drawn["width"]
    crop = image[None, :, drawn["top"] : bottom, drawn["left"] : right]
    return F.interpolate(crop, tuple(drawer.size), mode=interpolation, antialias=True)[0]


def _cutout(side: int, mean: tuple[float, ...], image: Tensor) -> Tensor:
    """Blank a square whose center is anywhere in an image (C, S, S): :func:`ecanet.data.augment.cutout`."""
    size = image.shape[-1]
    row, column = torch.randint(size, (2, 1))
    fill = torch.tensor(mean).mul(255).round().to(torch.uint8)
    return cutout(image[None], side, row, column, fill)[0]
