"""A model without batch norm, as a plugin would register it."""

from typing import Any

from timm.models import register_model
from torch import nn


@register_model
def plain_cnn(pretrained: bool = False, num_classes: int = 10, in_chans: int = 3, **_: Any) -> Any:
    return nn.Sequential(
        nn.Conv2d(in_chans, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )
