"""The training loop of long runs, on one device or many, that nothing brings down.

Fabric does devices, precision and processes. The loop is ours because a run must go on from the middle
of an epoch with the very bits it would have had: whatever a step depends on is either in the
checkpoint or a function of the seed, the epoch and the step.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ecanet.data.stream import ShardedOrder, derived_seed
from ecanet.errors import UserError
from ecanet.files import write_atomic
from ecanet.signals import asked, noted, obey
from ecanet.training.checkpoint import load_checkpoint, save_checkpoint
from ecanet.training.guard import FiniteGuard
from ecanet.training.launch import first_says

# Bad steps in a row before the run goes back to its last checkpoint.
PATIENCE = 3
# Steps between the lines that loggers get.
LOG_EVERY = 50


class Batch(Protocol):
    """What a step is made of."""

    corrupt: list[str]
    """Files that could not be read."""


Loss = Callable[[nn.Module, Any], tuple[Tensor, dict[str, Tensor]]]
"""Gives a batch's mean loss, and sums over its images, with their number as ``images``."""


@dataclass
class LoopSettings:
    """What the loop needs to know of a run's settings."""

    epochs: int
    seed: int
    lr: Callable[[float], float]
    """The learning rate as a function of the epoch, in fractions."""
    clip_grad: float | None = None
    ema_decay: float | None = None
    save_every: int = 1000
    rollbacks: int = 3


@dataclass
class Progress:
    """Where a run stands and what it has measured."""

    epoch: int = 0
    step: int = 0
    """Steps of the epoch that are done."""
    lr_scale: float = 1.0
    """Halved each time the run had to go back."""
    rollbacks: int = 0
    bad_in_a_row: int = 0
    skipped: int = 0
    """Steps of the epoch that were not finite."""
    seconds: float = 0.0
    """Time spent in the epoch's steps, interruptions left out."""
    sums: dict[str, float] = field(default_factory=dict)
    """What the epoch's steps have measured so far."""
    corrupt: list[str] = field(default_factory=list)
    """Files that could not be read, each once."""
    rows: list[dict[str, float]] = field(default_factory=list)
    """What each epoch that ended has measured; the rows of ``metrics.csv``."""


class Training:
    """A model, its optimizer and where they stand: what a checkpoint holds.

    Args:
        fabric: launched.
        model: on any device; moved to Fabric's.
        optimizer: of the model's parameters.
        identity: plain values that tell whose checkpoints these are.
        folder: where the checkpoints go.
        check_place: called before one is saved; raises if the folder is no longer there.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: LoopSettings,
        identity: dict[str, Any],
        folder: Path,
        check_place: Callable[[], None] = lambda: None,
    ) -> None:
        self.fabric, self.model, self.optimizer = fabric, model, optimizer
        self.settings, self.identity, self.folder = settings, identity, folder
        self.check_place = check_place
        self.wrapped, self.stepper = fabric.setup(model, optimizer)
        decay = settings.ema_decay
        self.ema = ModelEmaV3(model, decay=decay).to(fabric.device) if decay else None
        self.guard = FiniteGuard(model)
        self.progress = Progress()

    @property
    def evaluated(self) -> nn.Module:
        """The model to judge and keep: the running mean of the weights if there is one."""
        return self.model if self.ema is None else self.ema.module

    def save(self) -> Path | None:
        """Save a checkpoint; return its path in the first process. To be called in all of them."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "progress": asdict(self.progress)
            | {"sums": self.total(self.progress.sums), "corrupt": self.all_corrupt()},
            "identity": self.identity,
        }
        path = None
        if self.fabric.is_global_zero:
            now = self.progress
            path = save_checkpoint(self.folder, now.epoch, now.step, state, self.check_place)
        self.fabric.barrier()
        return path

    def load(self, say: Callable[[str], None]) -> bool:
        """Go to the last good checkpoint; tell whether there was one."""
        found = load_checkpoint(self.folder, say if self.fabric.is_global_zero else None)
        if found is None:
            return False
        _, state = found
        if state["identity"] != self.identity:
            raise UserError(
                f"{self.folder} holds checkpoints of another model or of other classes: choose "
                "another --out"
            )
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        if not self.fabric.is_global_zero:
            # A checkpoint's sums are those of all processes: one of them goes on with them.
            self.progress.sums = {}
        return True

    def step(self, batch: Batch, loss: Loss) -> bool:
        """Make one step; tell whether it was finite. One that was not leaves no trace.

        To be called in all processes: they agree on the answer.
        """
        self.guard.before_step()
        value, sums = loss(self.wrapped, batch)
        self.fabric.backward(value)
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is None:
            good = self.guard.finite(value)
        else:
            # Gradients that overflow in float16 are the scaler's: it skips the step and scales less.
            good = torch.isfinite(value.detach()) & (scaler.get_scale() >= 1)
        finite = not bool(reduced(self.fabric, (~good).float(), "max"))
        if finite:
            if self.settings.clip_grad:
                self.fabric.clip_gradients(
                    self.wrapped,
                    self.stepper,
                    max_norm=self.settings.clip_grad,
                    error_if_nonfinite=False,
                )
            self.stepper.step()
            if self.ema:
                self.ema.update(self.model)
            for name, amount in sums.items():
                self.progress.sums[name] = self.progress.sums.get(name, 0.0) + float(amount)
        else:
            self.guard.undo_step()
        self.optimizer.zero_grad(set_to_none=True)
        return finite

    def total(self, sums: dict[str, float]) -> dict[str, float]:
        """Return sums over all processes."""
        if self.fabric.world_size == 1:
            return dict(sums)
        names = sorted(self.fabric.broadcast(list(sums)))
        mine = torch.tensor([sums.get(n, 0.0) for n in names], dtype=torch.float64)
        whole = reduced(self.fabric, mine.to(self.fabric.device), "sum")
        return dict(zip(names, whole.tolist(), strict=True))

    def all_corrupt(self) -> list[str]:
        """Return the files that any process could not read."""
        if self.fabric.world_size == 1:
            return self.progress.corrupt
        lists: list[list[str]] = [[] for _ in range(self.fabric.world_size)]
        torch.distributed.all_gather_object(lists, self.progress.corrupt)
        return sorted({file for files in lists for file in files})


