"""Profiles as text tables, and as rows for CSV and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple
from typing import Any

from ecanet.profiling.profile import ModelProfile
from ecanet.record import Speed

_LABEL = 22
"""Width of the first column; longer labels get a line of their own."""


def text(profiles: Sequence[ModelProfile], image_size: int, conditions: str) -> str:
    """Return the tables of :func:`profile_models` for a terminal of 80 columns.

    Args:
        profiles: the results.
        image_size: side of the images, in pixels.
        conditions: device and precision of the speeds.
    """
    blocks = [_sizes(profiles, image_size)]
    if any(profile.attention for profile in profiles):
        blocks.append(_attention(profiles))
    if any(profile.speeds for profile in profiles):
        blocks.append(_speeds(profiles, conditions))
    return "\n\n".join("\n".join(line.rstrip() for line in lines) for lines in blocks)


def rows(profiles: Sequence[ModelProfile]) -> dict[str, list[dict[str, Any]]]:
    """Return flat rows: ``models``, ``attention`` (one row per stage) and ``speed``."""
    return {
        "models": [
            {
                "model": profile.model,
                "parameters": profile.parameters,
                "parameters_millions": profile.parameters / 1e6,
                "parameters_mebi": profile.parameters / 2**20,
                "macs": profile.macs,
                "macs_billions": profile.macs / 1e9,
                "macs_gibi": profile.macs / 2**30,
                "macs_thop_2019": profile.macs_thop,
                "macs_thop_2019_gibi": profile.macs_thop / 2**30,
                "activation_bytes": profile.activation_bytes,
            }
            for profile in profiles
        ],
        "attention": [
            {"model": profile.model, **asdict(stage)}
            for profile in profiles
            for stage in profile.attention
        ],
        "speed": [
            {"model": profile.model, "batch_size": at.batch_size, "mode": mode}
            | _speed_row(at.batch_size, speed)
            for profile in profiles
            for at in profile.speeds
            for mode, speed in (("inference", at.inference), ("train", at.train))
            if speed is not None
        ],
    }


def _speed_row(batch_size: int, speed: Speed) -> dict[str, Any]:
    return {
        "images_per_second": speed.median,
        "images_per_second_low": speed.low,
        "images_per_second_high": speed.high,
        "ms_per_batch": 1000 * batch_size / speed.median,
        "ms_per_batch_low": 1000 * batch_size / speed.high,
        "ms_per_batch_high": 1000 * batch_size / speed.low,
        "repeats": speed.repeats,
    }


def _sizes(profiles: Sequence[ModelProfile], image_size: int) -> list[str]:
    lines = [
        f"one image of {image_size} x {image_size}",
        f"{'':{_LABEL}}{'parameters':^18}  {'multiply-adds':^27}{'saved for':>10}",
        f"{'model':{_LABEL}}{'exact':>11}{'2^20':>7}"
        f"{'exact':>15}{'2^30':>7}{'thop*':>7}{'backward':>11}",
    ]
    for profile in profiles:
        lines += _labelled(
            profile.model,
            f"{profile.parameters:11,}{profile.parameters / 2**20:7.2f}"
            f"{profile.macs:15,}{_short(profile.macs / 2**30)}{_short(profile.macs_thop / 2**30)}"
            f"{_megabytes(profile.activation_bytes):>11}",
        )
    return [
        *lines,
        "* in 2^30, with norms, ReLUs and pooling: as printed in the ECA-Net paper",
        "saved for backward: memory that each image of a training batch adds, in float32",
    ]


def _attention(profiles: Sequence[ModelProfile]) -> list[str]:
    lines = [
        f"{'attention in':{_LABEL}}{'modules':>9}{'parameters':>13}{'multiply-adds':>16}"
        f"{'saved for backward':>20}"
    ]
    for profile in profiles:
        if not profile.attention:
            continue
        stages = [(f"  {stage.stage}", *astuple(stage)[1:]) for stage in profile.attention]
        total = (profile.model, *(sum(column) for column in list(zip(*stages, strict=True))[1:]))
        for label, modules, parameters, macs, kept in [total, *stages]:
            lines += _labelled(
                label, f"{modules:9,}{parameters:13,}{macs:16,}{_megabytes(kept):>20}"
            )
    return lines


def _speeds(profiles: Sequence[ModelProfile], conditions: str) -> list[str]:
    lines = [f"{conditions}: median and quartiles"]
    for i, at in enumerate(profiles[0].speeds):
        for mode, name in (("inference", "inference"), ("train", "training")):
            if getattr(at, mode) is None:
                continue
            title = f"{name}, batch of {at.batch_size}"
            lines.append(f"{title:{_LABEL}}{'ms per batch':>26}{'images/s':>25}")
            for profile in profiles:
                row = _speed_row(at.batch_size, getattr(profile.speeds[i], mode))
                spreads = (
                    f"{_spread(row, 'ms_per_batch'):>26}{_spread(row, 'images_per_second'):>25}"
                )
                lines += _labelled(profile.model, spreads)
    return lines


def _labelled(label: str, row: str) -> list[str]:
    if len(label) < _LABEL:
        return [f"{label:{_LABEL}}{row}"]
    return [label, " " * _LABEL + row]


def _short(value: float) -> str:
    if value < 1:
        return f"{value:7.4f}"
    return f"{value:#7.4g}" if value < 1000 else f"{value:7.0f}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"


def _spread(row: dict[str, Any], key: str) -> str:
    median, low, high = (_digits(row[key + end]) for end in ("", "_low", "_high"))
    return f"{median} ({low}–{high})"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
