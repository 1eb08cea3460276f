"""Random transforms of training images on uint8 tensors, for images of any size.

uint8 throughout, as decoded: a quarter of the memory traffic of floats. Normalisation comes last, on
the device, for a whole batch.
"""

from __future__ import annotations

import functools

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from ecanet.config import ImageAugmentation
from ecanet.data.stream import Transform
from ecanet.errors import UserError


def train_transform(image_size: int, augmentation: ImageAugmentation) -> Transform:
    """Return the random transform of a training image: uint8 (3, H, W) to (3, S, S).

    A crop of random area and shape (3:4 to 4:3), brought to ``image_size``; a flip; the policy.
    Szegedy et al., Going Deeper with Convolutions, arXiv 1409.4842, Sec. 6.

    Raises:
        UserError: a setting is out of its range.
    """
    low, high = _checked_scale(augmentation.scale)
    # A partial: workers that are not forked get it pickled.
    drawer = v2.RandomResizedCrop(image_size, scale=(low, high))
    steps: list[Transform] = [functools.partial(_random_resized_crop, drawer)]
    if augmentation.flip is not False:
        steps.append(v2.RandomHorizontalFlip())
    if augmentation.policy == "randaugment":
        if not 0 <= augmentation.magnitude <= 30:
            raise UserError(
                f"--augmentation.magnitude {augmentation.magnitude}: give a number from 0 to 30"
            )
        steps.append(v2.RandAugment(magnitude=augmentation.magnitude))
    elif augmentation.policy == "trivialaugment":
        steps.append(v2.TrivialAugmentWide())
    return v2.Compose(steps)


def mixing(augmentation: ImageAugmentation, num_classes: int) -> nn.Module | None:
    """Return what mixes the images and targets of a batch, None if nothing does.

    It takes normalised images (N, C, H, W) and labels (N,), and gives targets (N, classes).

    Raises:
        UserError: an alpha is negative.
    """
    for name in ("mixup", "cutmix"):
        if getattr(augmentation, name) < 0:
            raise UserError(f"--augmentation.{name}: give 0 or more")
    found: list[nn.Module] = []
    if augmentation.mixup:
        found.append(v2.MixUp(alpha=augmentation.mixup, num_classes=num_classes))
    if augmentation.cutmix:
        found.append(v2.CutMix(alpha=augmentation.cutmix, num_classes=num_classes))
    return v2.RandomChoice(found) if found else None


def _random_resized_crop(drawer: v2.RandomResizedCrop, image: Tensor) -> Tensor:
    """What ``drawer`` does, without what it does for other kinds of input: a fifth faster."""
    drawn = drawer.make_params([image])
    bottom, right = drawn["top"] + drawn["height"], drawn["left"] + drawn["width"]
    crop = image[None, :, drawn["top"] : bottom, drawn["left"] : right]
    return F.interpolate(crop, tuple(drawer.size), mode="bilinear", antialias=True)[0]


def _checked_scale(scale: list[float]) -> tuple[float, float]:
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(
            f"--augmentation.scale {scale}: give two shares of the area, such as '[0.08, 1]'"
        )
    return scale[0], scale[1]
