"""The width of a network: the channels of its stages, and how many of them a given cost pays for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.models.resnet import ResNet
from torch import nn

from ecanet.models.cifar_resnet import CifarResNet
from ecanet.models.mobilenetv2 import MobileNetV2

_WIDEST = 16.0
_HALVINGS = 20
# Share of the target within which no nearer cost is looked for.
_CLOSE = 0.001


def stage_channels(model: nn.Module) -> list[int] | None:
    """Return the channels of each stage as :func:`ecanet.create_model` takes them; None if it takes none.

    Of bottlenecks they are those within, a quarter of the stage's output.
    """
    network: Any = model
    if isinstance(model, ResNet):
        return [info["num_chs"] // _expansion(model) for info in network.feature_info[1:]]
    if isinstance(model, CifarResNet):
        return [info["num_chs"] for info in network.feature_info]
    if isinstance(model, MobileNetV2):
        return [stage[-1].last_norm().num_features for stage in network.blocks]
    return None


def widened(model: nn.Module, width: float) -> list[int]:
    """Return the channels of each stage times ``width``, as whole numbers.

    The first stage of basic blocks stays as it is: its shortcuts add the output of the stem.
    """
    channels = stage_channels(model)
    assert channels is not None
    first = _first_widened(model)
    return channels[:first] + [round(width * count) for count in channels[first:]]


def _first_widened(model: Any) -> int:
    return int(isinstance(model, ResNet) and _expansion(model) == 1)


def _expansion(model: Any) -> int:
    return int(model.layer1[0].expansion)


def channels_for(
    model: nn.Module, target: float, cost: Callable[[Sequence[int]], int]
) -> list[int]:
    """Return the channels of each stage with which a network costs as near to ``target`` as it can.

    All stages are widened alike as far as the target allows; then single channels are added or taken away.

    Args:
        model: the network as it is, which costs less.
        target: in the unit of ``cost``.
        cost: of the network with these channels; grows with them.
    """
    counted = functools.cache(lambda channels: cost(list(channels)))

    def distance(channels: Sequence[int]) -> float:
        return abs(counted(tuple(channels)) - target)

    low, high = 1.0, _WIDEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fits = counted(tuple(widened(model, middle))) <= target
        low, high = (middle, high) if fits else (low, middle)
    best, first = widened(model, low), _first_widened(model)
    while distance(best) > _CLOSE * target:
        near = [
            [*best[:i], best[i] + step, *best[i + 1 :]]
            for i in range(first, len(best))
            for step in (1, -1)
        ]
        nearest = min(near, key=distance)
        if distance(nearest) >= distance(best):
            break
        best = nearest
    return best


def without_values(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model on the meta device, where its cost can be counted and its weights take no memory."""
    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:  # torchvision's RegNets compute widths with tensors
        return build().to("meta")
