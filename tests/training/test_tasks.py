"""What every task keeps to: classifiers in memory and streamed, and detectors."""

from __future__ import annotations

import contextlib
import csv
import functools
import itertools
import json
import math
import os
import random
import shutil
import signal
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.damage import DAMAGE
from helpers.runs import CLEAN, TASKS, outcome, settings_of, untimed
from helpers.waiting import wait_until
from torch import nn
from torch.utils._pytree import tree_leaves

from ecanet.config import DetectionSettings
from ecanet.detection.weights import load_into_detector
from ecanet.errors import Preempted, UserError
from ecanet.models.weights.load import load_weights
from ecanet.record import Record, Row, read_record
from ecanet.training.launch import begin
from ecanet.training.processes import spawn_ranks
from ecanet.training.task import Hooks
from ecanet.training.train import task_of, train, train_in_study
from ecanet.training.trainer import Trainer


@dataclass
class Run:
    """A run that nothing disturbed."""

    task: str
    settings: Any
    out: Path
    record: Record

    def copied(self, out: Path) -> Path:
        return Path(shutil.copytree(self.out, out))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Train a run of each task once."""

    @functools.cache
    def run(task: str) -> Run:
        folder = tmp_path_factory.mktemp(task)
        settings = settings_of(task, folder)
        return Run(task, settings, folder / "run", train(settings, folder / "run"))

    return run


_OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in TASKS if name != "memory"]


@pytest.fixture(params=["memory", *_OTHERS])
def whole(request: pytest.FixtureRequest, runs: Callable[[str], Run]) -> Run:
    return runs(request.param)


class Killed(BaseException):
    """Stands for kill -9: nothing between the run and the test catches it."""


def at_step(number: int, act: Callable[[], Any]) -> Hooks:
    """Return hooks that act at the ``number``-th call of ``on_step``."""
    calls = iter(range(1, 10**6))
    return Hooks(on_step=lambda: act() if next(calls) == number else None)


def kill() -> None:
    raise Killed


def saved(out: Path) -> list[str]:
    """Return where in a run its checkpoints were made."""
    return sorted(path.name.rpartition("-")[0] for path in out.glob("checkpoints/*"))


def steps_of(run: Run) -> int:
    """Return the steps of an epoch."""
    return 4 if run.task == "detector" else 5


# ---- interruptions


@pytest.mark.parametrize("save_every", [0.0, 1000.0])
def test_a_killed_run_resumes_to_the_same_bits(
    whole: Run, tmp_path: Path, save_every: float
) -> None:
    """Killed in the first epoch before any checkpoint but the first, in its middle, and in the second."""
    settings = replace(whole.settings, save_every=save_every)
    for step in (1, 3, 4 if save_every == 0 else 8):
        with pytest.raises(Killed):
            train(settings, tmp_path / "cut", hooks=at_step(step, kill))
    resumed = train(settings, tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(whole.out)
    assert untimed(resumed.final) == untimed(whole.record.final)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_is_deferred_until_the_step_is_saved(
    whole: Run, tmp_path: Path, number: int, error: type[BaseException]
) -> None:
    settings = replace(whole.settings, save_every=1000)
    with pytest.raises(error):
        train(settings, tmp_path / "cut", hooks=at_step(3, lambda: signal.raise_signal(number)))
    assert sorted(tmp_path.glob("cut/checkpoints/epoch0000-return0-step000003-*.ckpt"))
    train(settings, tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(whole.out)


def test_checkpoints_are_saved_by_the_clock_and_when_a_run_stops(
    whole: Run, tmp_path: Path
) -> None:
    """With the weights of the epochs before: as if each had been saved."""
    epochs, steps = whole.settings.epochs, steps_of(whole)
    often, seldom = tmp_path / "often", tmp_path / "seldom"
    for out, save_every in ((often, 0.0), (seldom, 1000.0)):
        stopped = at_step(steps + 3, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Preempted):
            train(replace(whole.settings, save_every=save_every), out, hooks=stopped)
    assert outcome(often) == outcome(seldom)
    assert outcome(often)[1] == outcome(whole.out)[1][:1]
    places = [f"epoch{e:04d}-return0-step{s:06d}" for e, s in ((0, 0), (1, 1), (1, 2), (epochs, 0))]
    assert saved(often) == places[1:3]
    assert saved(seldom) == [places[0], places[2]]
    train(replace(whole.settings, save_every=1000.0), seldom)
    assert saved(seldom) == places[2:]
    assert outcome(seldom) == outcome(whole.out)


def _until_preempted(settings: Any, out: Path, steps: Path) -> None:
    with steps.open("ab", buffering=0) as file:
        try:
            train(settings, out, hooks=Hooks(on_step=lambda: file.write(b".")))
        except Preempted:
            os._exit(75)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [0, 1])
def test_killed_and_preempted_at_random_moments_it_ends_with_the_same_bits(
    whole: Run, tmp_path: Path, workers: int
) -> None:
    folders = (tmp_path / f"cut{number}" for number in itertools.count())
    out, chance, stops = next(folders), random.Random(workers), 0
    settings = replace(whole.settings, workers=workers)
    # The first epoch also warms up, so only the last has the time of a step.
    step_seconds = whole.record.epochs[-1]["seconds"] / 4
    while stops < 10:
        steps = tmp_path / "steps"
        steps.write_bytes(b"")
        child = CLEAN.Process(target=_until_preempted, args=(settings, out, steps))
        child.start()
        # Moments are counted in steps: in seconds, a quick run would end before most of them.
        last = chance.randint(1, 4)
        wait_until(lambda: steps.stat().st_size >= last or not child.is_alive())  # noqa: B023 called at once
        child.join(chance.random() * step_seconds)
        if child.exitcode is None:
            assert child.pid is not None
            # It may have ended since: it is not our own child, so nothing keeps its id.
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, chance.choice([signal.SIGKILL, signal.SIGTERM]))
                stops += 1
        child.join(60)
        # After the last epoch there is nothing to save.
        assert child.exitcode in (0, 75, -signal.SIGKILL, -signal.SIGTERM)
        if child.exitcode == 0:
            # It came to its end: once more, from the beginning.
            assert outcome(out) == outcome(whole.out)
            out = next(folders)
    train(settings, out)
    assert outcome(out) == outcome(whole.out)


# ---- steps that are not finite


def state_of(trainer: Trainer) -> list[torch.Tensor]:
    """Return copies of all that a step changes: weights, buffers, the optimizer's state, the average."""
    parts = [trainer.model.state_dict(), trainer.optimizer.state_dict()]
    leaves = tree_leaves([*parts, trainer.ema and trainer.ema.module.state_dict()])
    return [leaf.clone() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def spoil(
    monkeypatch: pytest.MonkeyPatch, task: Any, bad: Collection[int], where: str = "forward"
) -> list[int]:
    """Make the steps of these numbers, counted from 0, not finite; check that they leave no trace.

    Args:
        where: ``forward``: NaN reaches a batch norm's statistics; ``backward``: the loss stays finite.

    Returns:
        A list that gets the number of each step that is made.
    """
    made: list[int] = []
    step, loss = Trainer.step, task.loss

    def spoiled_loss(self: Any, model: nn.Module, batch: Any) -> Any:
        if made[-1] not in bad:
            return loss(self, model, batch)
        if where == "backward":
            value, sums = loss(self, model, batch)
            value.register_hook(lambda gradient: gradient * math.nan)
            return value, sums
        norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        with norm.register_forward_pre_hook(lambda norm, inputs: (inputs[0] * math.nan,)):
            value, sums = loss(self, model, batch)
        assert norm.running_mean is not None
        assert norm.running_mean.isnan().all()
        return value, sums

    def checked_step(self: Trainer, batch: Any) -> torch.Tensor:
        made.append(len(made))
        before = state_of(self)
        status = step(self, batch)
        after = state_of(self)
        same = len(after) == len(before) and all(map(torch.equal, after, before))
        assert same == (made[-1] in bad) == bool(status[0])
        return status

    monkeypatch.setattr(task, "loss", spoiled_loss)
    monkeypatch.setattr(Trainer, "step", checked_step)
    return made


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_step_that_is_not_finite_leaves_no_trace(
    whole: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    """The first step of all, two in a row, and the last of an epoch."""
    settings = replace(whole.settings, epochs=2, ema_decay=0.9)
    steps = steps_of(whole)
    made = spoil(monkeypatch, task_of(settings), {0, 1, 3, 2 * steps - 1}, where)
    record = train(settings, tmp_path / "run")
    assert len(made) == 2 * steps
    assert [row["skipped_steps"] for row in record.epochs] == [3, 1]
    assert all(math.isfinite(row["train_loss"]) for row in record.epochs)
    skipped = [line for line in caplog.messages if "step skipped" in line]
    numbers = [(1, 1), (1, 2), (1, 4), (2, steps)]
    assert skipped == [
        f"epoch {e}, step {s}: loss or gradients are not finite, step skipped" for e, s in numbers
    ]


@pytest.mark.parametrize("save_every", [0.0, 1000.0])
def test_three_bad_steps_in_a_row_return_to_a_good_state(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_every: float
) -> None:
    """With half the rate; amid them none is saved."""
    settings = replace(whole.settings, epochs=1, save_every=save_every)
    spoil(monkeypatch, task_of(settings), {0, 1, 2})
    record = train(settings, tmp_path / "run")
    (row,) = record.epochs
    monkeypatch.undo()
    normal = train(replace(settings, save_every=1000), tmp_path / "normal").epochs[0]
    assert row["lr"] == normal["lr"] / 2
    assert row["skipped_steps"] == 0, "as the checkpoint had them"


@pytest.mark.parametrize("killed", [False, True])
def test_what_becomes_of_a_run_that_diverges_is_no_matter_of_the_clock(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Checkpoints of the epoch in which it diverges are later than the state that it returns to."""
    steps, found = steps_of(whole), []
    for save_every in (0.0, 1000.0):
        settings, out = replace(whole.settings, save_every=save_every), tmp_path / f"{save_every}"
        with monkeypatch.context() as patched:
            spoil(patched, task_of(settings), {steps + 1, steps + 2, steps + 3})
            if killed:
                with pytest.raises(Killed):
                    train(settings, out, hooks=at_step(steps + 1 + 4 + 2, kill))
            record = train(settings, out)
        found.append(outcome(out))
        half = whole.record.epochs[1]["lr"] / 2
        assert [row["lr"] for row in record.epochs][1] == pytest.approx(half)
    assert found[0] == found[1]


def test_a_run_that_stays_bad_gives_up(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = spoil(monkeypatch, task_of(whole.settings), range(1000))
    with pytest.raises(UserError, match="not finite 3 steps in a row, even after 2 rollbacks"):
        train(replace(whole.settings, rollbacks=2), tmp_path / "run")
    rates = [
        line.split("with ")[1] for line in caplog.messages if "times the learning rate" in line
    ]
    assert rates == ["0.5 times the learning rate", "0.25 times the learning rate"]
    assert len(made) <= 12, "one more than three in each of three attempts"


# ---- what a run leaves behind


def test_the_record_is_that_of_the_run(whole: Run) -> None:
    record, out = whole.record, whole.out
    assert read_record(out / "record.json") == record
    with (out / "metrics.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert rows == record.epochs
    assert [row["epoch"] for row in rows] == list(range(whole.settings.epochs))
    assert all(rows[record.final["epoch"]][k] == v for k, v in record.final.items() if k in rows[0])
    assert record.final["train_seconds"] == sum(row["seconds"] for row in rows)
    assert record.settings == json.loads((out / "settings.json").read_text())
    assert (record.attention, record.seed, record.built_in) == ("eca", 0, {})
    given = {k: v for k, v in asdict(whole.settings).items() if isinstance(v, int | str | list)}
    assert record.settings == record.settings | given | {"lr_batch_size": None}
    assert record.environment["versions"]["torch"] == torch.__version__
    assert {path.name for path in out.iterdir() if path.name[0] != "."} == {
        "best.safetensors", "checkpoints", "last.safetensors", "metrics.csv", "record.json",
        "settings.json", *(["predictions.parquet"] if whole.task != "detector" else []),
    }  # fmt: skip


def test_hooks_are_called_and_what_they_raise_ends_the_run(whole: Run, tmp_path: Path) -> None:
    calls: list[Any] = []

    def on_epoch(row: Row) -> None:
        calls.append(row)
        if row["epoch"] == 1 and fails:
            raise Killed

    hooks, fails = Hooks(lambda: calls.append("step"), on_epoch), True
    with pytest.raises(Killed):
        train(whole.settings, tmp_path / "run", hooks=hooks)
    steps = steps_of(whole)
    first, second = (untimed(row) for row in whole.record.epochs[:2])
    seen = [call if call == "step" else untimed(call) for call in calls]
    assert seen == [*["step"] * (steps + 1), first, *["step"] * (steps + 1), second]
    assert not (tmp_path / "run/record.json").exists()
    # The epoch is not in a checkpoint yet.
    calls.clear()
    fails = False
    train(whole.settings, tmp_path / "run", hooks=hooks)
    assert untimed(next(call for call in calls if call != "step")) == second
    # A second command has nothing to train.
    calls.clear()
    train(whole.settings, tmp_path / "run", hooks=hooks)
    assert calls == []


def test_a_run_is_ended_by_the_record_of_its_last_epoch(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = whole.copied(tmp_path / "run")
    shutil.rmtree(out / "checkpoints")
    kept = train(whole.settings, out)
    assert kept == whole.record, "nothing is left to train"
    out = whole.copied(tmp_path / "longer")
    longer = replace(whole.settings, epochs=whole.settings.epochs + 1)

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(task_of(longer), "final", killed)
        with pytest.raises(Killed):
            train(longer, out, accept_changes=True)
    assert len(train(longer, out).epochs) == longer.epochs


def test_a_run_of_a_study_is_the_same_run(whole: Run, tmp_path: Path) -> None:
    kind = task_of(whole.settings)
    data = kind.read(whole.settings, alone=True)
    settings = kind.resolve(whole.settings, data, alone=True)
    record = train_in_study(settings, tmp_path / "run", data)
    assert [*map(untimed, record.epochs)] == [*map(untimed, whole.record.epochs)]
    assert untimed(record.final) == untimed(whole.record.final)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    predicted = {"best.safetensors", "predictions.parquet"} if whole.task != "detector" else set()
    assert left == {"last.safetensors", "metrics.csv", "record.json"} | predicted
    assert train_in_study(settings, tmp_path / "run", data) == record


# ---- the run's folder


def test_settings_of_another_run_are_refused_by_name(
    whole: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = whole.copied(tmp_path / "run")
    kept = outcome(out)
    optimizer = replace(whole.settings.optimizer, weight_decay=1e-3)
    other = replace(whole.settings, seed=7, optimizer=optimizer)
    named = r"seed: 0 there, 7 requested; optimizer.weight_decay: [.0-9]+ there, 0.001 requested"
    with pytest.raises(UserError, match=rf"{named}.*--accept-changes"):
        train(other, out)
    fixed = replace(whole.settings, attention="se")
    named = r"attention: eca there, se requested.*choose another --out$"
    with pytest.raises(UserError, match=named):
        train(fixed, out, accept_changes=True)
    caplog.clear()
    with caplog.at_level("INFO", "ecanet"):
        # How it runs and survives may change without a word.
        train(replace(whole.settings, save_every=7, rollbacks=1, workers=1), out)
        assert "changed settings" not in caplog.text
        longer = replace(other, epochs=whole.settings.epochs + 1)
        record = train(longer, out, accept_changes=True)
    assert "seed: 0 there, 7 requested" in caplog.text
    assert len(record.epochs) == longer.epochs
    assert outcome(out)[1][:-1] == kept[1]
    last = max((out / "checkpoints").iterdir())
    groups = torch.load(last, weights_only=True)["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 1e-3}
    with pytest.raises(UserError, match="holds a run that has ended"):
        train(replace(longer, seed=8), out, accept_changes=True)
    settings = (out / "settings.json").read_text()
    optimizer = replace(optimizer, name="adamw")
    with pytest.raises(UserError, match="holds the state of another optimizer"):
        train(replace(longer, optimizer=optimizer, epochs=9), out, accept_changes=True)
    assert (out / "settings.json").read_text() == settings


def test_other_classes_in_the_same_folder_are_refused(whole: Run, tmp_path: Path) -> None:
    out = whole.copied(tmp_path / "run")
    data = Path(whole.settings.data)
    moved = Path(shutil.move(data, tmp_path / "images"))
    try:
        shutil.copytree(moved, data)
        if whole.task == "detector":
            for file in data.glob("annotations/*.json"):
                file.write_text(file.read_text().replace('"ring"', '"donut"'))
        else:
            for folder in [*data.glob("*/class2")]:
                folder.rename(folder.with_name("class3"))
        with pytest.raises(UserError, match="of another model or of other classes"):
            train(whole.settings, out)
    finally:
        shutil.rmtree(data)
        shutil.move(moved, data)
    assert outcome(out) == outcome(whole.out)


def test_a_damaged_checkpoint_costs_the_steps_after_the_one_before(
    whole: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = whole.copied(tmp_path / "run")
    _, last = sorted((out / "checkpoints").iterdir())
    DAMAGE["a bit flipped"](last)
    calls: list[Row] = []
    with caplog.at_level("INFO", "ecanet"):
        train(whole.settings, out, hooks=Hooks(on_epoch=calls.append))
    assert f"{last} is damaged: renamed to {last.name}.damaged" in caplog.text
    assert [untimed(row) for row in calls] == [untimed(whole.record.epochs[-1])]
    assert outcome(out) == outcome(whole.out)


def test_a_damaged_record_is_made_again(whole: Run, tmp_path: Path) -> None:
    out = whole.copied(tmp_path / "run")
    DAMAGE["cut"](out / "record.json")
    calls: list[Row] = []
    record = train(whole.settings, out, hooks=Hooks(on_epoch=calls.append))
    assert calls == []
    assert (record.epochs, record.final) == (whole.record.epochs, whole.record.final)
    assert read_record(out / "record.json") == record
    assert (out / "record.json.damaged").exists()


@pytest.mark.parametrize("when", ["step", "epoch"])
def test_a_run_whose_folder_moves_resumes_there(whole: Run, tmp_path: Path, when: str) -> None:
    out, moved = tmp_path / "run", tmp_path / "moved"

    def move(*_: Any) -> None:
        if out.exists():
            out.rename(moved)

    hooks = at_step(3, move) if when == "step" else Hooks(on_epoch=move)
    with pytest.raises(UserError, match="run was moved, deleted or replaced"):
        train(whole.settings, out, hooks=hooks)
    assert not out.exists()
    train(whole.settings, moved)
    assert outcome(moved) == outcome(whole.out)


# ---- several devices


def _measure(settings: Any, weights: Path, on_epoch: Any, on_step: Any) -> Row:
    kind = task_of(settings)
    data = kind.read(settings, alone=True)
    fabric, settings = begin(kind.resolve(settings, data, alone=True), join=False)
    task = kind(settings, data, fabric)
    load = load_into_detector if isinstance(settings, DetectionSettings) else load_weights
    load(task.model, weights)
    return task.evaluate(fabric.to_device(task.model))


@pytest.mark.slow
def test_evaluation_on_two_devices_is_that_on_one(whole: Run, tmp_path: Path) -> None:
    """Of images that are no multiple of two."""
    row = whole.record.epochs[-1]
    weights = whole.out / "last.safetensors"
    task = functools.partial(_measure, replace(whole.settings, devices=2), weights)
    two = spawn_ranks(task, 2, tmp_path, threads=1, on_epoch=print, on_step=lambda: None)
    assert two
    for name, value in two.items():
        assert value == pytest.approx(row[name], rel=1e-6 if "loss" in name else 0), name
