import math

import pytest
import torch

from ecanet.config import Schedule
from ecanet.training.optim import lr_factor


def test_cosine_without_warmup_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    schedule = Schedule("cosine", warmup_epochs=0)
    for epoch in range(11):
        expected = reference.get_last_lr()[0]
        assert lr_factor(schedule, epoch, 10) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        reference.step()


def test_warmup_rises_linearly_to_the_peak_and_cosine_ends_at_zero() -> None:
    schedule = Schedule("cosine", warmup_epochs=2)
    assert lr_factor(schedule, 0, 10) == pytest.approx(0.01)
    assert lr_factor(schedule, 1, 10) == pytest.approx(0.505)
    assert lr_factor(schedule, 2, 10) == pytest.approx(1.0)
    assert lr_factor(schedule, 10, 10) == pytest.approx(0.0, abs=1e-12)
    assert lr_factor(schedule, 6, 10) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)


def test_onecycle_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=101, pct_start=31 / 101, final_div_factor=1e9
    )
    rates = []
    for _ in range(101):
        rates.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    schedule = Schedule("onecycle")
    ours = [lr_factor(schedule, step / 10, 10) for step in range(101)]
    assert ours == pytest.approx(rates, abs=1e-6)


def test_step_is_the_papers() -> None:
    schedule = Schedule("step", warmup_epochs=0, milestones=[30, 60, 90])
    rates = [0.1 * lr_factor(schedule, epoch, 100) for epoch in (0, 29.9, 30, 59, 60, 90, 99)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 1e-4, 1e-4])


def test_a_warmup_longer_than_the_run_still_reaches_the_peak() -> None:
    factors = [lr_factor(Schedule("cosine", warmup_epochs=5), step / 10, 1) for step in range(11)]
    assert max(factors) == pytest.approx(1.0)
