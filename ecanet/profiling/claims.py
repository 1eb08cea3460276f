"""The published figures of ECA-Net beside ours: which hold, and what would check the others."""

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
from ecanet.profiling.counts import count_macs, count_parameters
from ecanet.profiling.detectors import count_detector_macs
from ecanet.profiling.profile import RELEASED_KERNELS, ModelSpec

EXACT, NOT_CHECKED, CONTRADICTED = "exact", "not checked", "contradicted"
"""Verdicts; the fourth is ``within 0.5 %``."""

_CLAIMS = Path(__file__).with_name("claims.yaml")


@dataclass
class Claim:
    """A published figure and what we found."""

    quantity: str
    unit: str
    subject: str
    """The model, module or number of channels that the figure is about."""
    source: str
    printed: str
    ours: str | None
    """In the digits of the printed figure; None if not checked."""
    verdict: str
    check: str | None
    """What would check a figure that is not checked: a command, where there is one."""
    note: str | None
    column: str | None
    """Where the figure stands in the short table: parameters or multiply-adds."""

    @property
    def holds(self) -> bool:
        """Whether the figure was counted and agrees."""
        return self.verdict not in (NOT_CHECKED, CONTRADICTED)


def check_claims() -> list[Claim]:
    """Count what can be counted without data, and compare every published figure; seconds."""
    book = yaml.safe_load(_CLAIMS.read_text(encoding="utf-8"))
    return [
        _compare(group, subject, printed, book)
        for group in book["groups"]
        for subject, printed in group["values"].items()
    ]


def _compare(group: dict[str, Any], subject: str, printed: str, book: dict[str, Any]) -> Claim:
    model = book["models"].get(subject, {})
    claim = Claim(
        group["quantity"],
        group.get("unit", ""),
        subject,
        group["source"],
        printed,
        None,
        NOT_CHECKED,
        None,
        group.get("note"),
        group.get("column"),
    )
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
    """Return the flags that name a model on the command line."""
    if "name" not in model:
        return ""
    spec = _spec(model)
    flags = [f"-m {spec.name}"]
    if spec.attention:
        flags.append(f"--attention {spec.attention}")
    if spec.kernel_sizes:
        flags.append(f"--kernel-sizes {spec.kernel_sizes}")
    return " ".join(flags)


def _spec(model: dict[str, Any]) -> ModelSpec:
    kernel_sizes = model.get("kernel_sizes")
    if kernel_sizes == "released":
        kernel_sizes = RELEASED_KERNELS[model["name"]]
    return ModelSpec(model["name"], model.get("attention"), kernel_sizes)


# ---- what can be counted, of a subject as the file describes it


@functools.cache
def _built(spec: ModelSpec) -> nn.Module:
    with torch.device("meta"):
        return spec.build(224)


def _model(model: dict[str, Any]) -> nn.Module:
    return _built(_spec(model))


def _parameters(model: dict[str, Any]) -> int:
    return count_parameters(_model(model))


def _attention_parameters(model: dict[str, Any]) -> int:
    return sum(map(count_parameters, attention_modules(_model(model)).values()))


def _macs(model: dict[str, Any]) -> int:
    return count_macs(_model(model), 224)


def _macs_thop(model: dict[str, Any]) -> int:
    return count_macs(_model(model), 224, convention="thop")


def _macs_thop_2019(model: dict[str, Any]) -> int:
    return count_macs(_model(model), 224, convention="thop-2019")


def _kernel_size(model: dict[str, Any]) -> int:
    return eca_kernel_size(model["channels"])


def _module_parameters(model: dict[str, Any]) -> int:
    return count_parameters(create_attention(model["attention"], model["channels"]))


def _detector(model: dict[str, Any]) -> nn.Module:
    return _built_detector(model["detector"], _spec(model))


@functools.cache
def _built_detector(kind: DetectorKind, spec: ModelSpec) -> nn.Module:
    """A detector of the paper: COCO's classes, the stem and the first stage frozen."""
    with torch.device("meta"):
        return create_detector(
            kind,
            spec.name,
            80,
            attention=spec.attention,
            kernel_sizes=spec.kernel_sizes,
            norm="frozen",
            frozen_stages=1,
        )


def _trainable_parameters(model: dict[str, Any]) -> int:
    return sum(p.numel() for p in _detector(model).parameters() if p.requires_grad)


def _detector_macs(model: dict[str, Any]) -> int:
    return count_detector_macs(_detector(model))


_MEASURES: dict[str, Callable[[dict[str, Any]], int]] = {
    "parameters": _parameters,
    "attention_parameters": _attention_parameters,
    "macs": _macs,
    "macs_thop": _macs_thop,
    "macs_thop_2019": _macs_thop_2019,
    "kernel_size": _kernel_size,
    "module_parameters": _module_parameters,
    "trainable_parameters": _trainable_parameters,
    "detector_macs": _detector_macs,
}