def fit(
    training: Training,
    batches: DataLoader[Batch],
    order: ShardedOrder,
    *,
    loss: Loss,
    evaluate: Callable[[nn.Module], dict[str, float]],
    metrics_file: Path,
    log: Callable[[dict[str, float], int], None],
    on_epoch: Callable[[], None],
    on_checkpoint: Callable[[Path], None],
    on_step: Callable[[], None],
    progress: bool,
    say: Callable[[str], None],
) -> None:
    """Train to the last epoch, from where ``training`` stands.

    Args:
        training: fresh, or with a checkpoint loaded.
        batches: this process's share of the training batches, in ``order``.
        loss: what is minimised.
        evaluate: what to measure after each epoch; called in all processes.
        metrics_file: CSV with a row an epoch.
        log: gets metrics and the number of steps done.
        on_epoch: called in the first process after each epoch, before its checkpoint; may be called
            again for the same epoch after a kill in between.
        on_checkpoint: gets the checkpoint at each epoch's end, in the first process.
        on_step: called after each step and each evaluation, before anything is written; what it
            raises ends the training there.
        progress: show a bar for each epoch.
        say: gets lines of news.

    Raises:
        Preempted: SIGTERM came; a checkpoint was saved first.
        KeyboardInterrupt: Ctrl-C came; likewise.
        UserError: the run diverged more often than the settings allow.
        OSError: the disk is full; the last checkpoint is intact.
    """
    settings = training.settings
    say_once = first_says(training.fabric, say)
    bar = progress and training.fabric.is_global_zero
    if training.progress == Progress():
        # There is always a checkpoint to go back to.
        training.save()
    with noted():
        while training.progress.epoch < settings.epochs:
            if not _train_epoch(training, batches, order, loss, on_step, log, bar, say):
                _go_back(training, say_once)
                continue
            measured = evaluate(training.evaluated)
            on_step()
            _end_epoch(training, measured)
            now = training.progress
            if training.fabric.is_global_zero:
                write_rows(metrics_file, now.rows)
                on_epoch()
            log(now.rows[-1], now.epoch * order.steps)
            # Last: what stands behind it would be missing after a kill in between.
            path = training.save()
            if path is not None:
                on_checkpoint(path)
            obey(_asked_anywhere(training.fabric))


