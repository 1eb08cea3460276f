"""Trains one run of a study with Ultralytics' own trainer.

What the study adds: the network gets its attention modules; the last epoch's averaged weights are judged, by
Ultralytics' own validation; and after each epoch the state is written to ``checkpoints/state.pt``, all at
once, in full precision and as plain tensors. Ultralytics' own checkpoints are in half precision, and would be
unpickled with the code that they name.
"""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from typing import Any, cast

import torch
from torch import nn

from ecanet.errors import Diverged, UserError
from ecanet.integrations.study_run import METRICS, StudyRun, random_state, restore_random_state
from ecanet.integrations.ultralytics.labels import label_cache
from ecanet.integrations.ultralytics.networks import insert
from ecanet.record import Row


def train_run(run: StudyRun, arguments: dict[str, Any]) -> None:
    """Train a run to its end, from where it is; leave ``weights/last.pt``, for Ultralytics.

    Args:
        run: of which ``rows`` and ``judged`` are filled in.
        arguments: of Ultralytics.
    """
    state = run.load()
    if state is not None and run.judged:
        return
    make_trainer(run, arguments, state).train()


def make_trainer(run: StudyRun, arguments: dict[str, Any], state: Any = None) -> Any:
    """Return the trainer of a run, on the CPU threads of its settings.

    Args:
        run: to train.
        arguments: of Ultralytics.
        state: as :meth:`StudyRun.load` returned it, to resume from.
    """
    own = {"run": run, "state": state}
    trainer = type("StudyTrainer", (_StudyTrainer, run.origin.trainer), own)(overrides=arguments)
    assert run.settings.threads is not None
    torch.set_num_threads(run.settings.threads)  # Ultralytics has chosen another number
    return trainer


class _StudyTrainer:
    """A trainer of Ultralytics for a run of a study; mixed into the trainer of the task."""

    run: StudyRun
    state: dict[str, Any] | None
    """To resume from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # No loggers of Ultralytics' own; the validator calls these.
        on_step = [lambda validator: self.run.hooks.on_step()]
        self.callbacks = defaultdict(list, {"on_val_batch_end": on_step})
        self.started = time.monotonic()

    def run_callbacks(self, event: str) -> None:
        me = cast(Any, self)
        if event == "on_train_epoch_start":
            self.started = time.monotonic()
        elif event == "on_train_batch_end":
            self.run.hooks.on_step()
        elif event == "on_train_epoch_end":
            self.seconds = time.monotonic() - self.started
            self.loss_of_epoch = sum(float(value) for value in me.tloss.values())
            if not math.isfinite(self.loss_of_epoch):
                raise Diverged(f"the loss is {self.loss_of_epoch} in epoch {me.epoch + 1}")

    def get_dataset(self) -> dict[str, Any]:
        return self.run.data.as_dict()

    def build_dataset(self, *args: Any, **kwargs: Any) -> Any:
        with label_cache(self.run.data):
            return super().build_dataset(*args, **kwargs)  # type: ignore[misc]

    def setup_model(self) -> dict[str, Any] | None:
        me, origin = cast(Any, self), self.run.origin
        cfg = dict(origin.cfg)
        me.model = insert(
            me.get_model(cfg=cfg, weights=origin.weights, verbose=False), self.run.settings
        )
        me.resume = self.state is not None
        if self.state is None:
            return None
        me.model.load_state_dict(self.state["model"])
        ema = copy.deepcopy(me.model)
        ema.load_state_dict(self.state["ema"])
        return {**self.state, "ema": ema}

    def resume_training(self, ckpt: Any) -> None:
        super().resume_training(ckpt)  # type: ignore[misc]
        if ckpt is not None:
            restore_random_state(ckpt["random"], cast(Any, self).train_loader.generator)

    def _build_train_pipeline(self) -> None:
        if getattr(self, "train_loader", None) is not None:
            raise UserError(
                f"the GPU has not enough memory for --batch-size {self.run.settings.batch_size}: "
                f"give a smaller one. "
                "Ultralytics would halve it for this run only"
            )
        super()._build_train_pipeline()  # type: ignore[misc]

    def validate(self) -> Any:
        metrics, fitness = super().validate()  # type: ignore[misc]
        if cast(Any, self).epoch + 1 == self.run.settings.epochs:
            tests = self.run.test and self.run.data.test is not None
            self.run.judged = self._named(self._tested() if tests else metrics)
        return metrics, fitness

    def save_model(self) -> bool:
        me, run = cast(Any, self), self.run
        row: Row = {
            "epoch": me.epoch,
            "train_loss": self.loss_of_epoch,
            "val_loss": sum(value for name, value in me.metrics.items() if name.startswith("val/")),
            "lr": next(iter(me.lr.values())),
            "seconds": self.seconds,
            **self._named(me.metrics),
        }
        run.hooks.on_step()
        run.rows = [other for other in run.rows if other["epoch"] < me.epoch] + [row]
        run.hooks.on_epoch(row)
        if run.judged:
            me.best = me.last  # of one epoch there is one file
            super().save_model()  # type: ignore[misc]
        run.save(self._state())
        return True

    def final_eval(self) -> None:
        """Do nothing: the last epoch has been judged."""

    def _tested(self) -> dict[str, float]:
        """Return the metrics of the test split."""
        me = cast(Any, self)
        me.test_loader = me.get_dataloader(
            me.data["test"], batch_size=2 * me.batch_size, rank=-1, mode="val"
        )
        validator = me.get_validator()
        found: dict[str, float] = validator(me)
        return found

    def _named(self, metrics: dict[str, float]) -> Row:
        judged = self.run.origin.judged
        row = {ours: metrics[f"metrics/{name}({judged})"] for name, ours in METRICS.items()}
        if judged != "B":
            row["box_map50_95"] = metrics["metrics/mAP50-95(B)"]
        return {name: float(value) for name, value in row.items()}

    def _state(self) -> dict[str, Any]:
        me = cast(Any, self)
        network: nn.Module = me.model
        return {
            "epoch": me.epoch,
            "model": network.state_dict(),
            "ema": me.ema.ema.state_dict(),
            "updates": me.ema.updates,
            "optimizer": me.optimizer.state_dict(),
            "scaler": me.scaler.state_dict(),
            "best_fitness": float(me.best_fitness),
            "random": random_state(me.train_loader.generator),
        }
