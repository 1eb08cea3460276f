"""Trains one run of a study with LibreYOLO's own trainer.

What the study adds: the last epoch's averaged weights are judged, by LibreYOLO's own validation; after each
epoch the state is written to ``checkpoints/state.pt``, all at once, with all random numbers; and a validation
that fails ends the run, rather than giving it no result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from libreyolo.models.base.model import BaseModel
from libreyolo.training.callbacks import TrainCallbackList

from ecanet.errors import Diverged, UserError
from ecanet.integrations.containment import OUTPUT
from ecanet.integrations.libreyolo.files import save_model
from ecanet.integrations.study_run import METRICS, StudyRun, random_state, restore_random_state
from ecanet.record import Row


def train_run(run: StudyRun, arguments: dict[str, Any]) -> None:
    """Train a run to its end, from where it is; leave ``weights/last.pt``.

    Args:
        run: of which ``rows`` and ``judged`` are filled in.
        arguments: of LibreYOLO.
    """
    state = run.load()
    if state is not None and run.judged:
        return
    trainer = make_trainer(run, arguments, state)
    BaseModel._seed_scratch_initialization(run.settings.seed)
    trainer.train()


def make_trainer(run: StudyRun, arguments: dict[str, Any], state: Any = None) -> Any:
    """Return the trainer of a run.

    Args:
        run: to train.
        arguments: of LibreYOLO.
        state: as :meth:`StudyRun.load` returned it, to resume from.
    """
    wrapper = run.origin.build(run.settings, run.data)
    own = {"run": run, "state": state}
    trainer = type("StudyTrainer", (_StudyTrainer, run.origin.trainer), own)
    return trainer(
        model=wrapper.model,
        wrapper_model=wrapper,
        size=run.origin.size,
        num_classes=len(run.data.names),
        **arguments,
    )


class _StudyTrainer:
    """A trainer of LibreYOLO for a run of a study; mixed into the trainer of the family."""

    run: StudyRun
    state: dict[str, Any] | None
    """To resume from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.artifact_callbacks = TrainCallbackList()  # no tables and logs of LibreYOLO's own
        self.ended: float | None = None

    def setup(self) -> None:
        super().setup()  # type: ignore[misc]
        me, state = cast(Any, self), self.state
        torch.set_num_threads(self.run.settings.threads)  # LibreYOLO may have chosen another number
        if state is None:
            return
        me.model.load_state_dict(state["model"])
        if me.ema_model is not None:
            me.ema_model.ema.load_state_dict(state["ema"])
            me.ema_model.updates = state["updates"]
        me.optimizer.load_state_dict(state["optimizer"])  # with the rate of the next step
        if me.scaler is not None:
            me.scaler.load_state_dict(state["scaler"])
        me.start_epoch = state["epoch"] + 1
        restore_random_state(state["random"])
        self.state = None

    def _forward_train(self, *args: Any, **kwargs: Any) -> Any:
        self.run.hooks.on_step()
        return super()._forward_train(*args, **kwargs)  # type: ignore[misc]

    def _train_epoch(self, epoch: int) -> Any:
        self.started = time.monotonic()
        return super()._train_epoch(epoch)  # type: ignore[misc]

    def _run_validation(self, epoch: int, **kwargs: Any) -> dict[str, Any]:
        self.seconds = time.monotonic() - self.started
        with self._stoppable():
            metrics: Any = super()._run_validation(epoch, **kwargs)  # type: ignore[misc]
        if metrics is None:  # what went wrong has only been logged
            raise UserError(f"LibreYOLO's validation failed: see {self.run.folder / OUTPUT}")
        return cast("dict[str, Any]", metrics)

    def _save_checkpoint(
        self, epoch: int, loss: float, val_metrics: Any = None, is_best: Any = None
    ) -> None:
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} in epoch {epoch + 1}")
        me, run = cast(Any, self), self.run
        run.hooks.on_step()
        row: Row = {
            "epoch": epoch,
            "train_loss": loss,
            "lr": me.optimizer.param_groups[0]["lr"],
            "seconds": self.seconds,
            **_named(val_metrics["metrics"]),
        }
        run.rows = [other for other in run.rows if other["epoch"] < epoch] + [row]
        if epoch + 1 == run.settings.epochs:
            tests = run.test and run.data.test is not None
            run.judged = _named(self._tested() if tests else val_metrics["metrics"])
            save_model(
                run.folder / "weights" / "last.pt", me.wrapper_model, self._judged, run.settings
            )
        run.hooks.on_epoch(row)
        run.save(self._state(epoch))

    @property
    def _judged(self) -> Any:
        """The network that is judged: the averaged one, if there is one."""
        me = cast(Any, self)
        return me.model if me.ema_model is None else me.ema_model.ema

    def _tested(self) -> dict[str, float]:
        """Return the metrics of the test split."""
        me = cast(Any, self)
        validator, trained = me._epoch_validator, me.wrapper_model.model
        me.wrapper_model.model = self._judged
        config = validator.config.update(split="test")
        try:
            with self._stoppable():
                found: dict[str, float] = type(validator)(me.wrapper_model, config).run()
        finally:
            me.wrapper_model.model = trained
        return found

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Call the study's hook for each batch; what it raises ends the run, though LibreYOLO catches it."""
        raised: list[Exception] = []

        def step(*_: Any) -> None:
            try:
                self.run.hooks.on_step()
            except Exception as error:
                raised.append(error)
                raise

        handle = self._judged.register_forward_pre_hook(step)
        try:
            yield
        finally:
            handle.remove()
            if raised:
                raise raised[0]

    def _state(self, epoch: int) -> dict[str, Any]:
        me = cast(Any, self)
        ema, scaler = me.ema_model, me.scaler
        return {
            "epoch": epoch,
            "model": me.model.state_dict(),
            "ema": None if ema is None else ema.ema.state_dict(),
            "updates": None if ema is None else ema.updates,
            "optimizer": me.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": random_state(),
        }


def _named(metrics: dict[str, float]) -> Row:
    return {ours: float(metrics[f"metrics/{name}"]) for name, ours in METRICS.items()}
