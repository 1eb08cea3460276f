"""Measures time and memory of several models side by side, the models taking turns."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecanet.environment import device_name
from ecanet.errors import UserError, counted
from ecanet.models import attention_modules
from ecanet.models.counts import count_macs, count_parameters
from ecanet.profiling.memory import saved_tensors, storages
from ecanet.record import Cost, Speed
from ecanet.training.compilation import compiling
from ecanet.training.device import autocast_dtype, fastest_convolutions

log = logging.getLogger(__name__)

# The first steps select algorithms, fill caches and compile. The last of them is timed, to choose the number
# of steps in a repeat.
WARM_UP = 3
# Clocks for which a GPU waits while a step is queued: a tenth of a second.
_HOLD = 200_000_000


@dataclass
class Subject:
    """A model to measure, with its optimizer and batch."""

    name: str
    model: nn.Module
    optimizer: torch.optim.SGD
    batch: list[Tensor]
    """All tensors of the batch, images first."""
    forward: Callable[[], object]
    """Forward pass of the batch, in evaluation mode."""
    criterion: Callable[[], Tensor]
    """Loss of the batch, in training mode."""
    dtype: torch.dtype | None
    """Of autocast; None without it."""

    def train_step(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def infer(self) -> None:
        self.model.eval()
        with torch.inference_mode(), self._autocast():
            self.forward()

    def loss(self) -> Tensor:
        self.model.train()
        with self._autocast():
            return self.criterion()

    def _autocast(self) -> torch.autocast:
        kind = self.batch[0].device.type
        return torch.autocast(kind, self.dtype, enabled=self.dtype is not None)

    def held(self) -> dict[int, int]:
        """Return the bytes of all memory that persists between steps, by storage."""
        states = [v for state in self.optimizer.state.values() for v in state.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *states, *self.batch]
        return storages([t for t in tensors if isinstance(t, Tensor)])


def measure_costs(
    models: dict[str, Callable[[], nn.Module]],
    *,
    image_size: int,
    in_chans: int = 3,
    num_classes: int = 1000,
    batch_size: int = 128,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    channels_last: bool = True,
    compile: bool = False,
    repeats: int = 5,
    seconds_per_repeat: float = 0.2,
) -> list[Cost]:
    """Measure the cost of each of several models on this device, under the same conditions.

    A training step is forward, cross-entropy, backward and a step of SGD with momentum, on one batch
    of random images that stays on the device; inference is a forward pass in evaluation mode.
    Data loading and augmentation are excluded. The models take turns, in an order that rotates, so
    that slow moments of the machine affect all of them; speeds are images per second, the median
    over the repeats and their quartiles.

    Peak memory (``train_peak_bytes``) of a training step is, on a CUDA device, the most that torch
    had allocated for this model at any time, including temporary values and workspaces of libraries.
    On other devices, which have no such counter, it is the sum of what the step must keep:
    parameters, gradients, buffers, the optimizer's state, the batch, and every tensor that the
    forward pass saves for the backward pass, each storage once. It excludes temporary values, and is
    exact and the same in every run.

    Args:
        models: builders of the models, by the name of the attention module.
        image_size: side of the images, in pixels.
        in_chans: channels of the images.
        num_classes: length of the models' output.
        batch_size: images per step.
        device: where to run.
        precision: ``float32``, or ``bf16`` or ``fp16`` for autocast (fp16 without loss scaling).
        channels_last: memory format of images and weights.
        compile: compile the models with torch.compile.
        repeats: measurements of each model, at least 1.
        seconds_per_repeat: length of one measurement, of at least one step.

    Raises:
        UserError: there is nothing to measure.
    """
    if repeats < 1 or batch_size < 1:
        raise UserError("measuring costs needs repeats and batch_size of at least 1")
    device = torch.device(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    batch = make_batch(batch_size, in_chans, image_size, num_classes, device, layout)
    subjects = [
        make_subject(name, build(), *batch, precision, layout, compile)
        for name, build in models.items()
    ]
    macs = [count_macs(subject.model, image_size, in_chans) for subject in subjects]
    with fastest_convolutions(), compiling(len(models)) if compile else nullcontext():
        return measure_subjects(
            subjects, macs, device, batch_size, precision, repeats, seconds_per_repeat
        )


def measure_subjects(
    subjects: Sequence[Subject],
    macs: Sequence[int],
    device: torch.device,
    batch_size: int,
    precision: str,
    repeats: int,
    seconds: float = 0.2,
) -> list[Cost]:
    """Measure subjects on one device as :func:`measure_costs` does, given their multiply-adds."""
    train, infer = (
        interleaved_speeds(steps, device, batch_size, repeats, seconds)
        for steps in ([s.train_step for s in subjects], [s.infer for s in subjects])
    )
    costs = []
    for i, subject in enumerate(subjects):
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)  # detectors draw the proposals of a training step
            peak = train_peak(subject, device)
        modules = attention_modules(subject.model).values()
        costs.append(
            Cost(
                attention=subject.name,
                parameters=count_parameters(subject.model),
                attention_parameters=sum(map(count_parameters, modules)),
                macs=macs[i],
                train=train[i],
                inference=infer[i],
                train_peak_bytes=peak,
                batch_size=batch_size,
                device=device_and_threads(device),
                precision=precision,
                gpu_share=gpu_share(subject.train_step, device, train[i].median / batch_size),
            )
        )
    return costs


@dataclass
class BatchSpeed:
    """The speed of a model at one batch size."""

    batch_size: int
    inference: Speed
    train: Speed | None
    """None if training was not timed."""


def measure_speeds(
    models: dict[str, nn.Module],
    batch_sizes: Sequence[int],
    *,
    image_size: int,
    in_chans: int = 3,
    num_classes: int = 1000,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    train: bool = False,
    repeats: int = 5,
    seconds_per_repeat: float = 0.2,
) -> dict[str, list[BatchSpeed]]:
    """Time several models side by side at several batch sizes, as :func:`measure_costs` does, with
    images and weights channels last.

    Args:
        models: by name; they are moved to the device.
        batch_sizes: images per step.
        train: time training steps as well.

    Returns:
        The speeds of each model, in the order of ``batch_sizes``.

    Raises:
        UserError: there is nothing to measure, or a batch does not fit into the device's memory.
    """
    if repeats < 1 or not batch_sizes or min(batch_sizes) < 1:
        raise UserError("measuring speed needs repeats and batch sizes of at least 1")
    device = torch.device(device)
    speeds: dict[str, list[BatchSpeed]] = {name: [] for name in models}
    for size in batch_sizes:
        log.info(f"timing batches of {size}")
        how = (device, size, repeats, seconds_per_repeat)
        try:
            batch = make_batch(size, in_chans, image_size, num_classes, device)
            subjects = [make_subject(n, m, *batch, precision) for n, m in models.items()]
            trained: list[Speed] | list[None] = [None] * len(subjects)
            with fastest_convolutions():
                infer = interleaved_speeds([s.infer for s in subjects], *how)
                if train:
                    trained = interleaved_speeds([s.train_step for s in subjects], *how)
        except torch.OutOfMemoryError:
            raise UserError(
                f"a batch of {size} images of {image_size} pixels does not fit into the memory of "
                f"{device_name(device)}: leave that batch size out"
            ) from None
        except ValueError as error:
            if size > 1:
                raise
            # A batch norm of pooled images has a single value per channel.
            raise UserError(f"cannot train on a batch of one image: {error}") from None
        for i, name in enumerate(models):
            speeds[name].append(BatchSpeed(size, infer[i], trained[i]))
    return speeds


def device_and_threads(device: torch.device) -> str:
    """Return the device's name and, for a CPU, the number of torch's threads."""
    threads = torch.get_num_threads()
    used = f", {counted(threads, 'thread')} used" if device.type == "cpu" else ""
    return device_name(device) + used


def make_batch(
    size: int,
    in_chans: int,
    image_size: int,
    num_classes: int,
    device: torch.device,
    layout: torch.memory_format = torch.channels_last,
) -> tuple[Tensor, Tensor]:
    images = torch.randn(size, in_chans, image_size, image_size)
    labels = torch.randint(num_classes, (size,))
    return images.to(device, memory_format=layout), labels.to(device)


def make_subject(
    name: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    precision: str,
    layout: torch.memory_format = torch.channels_last,
    compile: bool = False,
) -> Subject:
    model = model.to(images.device, memory_format=layout)  # type: ignore[call-overload]
    run = torch.compile(model) if compile else model
    return Subject(
        name,
        model,
        slow_sgd(model),
        [images, labels],
        lambda: run(images),
        lambda: F.cross_entropy(run(images), labels),
        autocast_dtype(precision),
    )


def slow_sgd(model: nn.Module) -> torch.optim.SGD:
    """Return an optimizer with which a model stays finite however long it trains on one batch."""
    return torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)


def interleaved_speeds(
    steps: list[Callable[[], None]],
    device: torch.device,
    batch_size: int,
    repeats: int,
    seconds: float = 0.2,
) -> list[Speed]:
    """Time several steps of ``batch_size`` images in turns, as :func:`measure_costs` describes."""
    rates = batch_size * interleaved_rates(steps, device, repeats, seconds)
    low, median, high = np.percentile(rates, (25, 50, 75), axis=1).tolist()
    return [Speed(*speed, repeats) for speed in zip(median, low, high, strict=True)]


def interleaved_rates(
    steps: list[Callable[[], None]], device: torch.device, repeats: int, seconds: float
) -> np.ndarray:
    """Return the steps per second of each step in each of several turns: (steps, repeats).

    Within a turn the steps follow each other, so their ratio refers to one moment of the machine.
    """
    counts = []
    for step in steps:
        for _ in range(WARM_UP - 1):
            step()
        counts.append(max(1, round(seconds / _seconds(step, 1, device))))
    rates = np.empty((len(steps), repeats))
    for repeat in range(repeats):
        for turn in range(len(steps)):
            i = (repeat + turn) % len(steps)
            rates[i, repeat] = counts[i] / _seconds(steps[i], counts[i], device)
    return rates


def _seconds(step: Callable[[], None], count: int, device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def gpu_share(step: Callable[[], None], device: torch.device, rate: float) -> float | None:
    """Return the share of a step's time in which a GPU computes, 0..1; None on other devices.

    The step is queued while the GPU is kept waiting, so that its kernels then follow each other without the
    gaps in which the GPU waits for the host.

    Args:
        step: after its warm-up.
        rate: steps per second.
    """
    if device.type != "cuda":
        return None
    seconds = []
    with torch.cuda.device(device):
        for _ in range(3):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(_HOLD)
            start.record()
            step()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1000)
    return min(1.0, min(seconds) * rate)


def train_peak(subject: Subject, device: torch.device) -> int:
    """Return the peak memory of one training step after the warm-up, as in :func:`measure_costs`."""
    held = subject.held()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)  # includes the other models
        subject.train_step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before + sum(held.values())

    with saved_tensors() as saved:
        loss = subject.loss()
    del loss
    gradients = sum(p.numel() * p.element_size() for p in subject.model.parameters())
    return gradients + sum((held | storages(saved)).values())
