"""Finds the layers of a network that have an output for each class."""

from __future__ import annotations

from typing import Any

from torch import nn


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers with an output per class, auxiliary ones included.

    timm's networks and ours name them in ``pretrained_cfg``. Of others it is the last layer with weights,
    and each linear layer with as many outputs, as the auxiliary classifiers of torchvision's GoogLeNet have.
    A network that was built without a classifier names where it would be.
    """
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("classifier")
    if names:
        return (names,) if isinstance(names, str) else tuple(names)
    if getattr(model, "num_classes", None) == 0:
        return ("fc",)  # of a ResNet for CIFAR
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    if not layers:
        return ()
    last = list(layers)[-1]
    outputs = _outputs(layers[last])
    return tuple(
        name
        for name, module in layers.items()
        if name == last or (isinstance(module, nn.Linear) and _outputs(module) == outputs)
    )


def _outputs(layer: Any) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
