"""Time and memory, measured: several models side by side, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecanet.errors import UserError
from ecanet.models import attention_modules
from ecanet.profiling.counts import count_macs, count_parameters
from ecanet.record import Cost, Speed
from ecanet.training.device import autocast_dtype, device_name

# The first steps choose algorithms, fill caches and compile; the last of them is timed, to know how
# many steps a repeat takes.
WARM_UP = 3


@dataclass
class _Subject:
    """A model under measurement, with what its training needs."""

    name: str
    model: nn.Module
    """As built; what is run is ``run``, the same or its compiled form."""
    run: Callable[[Tensor], Tensor]
    optimizer: torch.optim.SGD
    images: Tensor
    labels: Tensor
    dtype: torch.dtype | None

    def train_step(self) -> None:
        self.model.train()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def infer(self) -> None:
        self.model.eval()
        with torch.inference_mode(), self.autocast():
            self.run(self.images)

    def loss(self) -> Tensor:
        with self.autocast():
            return F.cross_entropy(self.run(self.images), self.labels)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.images.device.type, self.dtype, enabled=self.dtype is not None)

    def held(self) -> dict[int, int]:
        """Return the bytes of all memory that lives from step to step, by its address."""
        states = [v for state in self.optimizer.state.values() for v in state.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *states]
        tensors += [self.images, self.labels]
        return _storages([t for t in tensors if isinstance(t, Tensor)])


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
    """Measure what each of several models costs, on this device, under the same conditions.

    A training step is forward, cross-entropy, backward and a step of SGD with momentum, on one batch
    of random images that stays on the device; inference is a forward pass in evaluation mode.
    Loading and augmentation are not in it. The models take turns, in an order that moves on by one
    each time, so that a slow moment of the machine falls on all; speeds are images a second, the
    median over the repeats and their quartiles.

    Peak memory (``train_peak_bytes``) of a training step is, on a CUDA device, the most that torch
    had allocated for this model at any time, temporary values and the libraries' workspaces
    included. Elsewhere, where no such counter exists, it is the sum of what the step must hold:
    parameters, gradients, buffers, the optimizer's state, the batch, and every tensor that the
    forward pass saves for the backward pass, each block of memory once; temporary values are left
    out, and the figure is exact and the same in every run.

    Args:
        models: builds each model; the name is an attention module's.
        image_size: side of the images, in pixels.
        in_chans: their channels.
        num_classes: length of the models' output.
        batch_size: images a step.
        device: where to run.
        precision: ``float32``, or ``bf16`` or ``fp16`` for autocast (fp16 without loss scaling).
        channels_last: memory format of images and weights.
        compile: run the models through torch.compile.
        repeats: measurements of each model, at least 1.
        seconds_per_repeat: length of one measurement; at least one step is made.

    Raises:
        UserError: there is nothing to measure.
    """
    if repeats < 1 or batch_size < 1:
        raise UserError("measuring costs needs repeats and batch_size of at least 1")
    device = torch.device(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.randn(batch_size, in_chans, image_size, image_size)
    images = images.to(device, memory_format=layout)
    labels = torch.randint(num_classes, (batch_size,)).to(device)

    subjects = []
    for name, build in models.items():
        model = build().to(device, memory_format=layout)  # type: ignore[call-overload]
        # A rate this low keeps a model finite however long it trains on one batch.
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
        run = torch.compile(model) if compile else model
        subjects.append(
            _Subject(name, model, run, optimizer, images, labels, autocast_dtype(precision))
        )

    macs = [count_macs(subject.model, image_size, in_chans) for subject in subjects]
    train = _speeds(
        [s.train_step for s in subjects], device, batch_size, repeats, seconds_per_repeat
    )
    infer = _speeds([s.infer for s in subjects], device, batch_size, repeats, seconds_per_repeat)
    return [
        Cost(
            attention=subject.name,
            parameters=count_parameters(subject.model),
            attention_parameters=sum(
                count_parameters(module) for module in attention_modules(subject.model).values()
            ),
            macs=macs[i],
            train=train[i],
            inference=infer[i],
            train_peak_bytes=_train_peak(subject, device),
            batch_size=batch_size,
            device=_device_and_threads(device),
            precision=precision,
        )
        for i, subject in enumerate(subjects)
    ]


def _device_and_threads(device: torch.device) -> str:
    threads = torch.get_num_threads()
    used = f", {threads} thread{'s' * (threads > 1)} used" if device.type == "cpu" else ""
    return device_name(device) + used


def _speeds(
    steps: list[Callable[[], None]],
    device: torch.device,
    batch_size: int,
    repeats: int,
    seconds: float,
) -> list[Speed]:
    counts = []
    for step in steps:
        for _ in range(WARM_UP - 1):
            step()
        counts.append(max(1, round(seconds / _seconds(step, 1, device))))
    speeds: list[list[float]] = [[] for _ in steps]
    for repeat in range(repeats):
        for turn in range(len(steps)):
            i = (repeat + turn) % len(steps)
            speeds[i].append(batch_size * counts[i] / _seconds(steps[i], counts[i], device))
    quartiles = [[float(q) for q in np.percentile(rates, (25, 50, 75))] for rates in speeds]
    return [Speed(median, low, high, repeats) for low, median, high in quartiles]


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


def _train_peak(subject: _Subject, device: torch.device) -> int:
    """Return the peak of one training step, as :func:`measure_costs` says; the models are warm."""
    held = subject.held()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)  # the other models are in this
        subject.train_step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before + sum(held.values())

    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    subject.model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = subject.loss()
    del loss
    gradients = sum(p.numel() * p.element_size() for p in subject.model.parameters())
    return gradients + sum((held | _storages(saved)).values())


def _storages(tensors: list[Tensor]) -> dict[int, int]:
    """Return the bytes behind tensors by address, so that views of one memory count once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
