"""A training run in a folder: claimed by one program, gone on with, logged and recorded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ecanet.data.stream import ShardedOrder
from ecanet.errors import UserError
from ecanet.files import read_json, write_json
from ecanet.record import with_nan, without_nan
from ecanet.training.device import cpu_cores, environment
from ecanet.training.launch import first_says, losses_named
from ecanet.training.run_folder import claim_folder
from ecanet.training.tracking import open_loggers, sweep_metrics, swept_by_wandb
from ecanet.training.trainer import LoopSettings, Loss, Training, fit

# What may differ when a run goes on: it changes where and how fast the run goes, not what comes out.
_FREE = {"workers", "device", "devices", "save_every", "rollbacks", "loggers", "project", "corrupt"}

Row = dict[str, float]


def train_in_folder(
    fabric: Fabric,
    out: Path,
    root: Path,
    settings: Any,
    *,
    fixed: set[str],
    model: nn.Module,
    optimizer: Callable[[float], torch.optim.Optimizer],
    lr: float,
    lr_factor: Callable[[float], float],
    identity: dict[str, Any],
    order: ShardedOrder,
    batches: DataLoader[Any],
    loss: Loss,
    evaluate: Callable[[nn.Module], Row],
    best: str,
    save: Callable[[Path, dict[str, Tensor], Row], None],
    line: Callable[[Row, int], str],
    accept_changes: bool,
    progress: bool,
    say: Callable[[str], None],
    keep_epochs: bool = False,
    on_epoch: Callable[[Row], None] = lambda row: None,
    on_step: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train from the settings to the record, or from where the run in ``out`` stopped.

    ``out`` gets ``settings.json``, ``metrics.csv`` with a row an epoch, ``checkpoints/``, the weights
    ``last.safetensors`` and ``best.safetensors``, and ``record.json`` at the end.

    Args:
        fabric: launched.
        out: the run's folder; made if missing.
        root: of the data.
        settings: a dataclass; its ``epochs``, ``seed``, ``batch_size``, ``lr_batch_size``,
            ``clip_grad``, ``ema_decay``, ``threads``, ``devices``, ``save_every``, ``rollbacks``,
            ``loggers``, ``project`` and ``model`` are used here.
        fixed: settings that may not change even with ``accept_changes``: the checkpoint's weights
            would not fit.
        optimizer: makes the optimizer of the model's parameters, given the learning rate.
        lr: peak learning rate for a batch of ``settings.lr_batch_size``: it is scaled in proportion.
        lr_factor: its share as a function of the epoch, in fractions.
        identity: plain values that tell whose checkpoints these are.
        order, batches, loss, evaluate, on_step: as in :func:`ecanet.training.trainer.fit`.
        best: the column of metrics.csv whose highest value makes the best weights.
        save: writes weights to a path, given the row of their epoch.
        line: what to tell of a row, given the number of epochs.
        accept_changes: go on although settings differ from those the run began with.
        progress: show a progress bar.
        say: called with each line of news, in each process.
        keep_epochs: write the weights of each epoch too, to ``epochs/epochNNNN.safetensors``.
        on_epoch: called with the row of each epoch after its checkpoint, in the first process.

    Returns:
        The record: ``settings``, ``environment``, ``epochs`` (the rows of metrics.csv), ``final`` and
        ``best``: the rows of ``last.safetensors`` and ``best.safetensors``.

    Raises:
        UserError: the folder holds another run, another program works on it, or it was moved.
        ProcessLost: another process of the run has ended.
        Preempted, KeyboardInterrupt, OSError: as in :func:`ecanet.training.trainer.fit`.
    """
    say_once = first_says(fabric, say)
    if fabric.device.type == "cpu" and cpu_cores() > settings.threads * settings.devices:
        say_once(
            f"computing on {settings.threads * settings.devices} of {cpu_cores()} CPU cores: more --threads "
            "are faster, and change the last digits of the figures"
        )
    asked = {"data": str(root.resolve()), **asdict(settings)}
    claimed = functools.partial(
        claim_folder, out, asked, _FREE, fixed, accept=accept_changes, say=say_once
    )
    with losses_named(fabric), _claimed(fabric, claimed) as check_place:
        lr = _scaled_lr(lr, settings.batch_size, settings.lr_batch_size, say_once)
        training = Training(
            fabric,
            model,
            optimizer(lr),
            LoopSettings(
                epochs=settings.epochs,
                seed=settings.seed,
                lr=lambda epoch: lr * lr_factor(epoch),
                clip_grad=settings.clip_grad,
                ema_decay=settings.ema_decay,
                save_every=settings.save_every,
                rollbacks=settings.rollbacks,
            ),
            identity,
            out / "checkpoints",
            check_place,
        )
        if training.load(say_once):
            here = training.progress
            ended = _kept_record(out / "record.json")
            if here.epoch == settings.epochs and ended:
                return ended
            say_once(f"going on in epoch {here.epoch + 1}, after {here.step} of its steps")

        def keep_weights() -> None:
            rows = training.progress.rows
            names = ["last"]
            if rows[-1][best] == max(row[best] for row in rows):
                names.append("best")
            if keep_epochs:
                names.append(f"epochs/epoch{len(rows):04d}")
            for name in names:
                check_place()
                save(out / f"{name}.safetensors", training.evaluated.state_dict(), rows[-1])

        def after_step() -> None:
            on_step()
            check_place()

        def tell(checkpoint: Path) -> None:
            for logger in loggers:
                if hasattr(logger.experiment, "log_artifact"):
                    name = f"checkpoint-{logger.experiment.id}"
                    logger.experiment.log_artifact(str(checkpoint), name=name, type="model")
            say(line(training.progress.rows[-1], settings.epochs))
            on_epoch(training.progress.rows[-1])

        def log(metrics: dict[str, float], step: int) -> None:
            if swept_by_wandb() and "val_top1" in metrics:
                metrics = metrics | sweep_metrics(metrics["val_loss"], metrics["val_top1"])
            for logger in loggers:
                logger.log_metrics(metrics, step)

        wanted = settings.loggers if fabric.is_global_zero else []
        with open_loggers(
            list(wanted), out, project=settings.project, run=out.name, group=settings.model,
            config=asdict(settings), say=say,
        ) as loggers:  # fmt: skip
            fit(
                training,
                batches,
                order,
                loss=loss,
                evaluate=evaluate,
                metrics_file=out / "metrics.csv",
                log=log,
                on_epoch=keep_weights,
                on_checkpoint=tell,
                on_step=after_step,
                progress=progress,
                say=say,
            )
        rows = training.progress.rows
        record = {
            "settings": {"data": str(root), **asdict(settings)},
            "environment": environment(fabric.device),
            "epochs": rows,
            "final": rows[-1],
            "best": max(reversed(rows), key=lambda row: row[best]),
        }
        if fabric.is_global_zero:
            check_place()
            write_json(out / "record.json", _record_with(record, without_nan))
        return record


