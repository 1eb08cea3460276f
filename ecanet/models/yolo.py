"""Named places in the networks of Ultralytics: YOLO, RT-DETR, classifiers. That is not imported.

Such a network is a list of layers with a head at the end; its YAML says how many of them are the backbone.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from ecanet.errors import UserError
from ecanet.models.libreyolo import is_libreyolo, libreyolo_places

PLACES = ("blocks", "backbone", "neck", "before-detect")
"""The end of every block; of those in the backbone; of the others; every layer that the head reads."""

# Classes of layers that are blocks of several convolutions, and not stems, poolings or changes of size.
_BLOCKS = {
    "A2C2f", "Bottleneck", "BottleneckCSP", "C1", "C2", "C2PSA", "C2f", "C2fAttn", "C2fCIB", "C2fPSA", "C3",
    "C3Ghost", "C3TR", "C3k2", "C3x", "ELAN1", "GhostBottleneck", "HGBlock", "PSA", "RepC3", "RepNCSPELAN4",
    "ResNetLayer",
}  # fmt: skip


def is_yolo(model: nn.Module) -> bool:
    """Whether a network is one of Ultralytics, or a detector of LibreYOLO."""
    return _is(model, "ultralytics.nn.tasks:BaseModel") or is_libreyolo(model)


def yolo_places(network: Any, where: str) -> list[str]:
    """Return the names of the layers at a place, one of :data:`PLACES`.

    Raises:
        UserError: the network has none there.
    """
    found = libreyolo_places(network) if is_libreyolo(network) else _all_places(network)
    if not found[where]:
        others = [f"{name} ({len(layers)})" for name, layers in found.items() if layers]
        raise UserError(
            f"{type(network).__name__} has no layers for where={where!r}: give "
            f'{" or ".join(others)}, or a pattern of names, such as where="model.9"'
        )
    return found[where]


def refuse_wrapper(model: nn.Module) -> None:
    """Refuse what wraps a network, such as ``YOLO("yolo11n.yaml")``.

    Raises:
        UserError: says what to give.
    """
    wrappers = "ultralytics.engine.model:Model", "libreyolo.models.base.model:BaseModel"
    if any(_is(model, name) for name in wrappers):
        raise UserError(
            f"{type(model).__name__} wraps a network: give that, as in insert_attention(yolo.model, ...)"
        )


def keep_in_training(network: nn.Module) -> None:
    """Make the attention modules of a network last when its library trains it."""
    library = "libreyolo" if is_libreyolo(network) else "ultralytics"
    importlib.import_module(f"ecanet.integrations.{library}.keeping").keep(network)


def _all_places(network: Any) -> dict[str, list[str]]:
    *layers, head = network.model
    backbone = len(network.yaml["backbone"])
    blocks = [i for i, layer in enumerate(layers) if _is_block(layer)]
    read = [head.f] if isinstance(head.f, int) else head.f
    found = {
        "blocks": blocks,
        "backbone": [i for i in blocks if i < backbone],
        "neck": [i for i in blocks if i >= backbone],
        "before-detect": sorted({i if i >= 0 else len(layers) + i for i in read}),
    }
    return {name: [f"model.{i}" for i in numbers] for name, numbers in found.items()}


def _is_block(layer: Any) -> bool:
    if type(layer) is nn.Sequential:  # a block that is repeated
        layer = layer[0]
    if getattr(layer, "is_first", False):  # the stem of a ResNet
        return False
    return not _BLOCKS.isdisjoint(kind.__name__ for kind in type(layer).__mro__)


def _is(model: nn.Module, name: str) -> bool:
    return any(f"{kind.__module__}:{kind.__qualname__}" == name for kind in type(model).__mro__)
