"""How images are prepared for a model: as its weights say, or else as is assumed, and told in a line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torchvision
from torch import nn

from ecanet.data.preprocessing import Preprocessing
from ecanet.errors import UserError
from ecanet.models.cifar_resnet import CifarResNet
from ecanet.models.factory import list_models


def input_preprocessing(
    model: nn.Module,
    name: str | None,
    metadata: Mapping[str, str],
    *,
    pretrained: bool = False,
    eval_size: int | None = None,
    crop_share: float | None = None,
    say: Callable[[str], None] = lambda line: None,
    **others: Any,
) -> Preprocessing:
    """Return how images are prepared for ``model``.

    Args:
        model: built, with its weights.
        name: as in :func:`ecanet.create_model`, where the user or the file tells it.
        metadata: of the weight file; empty for a model that comes from none.
        pretrained: the weights are those that timm or torchvision have for the name.
        eval_size, crop_share: in place of what the weights say, where not None. The share stays what it
            is when the size alone is given.
        say: called with a line for what is assumed, and one for what is given.
        others: further fields of :class:`ecanet.data.preprocessing.Preprocessing` in place of the weights',
            where not None.

    Raises:
        UserError: the weights say what cannot be, or the model takes no images of one channel or three.
    """
    channels = _channels(model)
    told = Preprocessing.from_metadata(metadata)
    if told is None:
        assumed, whose = _assumed(model, name, pretrained)
        told = assumed.for_channels(channels)
        say(f"the weights do not say how images are prepared; taken is {whose}: {told}")
    elif told.channels != channels:
        raise UserError(
            f"the weights are of images of {told.channels} channels by their metadata, and of "
            f"{channels} by their first layer"
        )
    given = {name: value for name, value in others.items() if value is not None}
    chosen = dataclasses.replace(told, **given)
    if eval_size is not None or crop_share is not None:
        size = chosen.size if eval_size is None else eval_size
        share = chosen.crop_share if crop_share is None else crop_share
        chosen = Preprocessing.of_crop(
            size, share, mean=chosen.mean, std=chosen.std,
            interpolation=chosen.interpolation, squash=chosen.squash,
        )  # fmt: skip
    chosen = chosen.for_channels(channels)
    if chosen != told:
        changed = [
            f"{field.name} {getattr(chosen, field.name)}, not {getattr(told, field.name)}"
            for field in dataclasses.fields(told)
            if getattr(chosen, field.name) != getattr(told, field.name)
        ]
        say(f"images are prepared as the flags say: {'; '.join(changed)}")
    return chosen


def _channels(model: nn.Module) -> int:
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


def _assumed(model: nn.Module, name: str | None, pretrained: bool) -> tuple[Preprocessing, str]:
    """Return what is likely for weights that say nothing, and whose way it is."""
    if pretrained and name is not None and name.startswith("torchvision/"):
        weights: Any = torchvision.models.get_model_weights(name.removeprefix("torchvision/"))
        transform = weights.DEFAULT.transforms()
        return (
            Preprocessing(
                transform.crop_size[0],
                transform.resize_size[0],
                tuple(transform.mean),
                tuple(transform.std),
                transform.interpolation.value,
            ),
            f"torchvision's for {weights.DEFAULT.name}",
        )
    config = getattr(model, "pretrained_cfg", None)
    if pretrained or (name is not None and name not in list_models()):
        found = Preprocessing.from_timm(config)
        if found is not None:
            return found, f"timm's for {name}"
    if isinstance(model, CifarResNet):
        return Preprocessing(32, 32), "CIFAR's size with ImageNet's mean and deviation"
    return Preprocessing(224, 256), "ImageNet's"
