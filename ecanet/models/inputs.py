"""Determines how images are prepared for a model: from its weights, or by an assumption that is logged."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import timm
import torchvision
from torch import nn

from ecanet.data.preprocessing import Preprocessing
from ecanet.errors import UserError
from ecanet.models.cifar_resnet import CifarResNet
from ecanet.models.factory import list_models
from ecanet.names import CIFAR_DEPTHS

log = logging.getLogger(__name__)


def input_preprocessing(
    model: nn.Module,
    name: str | None,
    metadata: Mapping[str, str],
    *,
    pretrained: bool = False,
    eval_size: int | None = None,
    crop_share: float | None = None,
    quiet: bool = False,
    **others: Any,
) -> Preprocessing:
    """Return the preprocessing of images for ``model``.

    Args:
        model: built, with its weights.
        name: as in :func:`ecanet.create_model`, if known.
        metadata: of the weight file; empty without one.
        pretrained: the weights are those of timm or torchvision for the name.
        eval_size, crop_share: if not None, override the weights' values. A size alone keeps the share.
        quiet: log at the level DEBUG what is assumed or overridden, instead of INFO.
        others: further fields of :class:`ecanet.data.preprocessing.Preprocessing` that override the
            weights' values, if not None.

    Raises:
        UserError: the metadata are invalid, or the model does not take images of one or three channels.
    """
    level = logging.DEBUG if quiet else logging.INFO
    channels = _channels(model)
    default = Preprocessing.from_metadata(metadata)
    if default is None:
        assumed, source = _assumed(model, name, pretrained)
        default = assumed.for_channels(channels)
        log.log(
            level, f"the weights do not say how images are prepared; assuming {source}: {default}"
        )
    elif default.channels != channels:
        raise UserError(
            f"the metadata of the weights are for images of {default.channels} channels, but the first "
            f"layer takes {channels}"
        )
    given = {name: value for name, value in others.items() if value is not None}
    chosen = dataclasses.replace(default, **given)
    if eval_size is not None or crop_share is not None:
        size = chosen.size if eval_size is None else eval_size
        share = chosen.crop_share if crop_share is None else crop_share
        chosen = chosen.with_crop(size, share)
    chosen = chosen.for_channels(channels)
    changed = [
        f"{field.name} {getattr(chosen, field.name)}, not {getattr(default, field.name)}"
        for field in dataclasses.fields(default)
        if getattr(chosen, field.name) != getattr(default, field.name)
    ]
    if changed:
        log.log(level, f"flags change how images are prepared: {'; '.join(changed)}")
    return chosen


def weights_preprocessing(
    name: str, metadata: Mapping[str, str], *, pretrained: bool
) -> tuple[Preprocessing, str] | None:
    """Return how images were prepared for weights, and who says so; None if nothing does.

    Args:
        name, metadata, pretrained: as for :func:`input_preprocessing`.

    Raises:
        UserError: the metadata are invalid.
    """
    described = Preprocessing.from_metadata(metadata)
    if described is not None:
        return described, "as their file says"
    if pretrained and name.startswith("torchvision/"):
        return _torchvisions(name)
    if pretrained or name not in list_models():
        # Our MobileNetV2 has the weights of timm's.
        theirs = {"mobilenet_v2": "mobilenetv2_100"}.get(name, name)
        config = timm.models.get_pretrained_cfg(theirs) if timm.is_model(theirs) else None
        from_timm = Preprocessing.from_timm(config and config.to_dict())
        if from_timm is not None:
            return from_timm, f"timm's for {name}"
    if name in {f"resnet{depth}" for depth in CIFAR_DEPTHS}:
        return None
    return Preprocessing(224, 256), "assumed to be ImageNet's"


def _channels(model: nn.Module) -> int:
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


def _assumed(model: nn.Module, name: str | None, pretrained: bool) -> tuple[Preprocessing, str]:
    """Return the likely preprocessing for weights without metadata, and its source."""
    if pretrained and name is not None and name.startswith("torchvision/"):
        return _torchvisions(name)
    config = getattr(model, "pretrained_cfg", None)
    if pretrained or (name is not None and name not in list_models()):
        from_timm = Preprocessing.from_timm(config)
        if from_timm is not None:
            return from_timm, f"timm's for {name}"
    if isinstance(model, CifarResNet):
        return Preprocessing(32, 32), "CIFAR's size with ImageNet's mean and standard deviation"
    return Preprocessing(224, 256), "ImageNet's"


def _torchvisions(name: str) -> tuple[Preprocessing, str]:
    """Return the preprocessing for torchvision's default weights, and its source."""
    weights: Any = torchvision.models.get_model_weights(name.removeprefix("torchvision/"))
    transform = weights.DEFAULT.transforms()
    sizes = transform.crop_size[0], transform.resize_size[0]
    interpolation = transform.interpolation.value
    theirs = Preprocessing(*sizes, transform.mean, transform.std, interpolation)
    return theirs, f"torchvision's for {weights.DEFAULT.name}"
