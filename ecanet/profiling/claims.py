"""Compares the published figures of ECA-Net with ours, and names checks for those that need data."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ecanet.attention import create_attention
from ecanet.attention.eca import eca_kernel_size
from ecanet.config import DetectorKind
from ecanet.detection.detectors import create_detector
from ecanet.models import attention_modules
from ecanet.models.counts import count_macs, count_parameters
from ecanet.profiling.detectors import count_detector_macs
from ecanet.profiling.profile import RELEASED_KERNELS, ModelSpec

EXACT, NOT_CHECKED, CONTRADICTED = "exact", "not checked", "contradicted"
"""Verdicts; a fourth one is ``within 0.5 %``."""

_CLAIMS = Path(__file__).with_name("claims.yaml")


@dataclass
class Claim:
    """A published figure and ours."""

    quantity: str
    unit: str
    subject: str
    """The model, module or number of channels that the figure is about."""
    source: str
    printed: str
    ours: str | None = None
    """With as many digits as the printed figure; None if not checked."""
    verdict: str = NOT_CHECKED
    check: str | None = None
    """How to check a figure that is not checked: a command, if there is one."""
    note: str | None = None
    column: str | None = None
    """The figure's column in the short table: parameters or multiply-adds."""

    @property
    def holds(self) -> bool:
        """Whether the figure was checked and agrees."""
        return self.verdict not in (NOT_CHECKED, CONTRADICTED)


def check_claims() -> list[Claim]:
    """Compare every published figure; what needs no data is counted, which takes seconds."""
    book = yaml.safe_load(_CLAIMS.read_text(encoding="utf-8"))
    return [
        _compare(group, subject, printed, book)
        for group in book["groups"]
        for subject, printed in group["values"].items()
    ]


def _compare(group: dict[str, Any], subject: str, printed: str, book: dict[str, Any]) -> Claim:
    model = book["models"].get(subject, {})
    what = group["quantity"], group.get("unit", ""), subject, group["source"], printed
    claim = Claim(*what, note=group.get("note"), column=group.get("column"))
    if "measure" not in group:
        check = book["checks"].get(group["check"], group["check"])
        claim.check = check.format(model=_flags(model), weights=model.get("weights"))
        return claim
    value = _MEASURES[group["measure"]](model) / group.get("scale", 1)
    claim.ours = f"{value:.{len(printed.partition('.')[2])}f}"
    claim.verdict = _verdict(value, claim.ours, printed, group.get("tolerance", 0))
    return claim


def _verdict(value: float, rounded: str, printed: str, tolerance: float) -> str:
    if rounded == printed:
        return EXACT
    if abs(value / float(printed) - 1) <= tolerance:
        return f"within {100 * tolerance:g} %"
    return CONTRADICTED


def _flags(model: dict[str, Any]) -> str:
    """Return the command-line flags for a model."""
    if "name" not in model:
        return ""
    spec = _spec(model)
    flags = {"-m": spec.name, "--attention": spec.attention, "--kernel-sizes": spec.kernel_sizes}
    return " ".join(f"{flag} {value}" for flag, value in flags.items() if value)


def _spec(model: dict[str, Any]) -> ModelSpec:
    kernel_sizes = model.get("kernel_sizes")
    if kernel_sizes == "released":
        kernel_sizes = RELEASED_KERNELS[model["name"]]
    return ModelSpec(model["name"], model.get("attention"), kernel_sizes)


# ---- measures of a subject as described in the file


@functools.cache
def _built(spec: ModelSpec, kind: DetectorKind | None) -> nn.Module:
    """Build a classifier, or a detector of the paper: COCO's classes, the stem and the first stage frozen."""
    with torch.device("meta"):
        if kind is None:
            return spec.build(224)
        return create_detector(
            kind,
            spec.name,
            80,
            attention=spec.attention,
            kernel_sizes=spec.kernel_sizes,
            norm="frozen",
            frozen_stages=1,
        )


def _model(model: dict[str, Any]) -> nn.Module:
    return _built(_spec(model), model.get("detector"))


def _attention_parameters(model: dict[str, Any]) -> int:
    return sum(map(count_parameters, attention_modules(_model(model)).values()))


def _trainable_parameters(model: dict[str, Any]) -> int:
    return sum(p.numel() for p in _model(model).parameters() if p.requires_grad)


_MEASURES: dict[str, Callable[[dict[str, Any]], int]] = {
    "parameters": lambda model: count_parameters(_model(model)),
    "attention_parameters": _attention_parameters,
    "macs": lambda model: count_macs(_model(model), 224),
    "macs_thop": lambda model: count_macs(_model(model), 224, convention="thop"),
    "macs_thop_2019": lambda model: count_macs(_model(model), 224, convention="thop-2019"),
    "kernel_size": lambda model: eca_kernel_size(model["channels"]),
    "module_parameters": lambda model: count_parameters(
        create_attention(model["attention"], model["channels"])
    ),
    "trainable_parameters": _trainable_parameters,
    "detector_macs": lambda model: count_detector_macs(_model(model)),
}
