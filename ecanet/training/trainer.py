"""Fault-tolerant training loop, single- or multi-device, for any task.

Fabric does devices, precision and processes. The loop is ours because a run must resume in the middle
of an epoch bit by bit: whatever a step depends on is either in the checkpoint or a function of the seed,
the epoch and the step.

The host does not wait for the device in a step. Sums stay there until they are logged, and whether a step
was finite is read while the next one runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ecanet.activity import Activity, activity
from ecanet.data.stream import derived_seed
from ecanet.errors import Diverged, UserError
from ecanet.files import write_rows
from ecanet.metrics import best_row, format_metric, metric_named
from ecanet.record import Row
from ecanet.signals import deferred_signals, pending, raise_pending
from ecanet.training.checkpoint import load_checkpoint, save_checkpoint
from ecanet.training.device import LateRead, host_copy
from ecanet.training.epochs import Epochs
from ecanet.training.guard import FiniteGuard
from ecanet.training.launch import reduced
from ecanet.training.task import Batch, Hooks, Task, nothing

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger(__name__)

# Of checkpoints; raise it when what they hold changes.
FORMAT = 3
# Steps between the states that a diverging run returns to, beside those at the ends of epochs. They are kept
# in memory: checkpoints are saved by the clock, which must not decide what comes out.
MARK_EVERY = 1000
# Bad steps in a row before the run returns to a good state.
MAX_BAD_STEPS = 3
# Steps between the lines that loggers get.
LOG_EVERY = 50


@dataclass
class TrainState:
    """Where a run stands and what it has measured."""

    epoch: int = 0
    step: int = 0
    """Steps of the epoch that are done."""
    lr_scale: float = 1.0
    """Halved each time the run had to return to a good state."""
    rollbacks: int = 0
    bad_in_a_row: int = 0
    skipped: int = 0
    """Steps of the epoch that were not finite."""
    seconds: float = 0.0
    """Time spent in the epoch's steps, interruptions left out."""
    sums: dict[str, float] = field(default_factory=dict)
    """What the epoch's steps have measured, over all processes."""
    corrupt: list[str] = field(default_factory=list)
    """Files that could not be read, each once."""
    rows: list[Row] = field(default_factory=list)
    """What each epoch that ended has measured; the rows of ``metrics.csv``."""


