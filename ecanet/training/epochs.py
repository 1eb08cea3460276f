"""Epochs of any length, cut from the endless flow of a split's batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from ecanet.training.task import Batches


class Epochs:
    """Cuts passes over the training images into epochs.

    An epoch of 1.24 passes ends within a pass, and the next continues there, so the images are seen in the
    order of plain passes. Epochs differ by one step where their length is no whole number of steps.

    Args:
        batches: of one pass.
        length: passes in an epoch, at least 1.
    """

    def __init__(self, batches: Batches, length: float = 1.0) -> None:
        self.batches, self.length = batches, length
        self.flow: Iterator[Any] = iter(())
        self.reached = -1
        """What stands open, and the step of the run that it yields next: readers ahead lose nothing."""

    def begin(self, epoch: int) -> int:
        """Return the number of steps before an epoch."""
        return round(epoch * self.length * self.batches.steps)

    def steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch."""
        return self.begin(epoch + 1) - self.begin(epoch)

    def iterate(self, epoch: int, step: int = 0) -> Iterator[Any]:
        """Yield the batches of an epoch, from its batch ``step`` on."""
        start, end = self.begin(epoch) + step, self.begin(epoch + 1)
        if self.reached != start:
            self.flow, self.reached = self._flow(start), start
        for batch in itertools.islice(self.flow, end - start):
            self.reached += 1
            yield batch

    def _flow(self, start: int) -> Iterator[Any]:
        first, step = divmod(start, self.batches.steps)
        for number in itertools.count(first):
            self.batches.seek(number, step)
            yield from self.batches
            step = 0
