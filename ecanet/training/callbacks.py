"""What happens at the end of an epoch: the record grows, the run is saved."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint

from ecanet.files import write_atomic
from ecanet.record import EpochMetrics
from ecanet.training.checkpoint import save_checkpoint
from ecanet.training.tracking import sweep_metrics


class EpochRecorder(Callback):
    """Collects an :class:`EpochMetrics` an epoch and keeps ``metrics.csv`` in step with them.

    With several devices each process collects them, and the first writes and tells.

    Lightning's CSVLogger empties its file when a run resumes; this one travels in the checkpoint.
    """

    def __init__(
        self, folder: Path, on_epoch: Callable[[EpochMetrics], None] | None = None
    ) -> None:
        self.path = folder / "metrics.csv"
        self.on_epoch = on_epoch
        self.epochs: list[EpochMetrics] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._seconds = time.perf_counter() - self._started

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics = EpochMetrics(
            epoch=trainer.current_epoch,
            train_loss=measured["train_loss"],
            train_accuracy=measured["train_accuracy"],
            val_loss=measured["val_loss"],
            val_accuracy=measured["val_accuracy"],
            lr=trainer.optimizers[0].param_groups[0]["lr"],
            seconds=self._seconds,
        )
        self.epochs.append(metrics)
        if not trainer.is_global_zero:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(EpochMetrics)])
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in self.epochs)
        write_atomic(self.path, text.getvalue())
        if self.on_epoch:
            self.on_epoch(metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": [asdict(epoch) for epoch in self.epochs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = [EpochMetrics(**epoch) for epoch in state_dict["epochs"]]


class SweepMetrics(Callback):
    """Tells the loggers the validation metrics by the names that a W&B sweep may select on."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        measured = trainer.callback_metrics
        names = sweep_metrics(float(measured["val_loss"]), float(measured["val_accuracy"]))
        for logger in trainer.loggers:
            logger.log_metrics(names, trainer.global_step)


class EpochCheckpoint(Checkpoint):
    """Saves a checkpoint after each epoch, which also holds the best weights so far if they are wanted.

    Must stand behind :class:`EpochRecorder` in the list of callbacks: it saves what that collected.

    Args:
        folder: of the run; see :mod:`ecanet.training.checkpoint`.
        keep_best: keep the weights of the epoch with the highest validation accuracy.
        before_write: called before a checkpoint is written; what it raises ends the run there.
    """

    def __init__(self, folder: Path, keep_best: bool, before_write: Callable[[], None]) -> None:
        self.folder = folder
        self.before_write = before_write
        self.keep_best = keep_best
        self.best: dict[str, Any] = {"accuracy": -1.0}
        """Validation accuracy, ``epoch`` and ``state_dict`` of the best epoch."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        accuracy = float(trainer.callback_metrics["val_accuracy"])
        if self.keep_best and accuracy > self.best["accuracy"]:
            self.best = {
                "accuracy": accuracy,
                "epoch": trainer.current_epoch,
                "state_dict": {
                    name: value.detach().to("cpu", copy=True)
                    for name, value in pl_module.state_dict().items()
                },
            }
        if trainer.is_global_zero:
            state = trainer._checkpoint_connector.dump_checkpoint()
            save_checkpoint(self.folder, trainer.current_epoch + 1, 0, state, self.before_write)
        trainer.strategy.barrier()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