class Trainer:
    """A task's model with its optimizer, where they stand, and the loop that trains it.

    Args:
        fabric: launched.
        task: its model may be on any device; it is moved to Fabric's.
        folder: of the run; checkpoints go to ``checkpoints/`` in it.
        hooks: what is called on the way.
        check_place: called before anything is written; raises if the folder is no longer there.
        keep: called in the first process with the rows so far, after each epoch; returns the names of the
            files that get its weights.
    """

    def __init__(
        self,
        fabric: Fabric,
        task: Task,
        folder: Path,
        hooks: Hooks,
        *,
        check_place: Callable[[], None] = nothing,
        keep: Callable[[list[Row]], list[str]] = lambda rows: [],
    ) -> None:
        self.fabric, self.task, self.settings = fabric, task, task.settings
        self.folder, self.hooks, self.check_place, self.keep = folder, hooks, check_place, keep
        self.model = task.model
        self.optimizer = task.optimizer()
        self.epochs = Epochs(task.batches, self.settings.epoch_length)
        self.wrapped, self.stepper = fabric.setup(self.model, self.optimizer)
        decay = self.settings.ema_decay
        self.ema = None
        if decay:
            from timm.utils import ModelEmaV3

            self.ema = ModelEmaV3(self.model, decay=decay).to(fabric.device)
        self.guard = FiniteGuard(self.model, self.optimizer, self.ema and self.ema.module)
        self.state = TrainState()
        # Sums of the epoch's steps, on the device; MPS has no float64.
        self.sums: dict[str, Tensor] = {}
        self.dtype = torch.float32 if fabric.device.type == "mps" else torch.float64
        self.unread: LateRead | None = None
        self.loss = _ShownLoss()
        # A copy of the state to return to.
        self.good: dict[str, Any] = {}
        # Weights that wait for the next checkpoint, and the row of their epoch.
        self.waiting: dict[str, tuple[dict[str, Tensor], Row]] = {}
        # When a checkpoint was saved: any, and one at the end of an epoch.
        self.saved = self.saved_epoch = time.monotonic()

    @property
    def evaluated(self) -> nn.Module:
        """The model to judge and keep: the moving average of the weights if there is one."""
        return self.model if self.ema is None else self.ema.module

    # ---- checkpoints

    def save(self) -> Path | None:
        """Save a checkpoint, and the weights that wait for it; return its path in the first process.

        To be called in all of them.
        """
        state = self._state() | {"identity": self.task.identity, "format": FORMAT}
        path = None
        if self.fabric.is_global_zero:
            # First: what a checkpoint tells of is on the disk.
            for name, (tensors, row) in self.waiting.items():
                self.check_place()
                self.task.save(self.folder / f"{name}.safetensors", tensors, row)
            folder, now = self.folder / "checkpoints", self.state
            place = now.epoch, now.rollbacks, now.step
            path = save_checkpoint(folder, place, state, self.check_place)
        self.waiting = {}
        self.fabric.barrier()
        self.saved = time.monotonic()
        return path

    def load(self) -> bool:
        """Load the last good checkpoint; return whether there was one."""
        found = load_checkpoint(self.folder / "checkpoints", repair=self.fabric.is_global_zero)
        if found is None:
            return False
        _, state = found
        if state.get("format") != FORMAT:
            raise UserError(
                f"{self.folder} holds a run of another version of ecanet: use that version, or choose "
                "another --out"
            )
        if state["identity"] != self.task.identity:
            raise UserError(
                f"{self.folder} holds checkpoints of another model or of other classes: choose "
                "another --out"
            )
        self._restore(state)
        return True

    def _state(self) -> dict[str, Any]:
        """Return all that the run's next steps depend on. To be called in all processes."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "state": asdict(self.state) | {"sums": self._total(), "corrupt": self._all_corrupt()},
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Continue from a state, which is used up."""
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        self._load_optimizer(state["optimizer"])
        self.guard.reset()
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        self.state = TrainState(**state["state"])
        # They are those of all processes: one of them continues with them.
        sums = self.state.sums if self.fabric.is_global_zero else {}
        self.sums = {name: self._scalar(value) for name, value in sums.items()}
        self.unread = None

    def _load_optimizer(self, saved: dict[str, Any]) -> None:
        """Load the optimizer's state; its options stay those of the settings, which may have changed."""
        options = [dict(group) for group in self.optimizer.param_groups]
        # Some count their steps in the group, from the first on.
        if [(len(g["params"]), g.keys() - {"step"}) for g in options] != [
            (len(g["params"]), g.keys() - {"step"}) for g in saved["param_groups"]
        ]:
            raise UserError(
                f"{self.folder} holds the state of another optimizer, and the optimizer cannot "
                f"change when a run resumes: choose another --out"
            )
        self.optimizer.load_state_dict(saved)
        for group, own in zip(self.optimizer.param_groups, options, strict=True):
            group.update({k: v for k, v in own.items() if k not in ("params", "lr", "step")})

    # ---- the loop

    def fit(
        self,
        write: Callable[[Row, int], None],
        saved: Callable[[Path], None] = nothing,
    ) -> list[Row]:
        """Train to the last epoch, from where the run stands.

        Args:
            write: gets metrics and the number of steps done; for loggers.
            saved: gets each checkpoint at the end of an epoch, in the first process.

        Returns:
            The row of each epoch, as in ``metrics.csv``.

        Raises:
            Preempted: SIGTERM came; a checkpoint was saved first.
            KeyboardInterrupt: Ctrl-C came; likewise.
            Diverged: the run diverged more often than the settings allow.
            OSError: the disk is full; the last checkpoint is intact.
        """
        if self.state == TrainState():
            self.save()
        self.good = host_copy(self._state())
        with deferred_signals(), self._activity() as run:
            while self.state.epoch < self.settings.epochs:  # type: ignore[operator]
                if not self._train_epoch(write, run):
                    self._roll_back()
                    continue
                self._share_buffers()
                with activity("validation"):
                    measured = self.task.evaluate(self.evaluated)
                self._after_step()
                row = self._end_epoch(measured)
                run.done, run.detail = self.state.epoch, self._standing()
                if self.fabric.is_global_zero:
                    write_rows(self.folder / "metrics.csv", self.state.rows)
                    self._set_aside(self.keep(self.state.rows), row)
                    self.hooks.on_epoch(row)
                write(row, self.epochs.begin(self.state.epoch))
                asked = torch.stack([self._scalar(pending()), self._scalar(self._epoch_is_due())])
                self.good = host_copy(self._state())
                signal, due = reduced(self.fabric, asked, "max").tolist()
                # Last: what stands behind it would be missing after a kill in between.
                if signal or due:
                    path = self.save()
                    self.saved_epoch = self.saved
                    if path is not None:
                        saved(path)
                log.info("%s", self.task.describe(row))
                raise_pending(int(signal))
        return self.state.rows

    def step(self, batch: Batch) -> Tensor:
        """Make one step; one whose loss or gradients are not finite leaves no trace.

        To be called in all processes.

        Returns:
            (3,), on the device, the same in all processes: 1 if the step was not finite, the number of the
            signal that has reached one of them, and 1 if the first finds a checkpoint due.
        """
        fabric, device = self.fabric, self.fabric.device
        self.guard.before_step()
        value, sums = self.task.loss(self.wrapped, batch)
        fabric.backward(value)
        scaler = getattr(fabric.strategy.precision, "scaler", None)
        if scaler is None:
            good = self.guard.finite(value)
        else:
            # Gradients that overflow in float16 are the scaler's: it skips the step and scales less.
            scale = scaler.scale(torch.ones((), device=device))
            good = torch.isfinite(value.detach()) & (scale >= 1)
        bad = (~good).to(self.dtype)
        status = torch.stack([bad, self._scalar(pending()), self._scalar(self._is_due())])
        status = reduced(fabric, status, "max")
        finite = status[0] == 0
        self.guard.update_if(finite, self._update)
        added = torch.stack([amount.to(self.dtype) for amount in sums.values()])
        for name, amount in zip(sums, torch.where(finite, added, 0).unbind(), strict=True):
            self.sums[name] = self.sums[name] + amount if name in self.sums else amount
        self.optimizer.zero_grad(set_to_none=True)
        return status

    def _update(self) -> None:
        if norm := self.settings.clip_grad:
            self.fabric.clip_gradients(
                self.wrapped, self.stepper, max_norm=norm, error_if_nonfinite=False
            )
        self.stepper.step()
        if self.ema:
            self.ema.update(self.model)

    def _activity(self) -> AbstractContextManager[Activity]:
        """Return what is entered while the run trains, with the part of its epochs that is done."""
        state, epochs = self.state, self.settings.epochs
        started = state.step / max(1, self.epochs.steps(state.epoch))
        return activity("training", epochs, "epochs", done=state.epoch + started, at_once=True)

    def _standing(self) -> str:
        """Return the metric of the last epoch and the best of all."""
        column, rows = self.task.best, self.state.rows
        if column not in rows[-1]:
            return ""
        best = best_row(rows, column)
        last, top = (format_metric(column, row[column]) for row in (rows[-1], best))
        text = f"{metric_named(column).title} {last}"
        return text if best is rows[-1] else f"{text}, best {top} in epoch {int(best['epoch']) + 1}"

    def _train_epoch(self, write: Callable[[Row, int], None], run: Activity) -> bool:
        """Train the rest of the epoch; return whether it reached its end, or diverged."""
        settings, state, task = self.settings, self.state, self.task
        steps, rank = self.epochs.steps(state.epoch), self.fabric.global_rank
        self.wrapped.train()
        began, before = time.perf_counter(), state.seconds
        name = f"epoch {state.epoch + 1}"
        with activity(name, steps, "steps", done=state.step, at_once=True) as epoch:
            if getattr(settings, "compile", None) == "on" and not self.loss.known:
                epoch.detail = "compiling the network"
            for batch in self.epochs.iterate(state.epoch, state.step):
                for file in set(batch.corrupt).difference(state.corrupt):
                    state.corrupt.append(file)
                    log.warning(
                        "using another image in place of one that cannot be decoded: %s", file
                    )
                rate = task.lr(state.epoch + state.step / steps) * state.lr_scale
                for group in self.optimizer.param_groups:
                    group["lr"] = rate * group["lr_scale"]
                # Dropout, mixing and the like: the same whenever and wherever this step is made.
                torch.manual_seed(
                    derived_seed("step", settings.seed, state.epoch, state.step, rank)
                )
                status = self.step(batch)
                signal, due = self._read_status()
                self.unread = LateRead(status)
                state.step += 1
                epoch.done, run.done = state.step, state.epoch + state.step / steps
                epoch.detail = self.loss.shown(self.sums) or epoch.detail
                state.seconds = before + time.perf_counter() - began
                self._after_step()
                if self.fabric.world_size == 1:
                    signal, due = pending(), self._is_due()
                logs = state.step % LOG_EVERY == 0
                marks = state.step % MARK_EVERY == 0
                saves = due and state.step < steps
                # A good step that is read at once would hide the bad ones before it.
                diverged = state.bad_in_a_row >= MAX_BAD_STEPS
                if not diverged and (logs or marks or saves or signal or state.step == steps):
                    signal = max(signal, self._read_status()[0])
                if diverged or state.bad_in_a_row >= MAX_BAD_STEPS:
                    return False
                if logs:
                    now = {"lr": rate, **_means(self._total(everywhere=False))}
                    write(now, self.epochs.begin(state.epoch) + state.step)
                # A state amid bad steps would hold the weights that led to them.
                if marks and not state.bad_in_a_row:
                    self.good = host_copy(self._state())
                if signal or (saves and not state.bad_in_a_row):
                    self.save()
                    raise_pending(signal)
        return True

    def _read_status(self) -> tuple[int, bool]:
        """Account for the step whose status has not been read.

        Returns:
            The signal that had come then, and whether a checkpoint was due.
        """
        if self.unread is None:
            return 0, False
        bad, signal, due = self.unread.read()
        self.unread = None
        state = self.state
        if bad:
            state.bad_in_a_row += 1
            state.skipped += 1
            if self.fabric.is_global_zero:
                log.warning(
                    "epoch %d, step %d: loss or gradients are not finite, step skipped",
                    state.epoch + 1,
                    state.step,
                )
        else:
            state.bad_in_a_row = 0
        return int(signal), bool(due)

    def _is_due(self) -> bool:
        """Whether a checkpoint is due, by the clock of the first process."""
        waited = time.monotonic() - self.saved
        return self.fabric.is_global_zero and waited >= self.settings.save_every

    def _epoch_is_due(self) -> bool:
        """Whether one is due at the end of an epoch, which is that of :meth:`_is_due` in between."""
        ended = self.state.epoch == self.settings.epochs
        waited = time.monotonic() - self.saved_epoch
        # The last and the best weights wait in memory; more would fill it.
        full = len(self.waiting) > 2
        return self.fabric.is_global_zero and (ended or full or waited >= self.settings.save_every)

    def _set_aside(self, names: list[str], row: Row) -> None:
        """Let the weights that were judged wait for the next checkpoint, under these names."""
        if names:
            tensors = host_copy(self.evaluated.state_dict())
            self.waiting |= dict.fromkeys(names, (tensors, row))

    def _after_step(self) -> None:
        self.hooks.on_step()
        self.check_place()

    def _roll_back(self) -> None:
        """Return to the last good state, with half the learning rate."""
        scale, rollbacks = self.state.lr_scale / 2, self.state.rollbacks + 1
        if rollbacks > self.settings.rollbacks:
            raise Diverged(
                f"loss or gradients are not finite {MAX_BAD_STEPS} steps in a row, even after "
                f"{rollbacks - 1} rollbacks: lower --optimizer.lr and start again"
            )
        self._restore(host_copy(self.good))
        self.state.lr_scale, self.state.rollbacks, self.state.bad_in_a_row = scale, rollbacks, 0
        # Else a kill before the next checkpoint would forget that the rate was lowered, and so would the next
        # return.
        self.good = host_copy(self._state())
        self.save()
        log.warning(
            f"loss or gradients were not finite {MAX_BAD_STEPS} steps in a row: rolling back to epoch "
            f"{self.state.epoch + 1}, step {self.state.step}, with {scale:g} times the learning rate"
        )

    def _end_epoch(self, measured: Row) -> Row:
        """Add the epoch's row, and move on to the next epoch."""
        old, sums = self.state, self._total()
        row = {
            "epoch": old.epoch,
            # Without a single finite step there are no means.
            **_means(sums),
            **measured,
            "lr": self.optimizer.param_groups[0]["lr"] / self.optimizer.param_groups[0]["lr_scale"],
            "skipped_steps": old.skipped,
            "corrupt_files": len(self._all_corrupt()),
            "images_per_second": sums.get("images", 0.0) / max(old.seconds, 1e-9),
            "seconds": old.seconds,
        }
        self.sums = {}
        self.state = TrainState(
            epoch=old.epoch + 1,
            lr_scale=old.lr_scale,
            rollbacks=old.rollbacks,
            bad_in_a_row=old.bad_in_a_row,
            corrupt=old.corrupt,
            rows=[*old.rows, row],
        )
        return row

    # ---- over all processes

    def _scalar(self, value: float = 0.0) -> Tensor:
        return torch.full((), value, dtype=self.dtype, device=self.fabric.device)

    def _total(self, everywhere: bool = True) -> dict[str, float]:
        """Return the epoch's sums, over all processes or of this one."""
        names = list(self.sums)
        if everywhere and self.fabric.world_size > 1:
            names = self.fabric.broadcast(names)
        if not names:
            return {}
        whole = torch.stack([self.sums.get(name, self._scalar()) for name in names])
        if everywhere:
            whole = reduced(self.fabric, whole, "sum")
        return dict(zip(names, whole.tolist(), strict=True))

    def _share_buffers(self) -> None:
        """Give all processes the first one's buffers: batch norm's statistics have drifted apart."""
        if self.fabric.world_size > 1:
            for buffer in self.evaluated.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _all_corrupt(self) -> list[str]:
        """Return the files that any process could not read."""
        if self.fabric.world_size == 1:
            return self.state.corrupt
        lists: list[list[str]] = [[] for _ in range(self.fabric.world_size)]
        torch.distributed.all_gather_object(lists, self.state.corrupt)
        return sorted({file for files in lists for file in files})


class _ShownLoss:
    """The mean loss of the epoch so far, for whoever watches: read at most once a second, a second late."""

    def __init__(self) -> None:
        self.read_at, self.known = time.monotonic(), False
        self.unread: LateRead | None = None

    def shown(self, sums: dict[str, Tensor]) -> str:
        """Return it as text once it has changed, else ""."""
        now, text = time.monotonic(), ""
        if now - self.read_at < 1 or not {"loss", "images"} <= sums.keys():
            return text
        if self.unread is not None:
            loss, images = self.unread.read()
            text, self.known = f"loss {loss / max(images, 1):.4f}", True
        self.read_at, self.unread = now, LateRead(torch.stack([sums["loss"], sums["images"]]))
        return text


def _means(sums: dict[str, float]) -> Row:
    return {
        f"train_{name}": value / sums["images"]
        for name, value in sums.items()
        if name != "images" and sums["images"]
    }
