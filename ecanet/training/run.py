"""One run: a model, a seed, a data set, from the first epoch or the last checkpoint to a record."""

from __future__ import annotations

import logging
import math
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from torch import nn

from ecanet.config import RunSettings, with_lr
from ecanet.data import Batches, Data
from ecanet.data.preprocessing import Preprocessing
from ecanet.files import write_json
from ecanet.models import create_model
from ecanet.models.built_in import count_built_in
from ecanet.models.weights.save import save_weights
from ecanet.record import EpochMetrics, FinalMetrics, Record, read_record
from ecanet.signals import noted, obey
from ecanet.training.callbacks import EpochCheckpoint, EpochRecorder, SweepMetrics
from ecanet.training.checkpoint import delete_checkpoints, load_checkpoint
from ecanet.training.classifier import Classifier
from ecanet.training.device import (
    LIGHTNING_PRECISION,
    environment,
    resolve_device,
    threads_kept,
)
from ecanet.training.processes import process_rank
from ecanet.training.tracking import open_loggers, swept_by_wandb


def build_model(settings: RunSettings, attention: str, data: Data) -> nn.Module:
    """Build the model of a run for the images and classes of ``data``."""
    return create_model(
        settings.model,
        num_classes=len(data.classes),
        in_chans=data.channels,
        image_size=data.image_size,
        attention=attention,
        replace_attention=settings.replace_attention,
    )


