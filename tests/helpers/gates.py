"""Networks with attention that does something known."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ecanet.attention import registry
from ecanet.data.preprocessing import Preprocessing
from ecanet.models import create_model
from ecanet.models.holders import attention_modules
from ecanet.models.weights.save import save_weights


class ChannelScale(nn.Module):
    """Multiplies each channel by a weight, whatever the image: the README's module."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def register_channel_scale() -> None:
    """To be called with the fixture ``own_registry``."""
    registry.register_attention("channel_scale")(ChannelScale)


def gated(
    attention: str, model: str = "resnet20", spread: float = 0.5, classes: int = 3
) -> nn.Module:
    """Return a network in evaluation mode whose attention has weights that are far from zero."""
    torch.manual_seed(0)
    built = create_model(model, attention=attention, num_classes=classes).eval()
    for name, weight in built.named_parameters():
        if ".attention." in name:
            nn.init.normal_(weight, mean=1.0 if name.endswith(".scale") else 0.0, std=spread)
    # Batch norms of a trained network do not all have the same weights.
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    assert attention == "none" or attention_modules(built)
    return built


def save_gated(
    path: Path,
    attention: str,
    model: str = "resnet20",
    names: Sequence[str] = ("class0", "class1", "class2"),
    data: str | os.PathLike[str] | None = None,
) -> Path:
    """Save :func:`gated`, as the weights of a run on ``data`` if that is given."""
    built = gated(attention, model, classes=len(names))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(
        path, built.state_dict(), model=model, attention=attention, num_classes=len(names),
        preprocessing=Preprocessing(16, 16), classes=list(names),
    )  # fmt: skip
    if data is not None:
        settings = {"data": str(data), "attention": attention, "select": "last"}
        (path.parent / "settings.json").write_text(json.dumps(settings))
    return path