def _kept_record(path: Path) -> dict[str, Any] | None:
    """Return the record that a run has left; None where there is none, or a damaged one."""
    record = read_json(path)
    try:
        return record and _record_with(record, with_nan)
    except (KeyError, TypeError, AttributeError, ValueError):
        return None


def _record_with(
    record: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Return the record with ``change`` made to each of its rows of metrics."""
    rows: dict[str, Any] = {
        name: change(record[name]) for name in ("final", "best") if name in record
    }
    return {**record, **rows, "epochs": [change(row) for row in record["epochs"]]}


def _scaled_lr(lr: float, batch_size: int, base: int | None, say: Callable[[str], None]) -> float:
    if base is None or base == batch_size:
        return lr
    scaled = lr * batch_size / base
    say(f"learning rate {scaled:g}: {lr:g} for a batch of {base}, times {batch_size}/{base}")
    return scaled


def _claimed(
    fabric: Fabric, claim: Callable[[], AbstractContextManager[Callable[[], None]]]
) -> AbstractContextManager[Callable[[], None]]:
    """Let the first process claim the run for all; what it refuses, all refuse."""
    claimed: AbstractContextManager[Callable[[], None]] = nullcontext(lambda: None)
    refusal = None
    if fabric.is_global_zero:
        try:
            claimed = claim()
        except UserError as error:
            refusal = str(error)
    refusal = fabric.broadcast(refusal)
    if refusal:
        raise UserError(refusal)
    return claimed
