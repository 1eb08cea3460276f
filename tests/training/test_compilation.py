"""Whether compiling pays, and that no network that is to be compiled runs uncompiled unnoticed."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from helpers.runs import settings_of, untimed
from torch import Tensor, nn

from ecanet.errors import UserError
from ecanet.profiling.speed import measure_costs
from ecanet.training import compilation
from ecanet.training.compilation import compile_pays, compiling, gpu_rate
from ecanet.training.train import train

RESNET20, RESNET18 = 41_000_000, 556_000_000  # of CIFAR's images
CPU = torch.device("cpu")


def test_compile_pays_for_long_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not compile_pays(RESNET20, 45_000 * 15, CPU)
    assert compile_pays(RESNET20, 45_000 * 200, CPU)
    assert not compile_pays(RESNET20, 10**12, torch.device("mps"))

    class H100:
        major, minor, multi_processor_count = 9, 0, 132

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: H100)
    gpu = torch.device("cuda")
    assert not compile_pays(RESNET18, 45_000 * 30, gpu), "less than a minute"
    assert compile_pays(RESNET18, 45_000 * 300, gpu)


@pytest.mark.parametrize(
    ("capability", "multiprocessors", "low", "high"),
    [
        ((9, 0), 132, 8e13, 1.2e14),  # H100
        ((8, 0), 108, 3e13, 5e13),  # A100
        ((8, 9), 128, 2e13, 3e13),  # RTX 4090
        ((7, 5), 40, 5e12, 1e13),  # T4
        ((6, 0), 56, 1e12, 4e12),  # P100
        ((10, 0), 148, 2e14, 3e14),  # B200
    ],
)
def test_the_rate_of_a_gpu_is_a_quarter_of_its_peak(
    capability: tuple[int, int], multiprocessors: int, low: float, high: float
) -> None:
    assert low < gpu_rate(capability, multiprocessors) < high


class Net(nn.Module):
    """Of several widths; all share the code of their forward pass."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Count how often each compiled graph runs; a graph is run as it was traced."""
    ran: Counter[int] = Counter()

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        number = len(ran)
        ran[number] = 0

        def run(*arguments: Any) -> Any:
            ran[number] += 1
            return graph(*arguments)

        return run

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    return ran


def test_every_network_of_many_is_measured_compiled(graphs: Counter[int]) -> None:
    widths = range(4, 10)
    costs = measure_costs(
        {str(width): functools.partial(Net, width) for width in widths},
        image_size=8, num_classes=10, batch_size=4, compile=True, repeats=1, seconds_per_repeat=0.01,
    )  # fmt: skip
    assert [cost.attention for cost in costs] == [*map(str, widths)]
    assert len(graphs) >= 2 * len(widths), "training and inference of each"
    assert min(graphs.values()) > 0


def test_networks_beyond_the_limit_are_not_run_as_they_are(graphs: Counter[int]) -> None:
    """As torch does by itself, with the ninth."""
    x = torch.randn(2, 3, 8, 8)

    def run(count: int) -> int:
        before = len(graphs)
        nets = [Net(width) for width in range(4, 4 + count)]  # graphs go with their networks
        for net in nets:
            torch.compile(net)(x)
        return len(graphs) - before

    # The default; libraries that are imported may have changed it.
    with torch._dynamo.config.patch(recompile_limit=8):
        assert run(12) == 8
    with compiling(12):
        assert run(12) == 12
    with pytest.raises(UserError, match=r"more than 8 times.*give --compile off"), compiling():
        run(12)
    torch.compiler.reset()


@pytest.mark.slow
def test_a_compiled_run_is_one_graph_and_the_next_run_too(
    graphs: Counter[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was compiled in the process before; evaluations are not."""
    monkeypatch.setattr(compilation, "_GRAPHS", 2)
    settings: Any = replace(settings_of("memory", tmp_path), compile="on", epochs=2)
    records = [train(settings, tmp_path / f"run{number}") for number in range(3)]
    assert dict(graphs) == dict.fromkeys(range(3), 10), "five steps in each of two epochs"
    epochs = [[*map(untimed, record.epochs)] for record in records]
    assert epochs == [epochs[0]] * 3