@threads_kept()
def train(
    settings: RunSettings,
    attention: str,
    seed: int,
    data: Data,
    folder: Path,
    *,
    test: bool = True,
    keep_weights: bool = False,
    progress: bool = False,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Record:
    """Train one model and test it once; go on from ``folder``'s checkpoint if there is one.

    A run that has ended returns its record at once. Runs that differ in attention alone share the
    initial values of the weights they have in common, the order of the images and their
    augmentation: all are functions of the seed.

    Args:
        settings: resolved settings, as :func:`ecanet.experiments.compare.resolve` returns them. For
            several ``devices`` torchrun's variables tell which of them is this process's.
        attention: attention module, as in :func:`ecanet.create_attention`.
        seed: of the weights, the order and the augmentation.
        data: what :func:`ecanet.load_data` returned.
        folder: where checkpoint, ``metrics.csv`` and ``record.json`` go; made if missing.
        test: read the test split at the end. Without it the record's test metrics are NaN.
        keep_weights: leave ``best.safetensors``, the weights that were tested, and ``last.safetensors``,
            those of the last epoch.
        progress: show a progress bar.
        on_epoch: called with each epoch's metrics.
        on_step: called after each batch, of evaluations too, and before what they gave is written; what
            it raises ends the run there.

    Raises:
        UserError: a logger's package is missing.
        Preempted, KeyboardInterrupt: SIGTERM or Ctrl-C came; the last checkpoint is intact.
        OSError: the disk is full; the last checkpoint is intact.
    """
    finished = folder / "record.json"
    if record := read_record(finished):
        return record
    folder.mkdir(parents=True, exist_ok=True)
    preprocessing = Preprocessing(data.image_size, data.image_size, data.mean, data.std)
    settings = replace(settings, optimizer=with_lr(settings.optimizer, settings.batch_size))
    device, rank = resolve_device(settings.device), process_rank(settings.devices)
    if settings.devices > 1 and device.type == "cuda":
        device = torch.device(f"cuda:{rank}")
    torch.set_num_threads(settings.threads)
    torch.manual_seed(seed)
    model = build_model(settings, attention, data)
    built_in = count_built_in(model)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if settings.compile == "on":
        model.compile()
    module = Classifier(model, settings, len(data.classes), seed)

    def batches(split: str) -> Batches:
        return Batches(
            getattr(data, split),
            data,
            settings.batch_size,
            augmentation=settings.augmentation if split == "train" else None,
            seed=seed,
            shuffle=split == "train",
            device=device,
            channels_last=settings.channels_last,
            drop_last=split == "train",
            process=rank,
            processes=settings.devices,
        )

    recorder = EpochRecorder(folder, on_epoch)
    checkpoint = EpochCheckpoint(folder, keep_best=settings.select == "best", before_write=on_step)
    train_batches = batches("train")
    resume = load_checkpoint(folder, None)
    tracked = open_loggers(
        [] if rank else list(settings.loggers),
        folder,
        project=settings.project,
        run=f"{attention}-seed{seed}",
        group=attention,
        config=asdict(settings) | {"attention": attention, "seed": seed},
    )
    one = settings.devices == 1
    with noted(), _quiet_lightning(), tracked as loggers:
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=[device.index or 0] if device.type == "cuda" and one else settings.devices,
            strategy="auto" if one else "ddp",
            # Under srun Lightning would take all tasks for one run's.
            plugins=[LightningEnvironment() if one else TorchElasticEnvironment()],
            precision=LIGHTNING_PRECISION[settings.precision],
            max_epochs=settings.epochs,
            callbacks=[
                _SetEpoch(train_batches),
                _AfterEachBatch(on_step),
                recorder,
                checkpoint,
                *([SweepMetrics()] if swept_by_wandb() else []),
                *([RichProgressBar()] if progress else []),
            ],
            logger=loggers,
            default_root_dir=folder,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        if resume:
            # Batches are made before the first hook of a resumed fit runs.
            train_batches.set_epoch(resume[1]["epoch"] + 1)
        with _signals_as_such():
            trainer.fit(
                module,
                train_batches,
                batches("val"),
                ckpt_path=resume[0] if resume else None,
                weights_only=True,
            )
        on_step()
        saved = load_checkpoint(folder, None)
        if saved is None or saved[1]["epoch"] != recorder.epochs[-1].epoch:
            raise OSError(f"the last checkpoint in {folder} has gone, or cannot be read")
        best = saved[1]["callbacks"][checkpoint.state_key]["best"]
        tested = best if settings.select == "best" else saved[1]
        # The tested ones last: they stay in the model. The first process's, as in the others batch norm
        # has other statistics.
        for name, state in (("last", saved[1]), ("best", tested)):
            module.load_state_dict(state["state_dict"])
            if keep_weights and not rank:
                save_weights(
                    folder / f"{name}.safetensors",
                    model.state_dict(),
                    model=settings.model,
                    attention=attention,
                    num_classes=len(data.classes),
                    in_chans=data.channels,
                    model_args={"replace_attention": True} if settings.replace_attention else {},
                    preprocessing=preprocessing,
                    classes=data.classes,
                )
        measured: Mapping[str, float] = {"test_accuracy": math.nan, "test_loss": math.nan}
        if test:
            with _signals_as_such():
                (measured,) = trainer.test(module, batches("test"), verbose=False)
        # The first process removes the checkpoints that all have read.
        trainer.strategy.barrier()
    epoch = recorder.epochs[state["epoch"]]
    record = Record(
        attention=attention,
        seed=seed,
        settings=asdict(settings),
        environment=environment(device),
        built_in=built_in,
        epochs=recorder.epochs,
        final=FinalMetrics(
            test_accuracy=measured["test_accuracy"],
            test_loss=measured["test_loss"],
            val_accuracy=epoch.val_accuracy,
            epoch=epoch.epoch,
            train_seconds=sum(metrics.seconds for metrics in recorder.epochs),
            val_loss=epoch.val_loss,
        ),
    )
    if not rank:
        write_json(finished, record.to_dict())
        delete_checkpoints(folder)
    return record


class _SetEpoch(pl.Callback):
    """Tells the training batches which epoch they are to draw."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.batches.set_epoch(trainer.current_epoch)


class _AfterEachBatch(pl.Callback):
    """Lets the caller, and signals that have come, end the run between two batches."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def _after_batch(self, *_: Any, **__: Any) -> None:
        self.call()
        obey()

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = _after_batch


@contextmanager
def _signals_as_such() -> Iterator[None]:
    """Lightning ends the process for a signal, and ignores the next Ctrl-C: give both back."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGINT, handler)
        obey()
        raise KeyboardInterrupt from None


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's banner and the hints that do not apply to data held in memory."""
    names = (
        "pytorch_lightning",
        "lightning.pytorch",
        "pytorch_lightning.utilities.rank_zero",
        "lightning_fabric",
    )
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
