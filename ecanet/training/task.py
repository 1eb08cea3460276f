"""What differs between kinds of run; the trainer knows no more of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ecanet.config import TrainingSettings
from ecanet.predictions import Predictions
from ecanet.record import Cost, Record, Row


class Batch(Protocol):
    """What a step is made of."""

    corrupt: list[str]
    """Files that could not be read."""


class Batches(Protocol):
    """This process's share of the training batches."""

    @property
    def steps(self) -> int:
        """Steps of one pass over the images."""

    def seek(self, epoch: int, step: int = 0) -> None:
        """Choose where the next iteration starts, by the number of the pass; it ends with the pass."""

    def __iter__(self) -> Iterator[Any]: ...


class Task(Protocol):
    """A network with the data it is trained on: how a step's loss and an epoch's metrics come about.

    Made by ``Task(settings, data, fabric)`` when a run starts, in each of its processes.
    """

    settings: TrainingSettings
    model: nn.Module
    batches: Batches
    best: str
    """Column whose best value makes the best weights: ``val_accuracy``, ``val_loss``, ``box_AP``."""
    select: Literal["last", "best"] | None
    """Epoch whose weights are kept as ``best.safetensors``."""
    tests: bool
    """Whether :meth:`final` reads a test split."""
    predicts: bool
    """Whether :meth:`final` takes the selected weights, and finds predictions with them."""
    identity: dict[str, Any]
    """Plain values that identify whose checkpoints these are."""
    built_in: dict[str, int]
    """Attention modules that the network has of its own, the number of each kind."""
    predictions: Predictions | None
    """What :meth:`final` has found for each image; None where it is asked for none, or there is none."""

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of the model's parameters."""

    def lr(self, epoch: float) -> float:
        """Return the learning rate at ``epoch``, in fractions."""

    def tuned(self) -> AbstractContextManager[None]:
        """Return what is entered while the model is trained, for its speed."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a batch's mean loss, and sums over its images with their number as ``images``.

        Nothing in it waits for the device.
        """

    def evaluate(self, model: nn.Module) -> Row:
        """Return what is measured after each epoch, the same in all processes."""

    def final(self, model: nn.Module, rows: list[Row], weights: Path | None) -> Row:
        """Return what the finished run is judged by, with the ``epoch`` it is of.

        Args:
            model: with the weights of the last epoch.
            rows: of all epochs.
            weights: file of the best epoch's, where ``select`` is best; None: the run keeps neither
                weights nor predictions.
        """

    def save(self, path: Path, tensors: dict[str, Tensor], row: Row) -> None:
        """Write weights to ``path``, given the row of their epoch."""

    def describe(self, row: Row) -> str:
        """Return the line that reports an epoch."""


class OutsideTask:
    """Runs that are trained by another library, or by code of the user's own. No instance is made."""

    @staticmethod
    def read(settings: Any, alone: bool = False) -> Any:
        """Return the data: it has a ``fingerprint``, and the names of ``skipped`` images."""
        raise NotImplementedError

    @staticmethod
    def resolve(settings: Any, data: Any, alone: bool = False) -> Any:
        """Return the settings with what is open in them settled."""
        raise NotImplementedError

    @staticmethod
    def check(settings: Any, data: Any) -> None:
        """Refuse a run that cannot be trained, as far as that is known before."""
        raise NotImplementedError

    @staticmethod
    def majority(data: Any) -> float | None:
        """Return the share of the most frequent class, if that means anything."""
        return None

    @staticmethod
    def built_in_of(settings: Any, data: Any) -> dict[str, int]:
        """Return the attention modules that the network has of its own: how many of each kind."""
        return {}

    @staticmethod
    def notices(settings: Any, data: Any, compared: bool = False) -> list[str]:
        """Return what is to be known of settings and data before the first step, a line each."""
        return []

    @staticmethod
    def costs(settings: Any, attention: list[str], data: Any) -> list[Cost]:
        """Measure what each module costs; an empty list where that is unknown."""
        return []

    @staticmethod
    def train(
        settings: Any, folder: Path, hooks: Hooks, *, test: bool = True, keep_weights: bool = True
    ) -> Record:
        """Train a run, or resume it from what is in its folder.

        Args:
            settings: resolved.
            folder: of the run.
            hooks: ``on_epoch`` is called with the row of each epoch, ``on_step`` as often as possible; what
                they raise ends the run.
            test: measure what the run is judged by.
            keep_weights: leave the weights, once the run has ended.

        Raises:
            UserError: what stops the other runs as well.
        """
        raise NotImplementedError


def nothing(*_: Any) -> None:
    """Do nothing: the default of a hook."""


@dataclass
class Hooks:
    """What a run calls while it trains."""

    on_step: Callable[[], None] = nothing
    """Called after each step and each evaluation, before anything is written; what it raises ends the run."""
    on_epoch: Callable[[Row], None] = nothing
    """Called in the first process with the row of each epoch, before its checkpoint; may be called again for
    an epoch after a kill in between."""
