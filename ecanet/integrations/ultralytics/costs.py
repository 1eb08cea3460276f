"""What attention modules cost in a network of Ultralytics: inference after fuse(), and training steps."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecanet.config import YoloSettings
from ecanet.errors import as_user_error
from ecanet.integrations.ultralytics.data import YoloData
from ecanet.integrations.ultralytics.networks import Origin
from ecanet.integrations.ultralytics.task import training_arguments
from ecanet.integrations.ultralytics.trainer import StudyRun, make_trainer
from ecanet.models.counts import counted_macs
from ecanet.profiling.speed import Subject, measure_subjects, slow_sgd
from ecanet.record import Cost
from ecanet.training.device import autocast_dtype, resolve_device
from ecanet.training.task import Hooks


def measure(
    settings: YoloSettings, attention: list[str], data: YoloData, *, repeats: int = 5
) -> list[Cost]:
    """Measure the cost of each module on this device, the networks taking turns.

    As :func:`ecanet.profiling.measure_costs`, on the first training images with the loss of the task.
    Inference and multiply-adds are those of the network after ``fuse()``, without the search for boxes.

    Raises:
        UserError: a module fails.
    """
    device, origin = resolve_device(settings.device), Origin(settings.model)
    with tempfile.TemporaryDirectory() as folder:
        run = StudyRun(settings, data, origin, Path(folder), Hooks())
        trainer = make_trainer(run, training_arguments(settings, origin.task, Path(folder)))
        precision = "fp16" if device.type == "cuda" and trainer.args.amp else "float32"
        subjects, macs = [], []
        batch: dict[str, Any] | None = None
        for name in attention:
            own = dataclasses.replace(settings, attention=name)
            with as_user_error(f"attention {name} fails in {settings.model}"):
                network = origin.build(own, data).to(device)
                network.args = trainer.args
                if batch is None:
                    batch = _batch(trainer, network, settings.batch_size)
                subject, count = _subject(name, network, batch, precision)
            subjects.append(subject)
            macs.append(count)
        return measure_subjects(subjects, macs, device, settings.batch_size, precision, repeats)


def _batch(trainer: Any, network: nn.Module, size: int) -> dict[str, Any]:
    """Return the first training images with their objects, repeated if there are fewer."""
    trainer.model = network
    images = trainer.build_dataset(trainer.data["train"], mode="val", batch=size)
    chosen = [images[i] for i in itertools.islice(itertools.cycle(range(len(images))), size)]
    batch: dict[str, Any] = trainer.preprocess_batch(images.collate_fn(chosen))
    return batch


def _subject(name: str, network: Any, batch: dict[str, Any], precision: str) -> tuple[Subject, int]:
    fused = copy.deepcopy(network).eval().fuse(verbose=False)
    images: Tensor = batch["img"]
    with counted_macs(fused) as total, torch.no_grad():
        fused(images[:1])
    tensors = [images, *(t for t in batch.values() if isinstance(t, Tensor) and t is not images)]
    return Subject(
        name,
        network,
        slow_sgd(network),
        tensors,
        lambda: fused(images),
        lambda: network(dict(batch))[0].sum(),
        autocast_dtype(precision),
    ), total()
