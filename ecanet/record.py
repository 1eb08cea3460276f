"""The record of a run: the only thing that passes between a run and whatever reads it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ecanet.files import read_json
from ecanet.typed import typed


@dataclass
class EpochMetrics:
    """What one epoch measured. Losses are mean cross-entropies in nats, accuracies fractions of 1."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float
    """Wall time of the epoch's training part."""

    @property
    def score(self) -> float:
        """What epochs are compared by."""
        return self.val_accuracy


@dataclass
class FinalMetrics:
    """What the finished run is judged by. The test split is read once, here, or not at all: then NaN."""

    test_accuracy: float
    test_loss: float
    val_accuracy: float
    epoch: int
    """The epoch whose weights were tested (0-based)."""
    train_seconds: float
    """Wall time spent in training, over all epochs, interruptions left out."""
    val_loss: float = math.nan

    @property
    def score(self) -> float:
        """What runs are compared by."""
        return self.test_accuracy


@dataclass
class DetectionEpoch:
    """What one epoch of a detector measured."""

    epoch: int
    train_loss: float
    """Mean over the images of the sum of the detector's losses."""
    figures: dict[str, float]
    """COCO's, ``box_AP`` and so on, fractions of 1; -1 where there was no object to find."""
    lr: float
    seconds: float
    """Wall time of the epoch's training part."""

    @property
    def score(self) -> float:
        """What epochs are compared by."""
        return self.figures["box_AP"]

    @property
    def val_loss(self) -> float:
        """NaN: a detector in evaluation gives no loss."""
        return math.nan


@dataclass
class DetectionFinal:
    """What a finished detector is judged by: the figures of its last epoch, so that nothing is chosen."""

    figures: dict[str, float]
    epoch: int
    train_seconds: float
    """Wall time spent in training, over all epochs, interruptions left out."""

    @property
    def score(self) -> float:
        """What runs are compared by."""
        return self.figures["box_AP"]


@dataclass
class Record:
    """One run, of a classifier or a detector: what was asked, on what it ran, what it measured."""

    attention: str
    seed: int
    settings: dict[str, Any]
    environment: dict[str, Any]
    epochs: list[Any] = field(default_factory=list)
    """An :class:`EpochMetrics` or :class:`DetectionEpoch` each."""
    final: Any = None
    """A :class:`FinalMetrics` or :class:`DetectionFinal`."""
    built_in: dict[str, int] = field(default_factory=dict)
    """Attention modules that the network has of its own beside ``attention``, each kind's number."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; a loss that is not finite (a diverged run) becomes None."""
        values = asdict(self)
        values["epochs"] = [without_nan(epoch) for epoch in values["epochs"]]
        values["final"] = without_nan(values["final"]) if self.final else None
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        """Rebuild what :meth:`to_dict` wrote; None among the metrics becomes NaN again.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: the values are not what :meth:`to_dict` gives.
        """
        values = dict(values)
        epochs, final = values.pop("epochs"), values.pop("final")
        epoch_of, final_of = (
            (DetectionEpoch, DetectionFinal)
            if "figures" in (final or {})
            else (EpochMetrics, FinalMetrics)
        )
        if not isinstance(values["attention"], str) or not isinstance(values["seed"], int):
            raise ValueError("attention is no text, or seed no number")
        return cls(
            **values,
            epochs=[epoch_of(**with_nan(epoch)) for epoch in epochs],
            final=final_of(**with_nan(final)) if final else None,
        )


def read_record(path: Path) -> Record | None:
    """Return the record in a file; None where there is no such file, or a damaged one."""
    try:
        return Record.from_dict(read_json(path) or {})
    except (KeyError, TypeError, AttributeError, ValueError):
        return None


def without_nan(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return metrics for JSON: what is not finite, as after a run has diverged, becomes None."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()
    }


def with_nan(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return metrics as they were before :func:`without_nan`; infinity comes back as NaN.

    Raises:
        ValueError: a metric is no number.
    """
    found = {
        k: math.nan if v is None else with_nan(v) if isinstance(v, dict) else v
        for k, v in metrics.items()
    }
    if not all(type(v) in (float, int, dict) for v in found.values()):
        raise ValueError("a metric is no number")
    return found


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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Cost:
        """Rebuild what :meth:`to_dict` gave.

        Raises:
            UserError: a value is missing, or of another type.
        """
        return typed(cls, values)