def _train_epoch(
    training: Training,
    batches: DataLoader[Batch],
    order: ShardedOrder,
    loss: Loss,
    on_step: Callable[[], None],
    log: Callable[[dict[str, float], int], None],
    bar: bool,
    say: Callable[[str], None],
) -> bool:
    """Go through the rest of the epoch; tell whether it came to its end, or diverged."""
    settings, progress, fabric = training.settings, training.progress, training.fabric
    training.wrapped.train()
    order.seek(progress.epoch, progress.step)
    began, before = time.perf_counter(), progress.seconds
    for batch in tqdm(
        batches, f"epoch {progress.epoch + 1}", order.steps, initial=progress.step,
        unit="step", leave=False, disable=not bar,
    ):  # fmt: skip
        for file in set(batch.corrupt).difference(progress.corrupt):
            progress.corrupt.append(file)
            say(f"cannot be decoded, another image stands in for it: {file}")
        rate = settings.lr(progress.epoch + progress.step / order.steps) * progress.lr_scale
        for group in training.optimizer.param_groups:
            group["lr"] = rate
        # Dropout, mixing and the like: the same whenever and wherever this step is made.
        torch.manual_seed(
            derived_seed("step", settings.seed, progress.epoch, progress.step, fabric.global_rank)
        )
        finite = training.step(batch, loss)
        progress.step += 1
        progress.seconds = before + time.perf_counter() - began
        on_step()
        if finite:
            progress.bad_in_a_row = 0
        else:
            progress.bad_in_a_row += 1
            progress.skipped += 1
            if fabric.is_global_zero:
                say(f"epoch {progress.epoch + 1}, step {progress.step}: not finite, step skipped")
            if progress.bad_in_a_row == PATIENCE:
                return False
        if progress.step % LOG_EVERY == 0:
            now = {"lr": rate, **_means(progress.sums)}
            log(now, progress.epoch * order.steps + progress.step)
        stop = _asked_anywhere(fabric)
        if stop or (progress.step % settings.save_every == 0 and progress.step < order.steps):
            training.save()
            obey(stop)
    return True


def _go_back(training: Training, say: Callable[[str], None]) -> None:
    """Return to the last good checkpoint, with half the learning rate."""
    scale, rollbacks = training.progress.lr_scale / 2, training.progress.rollbacks + 1
    if rollbacks > training.settings.rollbacks:
        raise UserError(
            f"loss or gradients are not finite {PATIENCE} steps in a row, even after "
            f"{rollbacks - 1} returns to a good checkpoint: lower --optimizer.lr and begin anew"
        )
    training.load(say)
    training.progress.lr_scale, training.progress.rollbacks = scale, rollbacks
    training.progress.bad_in_a_row = 0
    # Else a kill before the next checkpoint would forget that the rate was lowered.
    training.save()
    say(
        f"not finite {PATIENCE} steps in a row: back to epoch {training.progress.epoch + 1}, step "
        f"{training.progress.step}, with {scale:g} of the learning rate"
    )


def _end_epoch(training: Training, measured: dict[str, float]) -> None:
    """Add the epoch's row, and stand before the next."""
    old = training.progress
    sums = training.total(old.sums)
    # Without a single finite step there are no means.
    row = {
        "epoch": old.epoch,
        **_means(sums),
        **measured,
        "lr": training.optimizer.param_groups[0]["lr"],
        "skipped_steps": old.skipped,
        "corrupt_files": len(training.all_corrupt()),
        "images_per_second": sums.get("images", 0.0) / max(old.seconds, 1e-9),
        "seconds": old.seconds,
    }
    training.progress = Progress(
        epoch=old.epoch + 1,
        lr_scale=old.lr_scale,
        rollbacks=old.rollbacks,
        bad_in_a_row=old.bad_in_a_row,
        corrupt=old.corrupt,
        rows=[*old.rows, row],
    )


def _means(sums: dict[str, float]) -> dict[str, float]:
    return {
        f"train_{name}": value / sums["images"] for name, value in sums.items() if name != "images"
    }


def write_rows(path: Path, rows: list[dict[str, float]]) -> None:
    """Write a CSV with a line for each of ``rows``, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def reduced(fabric: Fabric, value: Tensor, how: str) -> Tensor:
    """Return the ``sum`` or ``max`` of a tensor over all processes, in each of them."""
    whole = fabric.all_reduce(value, reduce_op=how)
    assert isinstance(whole, Tensor)
    return whole


def _asked_anywhere(fabric: Fabric) -> int:
    """Return the signal that asks this process or another to stop, 0 for none; the same in all."""
    if fabric.world_size == 1:
        return asked()
    return int(reduced(fabric, torch.tensor(float(asked()), device=fabric.device), "max"))
