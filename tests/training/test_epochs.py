"""Epochs that are longer than a pass: the same batches in the same order, wherever they are cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ecanet.training.epochs import Epochs


class Numbered:
    """Batches that are their pass and step."""

    steps = 5
    opened = 0

    def seek(self, epoch: int, step: int = 0) -> None:
        self.epoch, self.step = epoch, step

    def __iter__(self) -> Iterator[tuple[int, int]]:
        self.opened += 1
        yield from [(self.epoch, step) for step in range(self.step, self.steps)]


@pytest.mark.parametrize("length", [1.0, 1.24, 1.5, 2.0, 3.3])
def test_epochs_cut_one_flow_of_passes(length: float) -> None:
    batches = Numbered()
    epochs = Epochs(batches, length)
    found = [batch for epoch in range(7) for batch in epochs.iterate(epoch)]
    total = round(7 * length * 5)
    assert found == [divmod(i, 5) for i in range(total)]
    assert [epochs.begin(7), sum(map(epochs.steps, range(7)))] == [total, total]
    assert {epochs.steps(e) - int(5 * length) for e in range(7)} <= {0, 1}, "epochs are as long"
    assert batches.opened == -(-total // 5), "no pass was opened again where an epoch began"


@pytest.mark.parametrize("step", [0, 3, 7])
def test_an_epoch_resumes_in_its_middle(step: int) -> None:
    epochs = Epochs(Numbered(), 1.5)
    whole = list(epochs.iterate(2))
    assert list(Epochs(Numbered(), 1.5).iterate(2, step)) == whole[step:]
    list(epochs.iterate(3))
    assert list(epochs.iterate(2, step)) == whole[step:], "back to a checkpoint"
