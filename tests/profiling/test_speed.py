"""Costs: their content, the order of turns, and memory against a sum by hand."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from ecanet.errors import UserError
from ecanet.models import attention_modules, create_model
from ecanet.profiling import count_macs, count_parameters, measure_costs
from ecanet.profiling.speed import WARM_UP, gpu_share, interleaved_speeds

QUICK = {"repeats": 2, "seconds_per_repeat": 0.0, "batch_size": 4}


def test_costs_of_attention_modules() -> None:
    build = partial(create_model, "resnet20", num_classes=10, in_chans=1, fused=False)
    names = ["none", "eca", "se"]
    builders = {name: partial(build, attention=name) for name in names}
    costs = measure_costs(builders, image_size=8, in_chans=1, num_classes=10, **QUICK)
    assert [cost.attention for cost in costs] == names
    for cost in costs:
        model = build(attention=cost.attention)
        assert cost.parameters == count_parameters(model)
        assert cost.macs == count_macs(model, 8, 1)
        own = sum(count_parameters(m) for m in attention_modules(model).values())
        assert cost.attention_parameters == own
        for speed in (cost.train, cost.inference):
            assert 0 < speed.low <= speed.median <= speed.high
            assert speed.repeats == 2
        assert (cost.batch_size, cost.precision) == (4, "float32")
        assert cost.device
    none, eca, _ = costs
    assert none.attention_parameters == 0
    # ECA keeps at least its input for the backward pass: 4 images of 16, 32, 64 channels in 9 blocks.
    assert eca.train_peak_bytes - none.train_peak_bytes > 4 * 4 * 3 * (16 * 64 + 32 * 16 + 64 * 4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_peak_memory_is_the_sum_of_its_parts(channels_last: bool) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 5))

    sizes = {"image_size": 2, "in_chans": 3, "num_classes": 5}
    (cost,) = measure_costs({"none": build}, channels_last=channels_last, **sizes, **QUICK)
    weights, images, labels, log_probabilities, weight_sum = 3 * 65 * 4, 48 * 4, 4 * 8, 20 * 4, 4
    expected = weights + images + labels + log_probabilities + weight_sum
    # Flattening channels-last images copies them.
    expected += images if channels_last else 0
    assert cost.train_peak_bytes == expected


def test_measuring_leaves_no_tensors_behind() -> None:
    """A study trains in the process that has measured: what stays would be held as long as it runs."""

    def alive() -> int:
        gc.collect()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    before = alive()
    build = partial(create_model, "resnet20", num_classes=10, in_chans=1)
    measure_costs({"none": build}, image_size=8, in_chans=1, num_classes=10, **QUICK)
    assert alive() == before


def test_bf16() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    (cost,) = measure_costs({"none": build}, image_size=4, num_classes=4, precision="bf16", **QUICK)
    assert cost.precision == "bf16"


def test_turns_rotate() -> None:
    order: list[int] = []
    steps = [lambda i=i: order.append(i) for i in range(3)]
    speeds = interleaved_speeds(steps, torch.device("cpu"), batch_size=1, repeats=3, seconds=0.0)
    assert len(speeds) == 3
    assert order[: 3 * WARM_UP] == [0] * WARM_UP + [1] * WARM_UP + [2] * WARM_UP
    assert order[3 * WARM_UP :] == [0, 1, 2, 1, 2, 0, 2, 0, 1]


@pytest.mark.parametrize(("milliseconds", "share"), [(2.0, 0.2), (15.0, 1.0)])
def test_the_share_of_a_gpu_is_the_time_of_a_queued_step(
    monkeypatch: pytest.MonkeyPatch, milliseconds: float, share: float
) -> None:
    calls: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("event")

        def synchronize(self) -> None:
            calls.append("wait")

        def elapsed_time(self, other: Event) -> float:
            return milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: calls.append("hold"))
    found = gpu_share(lambda: calls.append("step"), torch.device("cuda"), rate=100.0)
    assert found == pytest.approx(share)
    assert calls == ["hold", "event", "step", "event", "wait"] * 3
    assert gpu_share(lambda: None, torch.device("cpu"), rate=100.0) is None


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1"):
        measure_costs({}, image_size=8, repeats=0)
