"""How many runs fit on this machine at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ecanet.config import RunSettings
from ecanet.data import load_data
from ecanet.experiments import pool
from ecanet.experiments.compare import measure, resolve
from ecanet.experiments.plan import ComparePlan
from ecanet.experiments.pool import fitting_jobs
from ecanet.experiments.sweep import _step_bytes

GIB = 2**30
PLAN = ComparePlan(RunSettings(device="cpu"), "", [], [])


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "cpu_cores", lambda: 6)
    monkeypatch.setattr(pool, "available_memory", lambda: 16 * GIB)


@pytest.mark.parametrize(
    ("step", "devices", "jobs"),
    [(0, 1, 6), (1 * GIB, 1, 4), (4 * GIB, 1, 1), (40 * GIB, 1, 1), (0, 2, 3), (1 * GIB, 2, 2)],
)
def test_cores_and_memory_bound_the_jobs(step: int, devices: int, jobs: int) -> None:
    settings = replace(PLAN.settings, devices=devices)
    assert fitting_jobs(replace(PLAN, settings=settings, step_bytes=step)) == jobs


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    for device, devices, jobs in (("cuda", 1, 8), ("cuda", 4, 2), ("cuda:1", 1, 1)):
        settings = replace(PLAN.settings, device=device, devices=devices)
        assert fitting_jobs(replace(PLAN, settings=settings)) == jobs


def test_a_run_of_several_threads_takes_as_many_cores() -> None:
    for threads, jobs in ((1, 6), (2, 3), (4, 1), (12, 1)):
        settings = replace(PLAN.settings, threads=threads)
        assert fitting_jobs(replace(PLAN, settings=settings)) == jobs


@pytest.mark.parametrize("attention", ["none", "eca", "cbam"])
def test_a_sweep_reckons_about_what_a_comparison_measures(attention: str) -> None:
    data = load_data("digits")
    settings = RunSettings(batch_size=128, device="cpu", precision="float32", compile="off")
    settings = resolve(settings, [attention], data)
    (cost,) = measure(settings, [attention], data)
    assert cost.train_peak_bytes is not None
    assert 0.8 < _step_bytes(settings, attention, data) / cost.train_peak_bytes < 1.1
