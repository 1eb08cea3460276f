"""The record of a run: the only thing that passes between a run and its readers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecanet.files import read_json

Row = dict[str, float]
"""Metrics by the name of their column. Accuracies and APs are fractions of 1, times are seconds."""


@dataclass
class Record:
    """One run, of a classifier or a detector: its settings, the machine, the metrics."""

    settings: dict[str, Any]
    """Resolved settings, ``attention`` and ``seed`` among them."""
    environment: dict[str, Any]
    epochs: list[Row]
    """One row for each epoch: ``epoch`` (0-based), ``train_loss``, ``lr``, ``seconds`` (of training alone)
    and what the task measures, such as ``val_loss`` and ``val_accuracy``, or ``box_AP``."""
    final: Row
    """The metrics that the run is judged by, the ``epoch`` they are of, and ``train_seconds``: the time
    spent in training over all epochs, interruptions left out. NaN or absent: not measured."""
    built_in: dict[str, int] = field(default_factory=dict)
    """Attention modules that the network has of its own beside ``attention``: the number of each kind."""
    arm: str | None = None
    """Of a comparison that it is a run of, if that is not its attention module but a control."""

    @property
    def attention(self) -> str:
        """The attention module that the network was trained with; of a control, its name."""
        return self.arm or self.settings["attention"]

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.settings["seed"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; a metric that is not finite (of a diverged run) becomes None."""
        return {
            **vars(self),
            "epochs": [without_nan(epoch) for epoch in self.epochs],
            "final": without_nan(self.final),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        """Rebuild what :meth:`to_dict` returned; None among the metrics becomes NaN again.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: the values are not what :meth:`to_dict` returns.
        """
        epochs, final = [with_nan(row) for row in values["epochs"]], with_nan(values["final"])
        record = cls(**{**values, "epochs": epochs, "final": final})
        attention, seed = record.settings["attention"], record.settings["seed"]
        if not isinstance(attention, str | None) or not isinstance(seed, int):
            raise ValueError("attention is not a text, or seed not a number")
        if not isinstance(record.environment, dict):
            raise ValueError("the environment is not a table")
        if not all(math.isfinite(row["epoch"]) for row in (*record.epochs, final)):
            raise ValueError("an epoch is not a number")
        if "train_seconds" not in final:
            raise ValueError("train_seconds is missing")
        return record


def read_record(path: Path) -> Record | None:
    """Return the record in a file; None where there is no such file, or a damaged one."""
    try:
        return Record.from_dict(read_json(path) or {})
    except (KeyError, TypeError, AttributeError, ValueError):
        return None


def without_nan(row: Row) -> dict[str, float | None]:
    """Return a row for JSON: a metric that is not finite, as after a run has diverged, becomes None."""
    return {name: value if math.isfinite(value) else None for name, value in row.items()}


def with_nan(row: dict[str, float | None]) -> Row:
    """Return a row as it was before :func:`without_nan`; infinity comes back as NaN.

    Raises:
        ValueError: a metric is no number.
    """
    numbers = {name: math.nan if value is None else value for name, value in row.items()}
    if not all(type(value) in (float, int) for value in numbers.values()):
        raise ValueError("a metric is no number")
    return numbers


@dataclass
class Speed:
    """Images a second: the median of interleaved repeats and its quartiles."""

    median: float
    low: float
    high: float
    repeats: int


@dataclass
class Cost:
    """What one attention module costs in one model, measured on one device."""

    attention: str
    parameters: int
    attention_parameters: int
    macs: int
    """Multiply-adds of one image's forward pass."""
    train: Speed
    inference: Speed
    train_peak_bytes: int | None
    """Peak memory of a training step: allocated device memory on a GPU; elsewhere the sum of what the
    step must hold (weights, gradients, optimizer state, batch, tensors saved for backward)."""
    batch_size: int
    device: str
    precision: str
    gpu_share: float | None = None
    """Share of a training step's time in which a GPU computes, 0..1: the rest of it, it waits for the host.
    None on other devices."""
