"""What attention modules cost in a network of LibreYOLO: inference and training steps."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecanet.config import LibreYoloSettings
from ecanet.errors import as_user_error
from ecanet.integrations.libreyolo.networks import Origin
from ecanet.integrations.libreyolo.task import training_arguments
from ecanet.integrations.libreyolo.trainer import make_trainer
from ecanet.integrations.study_run import StudyRun
from ecanet.integrations.ultralytics.data import YoloData
from ecanet.models.counts import counted_macs
from ecanet.profiling.speed import Subject, measure_subjects, slow_sgd
from ecanet.record import Cost
from ecanet.training.device import autocast_dtype, resolve_device
from ecanet.training.task import Hooks


def measure(
    settings: LibreYoloSettings, attention: list[str], data: YoloData, *, repeats: int = 5
) -> list[Cost]:
    """Measure the cost of each module on this device, the networks taking turns.

    As :func:`ecanet.profiling.measure_costs`, on training images with the loss of the family. Inference is
    that of the network as LibreYOLO runs it, without the search for boxes.

    Raises:
        UserError: a module fails.
    """
    device, origin = resolve_device(settings.device), Origin(settings.model)
    subjects, macs = [], []
    batch: list[Tensor] = []
    precision = "float32"
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(settings, data, origin.trainer, Path(folder))
        for name in attention:
            own = dataclasses.replace(settings, attention=name)
            run = StudyRun(own, data, origin, Path(folder), Hooks())
            with as_user_error(f"attention {name} fails in {settings.model}"):
                trainer = make_trainer(run, {**arguments, "workers": 0})
                trainer.setup()
                if not batch:
                    precision = "fp16" if trainer.scaler is not None else "float32"
                    batch = _batch(trainer, settings.batch_size, device)
                subject, count = _subject(name, trainer, batch, precision)
            subjects.append(subject)
            macs.append(count)
        return measure_subjects(subjects, macs, device, settings.batch_size, precision, repeats)


def _batch(trainer: Any, size: int, device: torch.device) -> list[Tensor]:
    """Return training images with their boxes, repeated if there are fewer."""
    images, targets = next(iter(trainer.train_loader))[:2]
    chosen = list(itertools.islice(itertools.cycle(range(len(images))), size))
    return [images[chosen].to(device), targets[chosen].to(device)]


def _subject(name: str, trainer: Any, batch: list[Tensor], precision: str) -> tuple[Subject, int]:
    network, (images, targets) = trainer.model, batch
    network.eval()
    with counted_macs(network) as total, torch.no_grad():
        network(images[:1])
    return Subject(
        name,
        network,
        slow_sgd(network),
        batch,
        lambda: network(images),
        lambda: trainer.on_forward(images, targets)["total_loss"],
        autocast_dtype(precision),
    ), total()
