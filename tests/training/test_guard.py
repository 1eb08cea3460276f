"""Steps that are not finite are undone on the device, and the host waits for no step."""

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
from torch import Tensor, nn

from ecanet.config import Augmentation, DetectionOptimizer, Optimizer
from ecanet.training.guard import FiniteGuard
from ecanet.training.train import train
from ecanet.training.trainer import Trainer


class Means(nn.Module):
    """Keeps means in buffers that are views of others."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("strided", torch.zeros(4, 2)[:, 0])
        self.register_buffer("expanded", torch.zeros(1).expand(4))

    def forward(self, x: Tensor) -> Tensor:
        self.strided += x.detach().mean((0, 2, 3))
        self.expanded[:1] += x.detach().mean()
        return x


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_bad_step_is_undone(value: float, momentum: float) -> None:
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    model = nn.Sequential(conv, Means(), norm, nn.Flatten(), nn.Linear(4 * 36, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    guard = FiniteGuard(model, optimizer)
    good, bad = torch.randn(2, 3, 8, 8), torch.full((2, 3, 8, 8), value)
    for images in (bad, good, bad, good, bad):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        guard.before_step()
        loss = model(images).square().mean()
        loss.backward()
        finite = guard.finite(loss)
        assert bool(finite) is (images is good)
        guard.update_if(finite, optimizer.step)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]) is (images is bad), name
        optimizer.zero_grad()


def test_a_loss_that_overflows_with_finite_gradients_is_bad() -> None:
    model = nn.Linear(2, 2)
    guard = FiniteGuard(model, torch.optim.SGD(model.parameters()))
    model(torch.ones(1, 2)).sum().backward()
    assert guard.finite(torch.tensor(1.0))
    assert not guard.finite(torch.tensor(float("inf")))


def test_a_parameter_whose_first_gradient_is_bad_keeps_no_state() -> None:
    """Its optimizer state is made in that step, after that of all others."""
    early, late = nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.ModuleList([early, late])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    guard = FiniteGuard(model, optimizer)
    for layers, value in [((early,), 1.0), ((early, late), float("nan")), ((early, late), 1.0)]:
        guard.before_step()
        loss = sum((layer(torch.full((1, 2), value)).sum() for layer in layers), torch.zeros(()))
        loss.backward()
        guard.update_if(guard.finite(loss), optimizer.step)
        optimizer.zero_grad()
        assert all(p.isfinite().all() for p in model.parameters())


# ---- no step waits for the device

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
