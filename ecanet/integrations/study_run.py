"""A run of a study that the trainer of another library trains: how far it is, and what it resumes from."""

from __future__ import annotations

import io
import random
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecanet.environment import environment
from ecanet.files import write_atomic
from ecanet.integrations.ultralytics.data import YoloData
from ecanet.record import Record, Row
from ecanet.training.task import Hooks

METRICS = {"mAP50-95": "map50_95", "mAP50": "map50", "precision": "precision", "recall": "recall"}
"""Names of a detector's metrics in both libraries, and ours."""


@dataclass
class StudyRun:
    """A run, and how far it is."""

    settings: Any
    data: YoloData
    origin: Any
    """What the network is built from."""
    folder: Path
    hooks: Hooks
    test: bool = True
    """Whether the test split is read, where there is one."""
    rows: list[Row] = field(default_factory=list)
    judged: Row = field(default_factory=dict)
    """What the run is judged by, once it has ended."""

    @property
    def state_file(self) -> Path:
        return self.folder / "checkpoints" / "state.pt"

    def load(self) -> dict[str, Any] | None:
        """Return the state that the run's folder holds, if any, with the rows and the result."""
        if not self.state_file.exists():
            return None
        state: dict[str, Any] = torch.load(
            self.state_file, map_location="cpu", weights_only=True, mmap=False
        )
        self.rows, self.judged = state["rows"], state["judged"]
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Write a state of plain values and tensors, with the rows and the result."""
        content = io.BytesIO()
        torch.save({**state, "rows": self.rows, "judged": self.judged}, content)
        self.state_file.parent.mkdir(exist_ok=True)
        write_atomic(self.state_file, content.getbuffer())

    def end(self, versions: dict[str, str], keep_weights: bool) -> Record:
        """Remove what only resuming needs, and return the record.

        Args:
            versions: of the library, by its name.
            keep_weights: leave the folder ``weights``.
        """
        shutil.rmtree(self.state_file.parent, ignore_errors=True)
        if not keep_weights:
            shutil.rmtree(self.folder / "weights", ignore_errors=True)
        seconds = sum(row["seconds"] for row in self.rows)
        return Record(
            settings=asdict(self.settings),
            environment={**environment(torch.device(self.settings.device)), **versions},
            epochs=self.rows,
            final={**self.judged, "epoch": self.rows[-1]["epoch"], "train_seconds": seconds},
        )


def random_state(generator: torch.Generator | None = None) -> dict[str, Any]:
    """Return the state of all random numbers, as plain values and tensors.

    Args:
        generator: of the loader, if it has one of its own.
    """
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "loader": None if generator is None else generator.get_state(),
    }


def restore_random_state(state: dict[str, Any], generator: torch.Generator | None = None) -> None:
    """Restore what :func:`random_state` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if generator is not None:
        generator.set_state(state["loader"])
