"""Profiles models: their sizes, multiply-adds and memory, the share of attention, and their speed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ecanet.errors import UserError, as_user_error
from ecanet.models import attention_modules, create_model
from ecanet.models.counts import count_macs, count_parameters, counted_macs
from ecanet.models.hooks import forward_hooks
from ecanet.models.width import without_values
from ecanet.profiling.memory import activation_bytes
from ecanet.profiling.speed import BatchSpeed, measure_speeds

RELEASED_KERNELS = {
    "eca_resnet18": "3577",
    "eca_resnet34": "3357",
    "eca_resnet50": "3557",
    "eca_resnet101": "3357",
    "eca_resnet152": "3357",
    "eca_mobilenet_v2": None,  # the released ones are its default
}
"""The six published models, with the kernel sizes of the released weights."""


@dataclass(frozen=True)
class ModelSpec:
    """Arguments of :func:`ecanet.create_model`."""

    name: str
    attention: str | None = None
    kernel_sizes: str | None = None

    @property
    def label(self) -> str:
        """The name in tables: ``resnet50 + se``, ``eca_resnet50 3557``."""
        plain = self.attention in (None, "none")
        attended = self.name if plain else f"{self.name} + {self.attention}"
        return f"{attended} {self.kernel_sizes}" if self.kernel_sizes else attended

    def build(self, image_size: int, num_classes: int = 1000) -> nn.Module:
        """Build the model for images of this size.

        Raises:
            UserError: the model or its attention module is unknown or cannot be built.
        """
        return create_model(
            self.name,
            num_classes=num_classes,
            attention=self.attention,
            kernel_sizes=self.kernel_sizes,
            image_size=image_size,
        )


PUBLISHED = [
    ModelSpec(name, kernel_sizes=kernel_sizes) for name, kernel_sizes in RELEASED_KERNELS.items()
]


@dataclass
class StageCost:
    """Costs of the attention modules of one stage; multiply-adds and bytes are per image."""

    stage: str
    """The shortest part of the modules' names that distinguishes stages: ``layer1``."""
    modules: int
    parameters: int
    macs: int
    activation_bytes: int


@dataclass
class ModelProfile:
    """Costs of one model."""

    model: str
    parameters: int
    macs: int
    """Multiply-adds of one image's forward pass: convolutions and matrix products."""
    macs_thop: int
    """The same in the convention of the published tables, ``thop-2019`` of :func:`count_macs`."""
    activation_bytes: int
    """Memory that one image's forward pass keeps for the backward pass: :func:`activation_bytes`."""
    attention: list[StageCost]
    speeds: list[BatchSpeed] = field(default_factory=list)


def profile_models(
    specs: Sequence[ModelSpec],
    *,
    image_size: int = 224,
    num_classes: int = 1000,
    batch_sizes: Sequence[int] = (),
    **speed: Any,
) -> list[ModelProfile]:
    """Count the costs of each model, and time the models side by side.

    Args:
        specs: the models.
        image_size: side of the images, in pixels.
        num_classes: length of the models' output.
        batch_sizes: images per step; without any, nothing is timed.
        speed: arguments of :func:`measure_speeds`: device, precision, train, repeats and
            seconds_per_repeat.

    Raises:
        UserError: a model is unknown, named twice, or does not take images of this size.
    """
    labels = [spec.label for spec in specs]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"{twice[0]} is named more than once")
    profiles = [_count(spec, image_size, num_classes) for spec in specs]
    if batch_sizes:
        speeds = measure_speeds(
            {spec.label: spec.build(image_size, num_classes) for spec in specs},
            batch_sizes,
            image_size=image_size,
            num_classes=num_classes,
            **speed,
        )
        for profile in profiles:
            profile.speeds = speeds[profile.model]
    return profiles


def _count(spec: ModelSpec, image_size: int, num_classes: int) -> ModelProfile:
    model = without_values(lambda: spec.build(image_size, num_classes))
    modules = attention_modules(model)
    with as_user_error(f"{spec.label} does not take images of {image_size} pixels"):
        kept, kept_by = activation_bytes(model, image_size, parts=modules)
        macs, macs_by = _macs(model, image_size, modules)
        macs_thop = count_macs(model, image_size, convention="thop-2019")
    stages = [
        StageCost(
            stage,
            len(names),
            sum(count_parameters(modules[name]) for name in names),
            sum(macs_by[name] for name in names),
            sum(kept_by[name] for name in names),
        )
        for stage, names in _stages(list(modules)).items()
    ]
    return ModelProfile(spec.label, count_parameters(model), macs, macs_thop, kept, stages)


def _macs(
    model: nn.Module, image_size: int, parts: dict[str, nn.Module]
) -> tuple[int, dict[str, int]]:
    """Return the multiply-adds of the model and of each part."""
    totals = dict.fromkeys(parts, 0)

    def note(name: str, ended: bool) -> None:
        totals[name] += total() if ended else -total()

    with counted_macs(model) as total, forward_hooks(parts, note):
        model(torch.zeros(1, 3, image_size, image_size, device="meta"))
    return total(), totals


def _stages(names: list[str]) -> dict[str, list[str]]:
    """Group names by their shortest prefix that differs: ``layer1``, ``blocks.0``."""
    parts = [name.split(".") for name in names]
    common = 0
    while len(names) > 1 and len({tuple(part[: common + 1]) for part in parts}) == 1:
        common += 1
    groups = itertools.groupby(names, lambda name: ".".join(name.split(".")[: common + 1]))
    return {stage: list(group) for stage, group in groups}
