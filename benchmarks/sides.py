"""What the benchmarks share: sides that take turns, the ratio of two, and the record of a run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from ecanet.environment import environment
from ecanet.files import write_json


def seconds_in_turns(sides: dict[str, Callable[[], None]], turns: int) -> dict[str, list[float]]:
    """Time the sides one after the other, ``turns`` times, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, step in sides.items():
            start = time.perf_counter()
            step()
            if turn:  # the first chooses algorithms and fills caches
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio_of(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Return median, lowest and highest of the ratios turn by turn."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def rates_and_ratio(seconds: dict[str, list[float]], count: int, label: str = "") -> dict[str, Any]:
    """Return and print the images a second of two sides, ``count`` images a turn, and their ratio."""
    rates = {name: count / statistics.median(times) for name, times in seconds.items()}
    ratio = ratio_of(*seconds.values())
    for name, rate in rates.items():
        print(f"{label}{name:30} {rate:8.2f} images/s")
    print(f"{label}{in_words(ratio)}", flush=True)
    return {"images_per_second": rates, "ratio": ratio}


def in_words(ratio: dict[str, float]) -> str:
    return f"ratio {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def write_record(
    out: Path | None, name: str, record: dict[str, Any], device: torch.device | str = "cpu"
) -> None:
    """Write ``out/name.json``, with the date and where it was measured; nothing without ``out``."""
    if out is None:
        return
    here = environment(torch.device(device))
    about = {key: value for key, value in here.items() if key != "host"}
    about |= record.pop("environment", {})
    write_json(
        out / f"{name}.json", {**record, "environment": about, "date": date.today().isoformat()}
    )
