"""No step waits for the device: on a CPU nothing is read, and without values nothing can be."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import settings_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ecanet.config import Augmentation, DetectionOptimizer, Optimizer
from ecanet.training import classification, launch
from ecanet.training.device import LateRead, host_copy
from ecanet.training.launch import begin
from ecanet.training.optim import build_optimizer
from ecanet.training.task import Hooks
from ecanet.training.train import task_of, train
from ecanet.training.trainer import Trainer

READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")
# Adam counts its steps on the CPU for parameters on the CPU; on a GPU it is fused. What mixes images draws
# on the CPU, and torchvision's detection heads wait for themselves.
HOST = ("torch.optim.", "torchvision", "torch.distributions")


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """Count, for each step of a run, where values of tensors are read on the host."""
    steps: list[Counter[str]] = []
    inside = False

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def read(self: Tensor, *arguments: Any, **named: Any) -> Any:
            module = sys._getframe(1).f_globals.get("__name__", "")
            if inside and not module.startswith(HOST):
                steps[-1][f"{name} in {module}"] += 1
            return real(self, *arguments, **named)

        return read

    for name in READS:
        monkeypatch.setattr(Tensor, name, counted(name, getattr(Tensor, name)))
    step = Trainer.step

    def counting_step(self: Trainer, batch: Any) -> Tensor:
        nonlocal inside
        steps.append(Counter())
        inside = True
        try:
            return step(self, batch)
        finally:
            inside = False

    monkeypatch.setattr(Trainer, "step", counting_step)
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "sgd without momentum", "adamw"])
@pytest.mark.parametrize("task", ["memory", "stream", "detector"])
def test_no_step_but_the_first_reads_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, optimizer: str
) -> None:
    settings = settings_of(task, tmp_path)
    kind: Any = DetectionOptimizer if task == "detector" else Optimizer
    name, _, plain = optimizer.partition(" ")
    chosen = kind(name, lr=0.001, momentum=0.0 if plain else 0.9)
    steps = count_reads(monkeypatch)
    settings = replace(settings, epochs=1, optimizer=chosen, ema_decay=0.9, clip_grad=1.0)
    train(settings, tmp_path / "run")
    assert len(steps) >= 4
    assert steps[0].total() <= 1
    assert steps[1:] == [Counter()] * (len(steps) - 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("task", ["memory", "stream"])
def test_no_step_but_the_first_waits_for_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, optimizer: Any
) -> None:
    settings = replace(
        settings_of(task, tmp_path),
        device="cuda",
        precision="auto",
        optimizer=Optimizer(optimizer, lr=0.001),
        augmentation=Augmentation(crop_padding=2, mixup=0.2, cutmix=1.0),
        ema_decay=0.9,
        clip_grad=1.0,
    )
    step, made = Trainer.step, []

    def checked_step(self: Trainer, batch: Any) -> Tensor:
        torch.cuda.set_sync_debug_mode("error" if made else "default")
        made.append(batch)
        try:
            return step(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "step", checked_step)
    train(settings, tmp_path / "run")
    assert len(made) == 15


# ---- on a device without values

META = torch.device("meta")


class Copies(TorchDispatchMode):
    """Notes copies between the host and the device for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[0] if func is torch.ops.aten._to_copy.default else args[1]
            waits = not (kwargs.get("non_blocking") or True in args[2:])
            if source.device != result.device and waits:
                self.waits.append(f"{source.device} to {result.device}: {tuple(source.shape)}")
        return result


def meta_trainer(settings: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Return the trainer of a run whose device is ``meta``, where tensors have shapes and no values.

    What reads a value there raises, and so does what has as many values as others say: item, bool, nonzero,
    indexing by a mask.
    """
    kind = task_of(settings)
    data = kind.read(settings, alone=True)
    fabric, settings = begin(kind.resolve(settings, data, alone=True))
    monkeypatch.setattr(fabric.strategy, "_root_device", META)
    monkeypatch.setattr(fabric._accelerator, "setup_device", lambda device: None)
    task = kind(settings, data, fabric)
    generator = torch.Generator
    with monkeypatch.context() as patched:
        patched.setattr(torch, "Generator", lambda device=None: generator())  # the average's
        trainer = Trainer(fabric, task, folder, Hooks())
    trainer.wrapped.train()
    return trainer


MEMORY = {
    "plain": Augmentation(flip=False, crop_padding=0),
    "flip": Augmentation(flip=True, crop_padding=0),
    "crop": Augmentation(flip=False, crop_padding=2),
    "cutout": Augmentation(flip=False, crop_padding=0, cutout=4),
    "mixup": Augmentation(flip=True, crop_padding=2, cutout=4, mixup=0.2),
    "cutmix": Augmentation(cutmix=1.0),
    "both": Augmentation(mixup=0.2, cutmix=1.0),
}
STREAM = {
    "policy": Augmentation(scale=[0.5, 1.0], policy="trivialaugment", mixup=0.2, cutmix=1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "balanced"])
@pytest.mark.parametrize("name", [*MEMORY, *STREAM])
def test_a_step_needs_no_value_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, loss: str
) -> None:
    """From the making of a batch in memory to the sums, with every part of a step turned on."""
    settings: Any = replace(
        settings_of("memory" if name in MEMORY else "stream", tmp_path),
        augmentation=(MEMORY | STREAM)[name],
        loss="bce" if loss == "bce" else "cross_entropy",
        class_weights="balanced" if loss == "balanced" else "none",
        label_smoothing=0.1,
        drop_rate=0.2,
        ema_decay=0.9,
        clip_grad=1.0,
    )
    trainer = meta_trainer(settings, tmp_path / "run", monkeypatch)
    batches = iter(trainer.task.batches)
    with monkeypatch.context() as patched:
        # The first step asks once whether it was good.
        patched.setattr(Tensor, "__bool__", lambda self: True)
        trainer.step(next(batches))
    for _ in range(2):
        with Copies() as copies:
            status = trainer.step(next(batches))
        assert copies.waits == []
        assert status.device == META
    with pytest.raises((RuntimeError, NotImplementedError)):
        status.tolist()


def test_what_waits_would_be_found() -> None:
    there = torch.empty(4, device=META)
    for wait in (lambda: there[there > 0], lambda: there.nonzero(), lambda: float(there.sum())):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait()
    with Copies() as copies:
        torch.ones(2).to(META, non_blocking=True)
        there.copy_(torch.ones(4), non_blocking=True)
    assert copies.waits == []
    with Copies() as copies:
        torch.ones(2).to(META)
        there.copy_(torch.ones(4))
    assert copies.waits == ["cpu to meta: (2,)", "cpu to meta: (4,)"]


def test_values_are_read_late_and_copies_are_whole() -> None:
    values = torch.tensor([1.0, 2.0])
    assert LateRead(values).read() == [1.0, 2.0]
    tree = {"a": [values], "b": {"c": 3}}
    copy = host_copy(tree)
    values += 1
    tree["b"]["c"] = 4
    assert torch.equal(copy["a"][0], torch.tensor([1.0, 2.0]))
    assert copy["b"] == {"c": 3}


def test_float16_asks_nothing_with_an_optimizer_that_is_fused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As AdamW is on a GPU, with clipping, which Lightning has not for such optimizers."""
    for module in (launch, classification):
        monkeypatch.setattr(module, "resolve_precision", lambda name, device: name)
    cuda = torch.device("cuda")
    monkeypatch.setattr(
        classification, "build_optimizer", lambda model, chosen, _: build_optimizer(model, chosen, cuda)
    )  # fmt: skip
    steps = count_reads(monkeypatch)
    settings: Any = replace(
        settings_of("memory", tmp_path),
        precision="fp16", epochs=1, clip_grad=1.0, optimizer=Optimizer("adamw", lr=0.001),
    )  # fmt: skip
    record = train(settings, tmp_path / "run")
    assert record.epochs[0]["skipped_steps"] == 0
    assert steps[0].total() <= 1
    assert steps[1:] == [Counter()] * 4
