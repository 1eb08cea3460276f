"""Whole networks where their kernels run: fused and not, beside float64."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import randomize_norms
from torch import Tensor, nn

from ecanet.attention import fused, operators
from ecanet.models import create_model
from ecanet.models.residual import ResidualEnd, set_fused

# Network, its attention, side of its images, autocast.
SMALL = [("resnet20", "eca", 32, None), ("resnet20", None, 32, torch.bfloat16)]
LARGE = [
    ("resnet18", "eca", 64, torch.bfloat16),
    ("resnet18", "srm", 64, torch.bfloat16),
    ("resnet50", "eca", 64, torch.bfloat16),
    ("resnet50", None, 64, torch.bfloat16),
    ("resnet50", "se", 64, torch.float16),
    ("mobilenet_v2", "eca", 64, torch.float16),
]
# A CPU would take minutes for the large ones, and has no kernels for float16.
NETWORKS = [("cpu", *one) for one in SMALL] + [("cuda", *one) for one in SMALL + LARGE]
LAYOUTS = [torch.channels_last, torch.contiguous_format]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Return a device that has kernels of ours."""
    found = torch.device(request.param)
    if found.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU: torch finds none that CUDA can use")
    if operators.usable_kernels(torch.zeros(1, 1, 1, 1, device=found)) is None:
        pytest.skip(f"needs kernels of ours: there are none for {found} on this machine")
    return found


@pytest.fixture(autouse=True)
def full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep TF32 out: its rounding would hide that of the fused passes."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def build(name: str, attention: str | None, device: torch.device, layout: Any) -> nn.Module:
    torch.manual_seed(0)
    model = create_model(name, num_classes=10, attention=attention)
    randomize_norms(model)
    return model.to(device, memory_format=layout)


def ends(model: nn.Module) -> int:
    return sum(isinstance(module, ResidualEnd) for module in model.modules())


def results(model: nn.Module, images: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return logits, gradients of all weights and running statistics of a training step, in float64."""
    model = copy.deepcopy(model).to(images.dtype).train()
    with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
        logits = model(images)
    labels = torch.arange(len(images), device=images.device) % 10
    wide = logits if logits.dtype == torch.float64 else logits.float()
    (256 * F.cross_entropy(wide, labels)).backward()  # small gradients would vanish in float16
    gradients = torch.cat(
        [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
    )
    statistics = [b.flatten().double() for b in model.buffers() if b.is_floating_point()]
    return {
        "logits": logits.detach().double(),
        "gradients": gradients,
        "statistics": torch.cat(statistics),
    }


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("layout", LAYOUTS, ids=["channels last", "NCHW"])
@pytest.mark.parametrize(
    ("device", "name", "attention", "side", "dtype"), NETWORKS, indirect=["device"]
)
def test_training_is_as_near_to_float64_as_one_by_one(
    name: str, attention: str | None, side: int, dtype: torch.dtype | None, layout: Any, device: torch.device
) -> None:  # fmt: skip
    model = build(name, attention, device, layout)
    images = torch.randn(8, 3, side, side, device=device)
    set_fused(model, False)
    exact = results(model, images.double(), None)
    images = images.contiguous(memory_format=layout)
    usual = results(model, images, dtype)
    set_fused(model, "auto")
    found = results(model, images, dtype)
    for key, value in found.items():
        assert torch.isfinite(value).all(), key
        # Rounding is a matter of luck: one network may be half as far off again.
        assert error(value, exact[key]) <= 1.5 * error(usual[key], exact[key]) + 1e-5, key


@pytest.mark.parametrize("layout", LAYOUTS, ids=["channels last", "NCHW"])
@pytest.mark.parametrize(
    ("device", "name", "attention", "side", "dtype"), NETWORKS, indirect=["device"]
)
def test_evaluation_is_as_near_to_float64_as_one_by_one(
    name: str, attention: str | None, side: int, dtype: torch.dtype | None, layout: Any, device: torch.device
) -> None:  # fmt: skip
    model = build(name, attention, device, layout).eval()
    images = torch.randn(8, 3, side, side, device=device)
    with torch.inference_mode():
        set_fused(model, False)
        exact = copy.deepcopy(model).double()(images.double())
        images = images.contiguous(memory_format=layout)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            usual = model(images)
            set_fused(model, "auto")
            found = model(images)
    assert error(found.double(), exact) <= 1.5 * error(usual.double(), exact) + 1e-5


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("attention", ["eca", "se", None])
def test_every_branch_ends_in_our_kernels(
    attention: str | None, training: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default, without being asked: what does not end there runs one by one."""
    called: list[str] = []

    def counting(name: str, operator: Any) -> Any:
        def call(*arguments: Any) -> Any:
            called.append(name)
            return operator(*arguments)

        return call

    counted = SimpleNamespace(**{n: counting(n, f) for n, f in vars(operators.OPERATORS).items()})
    usable = operators.usable_kernels
    monkeypatch.setattr(fused, "usable_kernels", lambda x: usable(x) and counted)
    model = build("resnet20", attention, device, torch.channels_last).train(training)
    images = torch.randn(4, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    with torch.set_grad_enabled(training), torch.autocast(device.type, torch.bfloat16):
        model(images)
    writing = [name for name in called if name in ("gate_add", "eca_add", "norm_eca")]
    assert len(writing) == ends(model) == 9


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
def test_steps_repeat_bit_by_bit(device: torch.device) -> None:
    """All sums are in a fixed order."""
    model = build("resnet20", "eca", device, torch.channels_last)
    images = torch.randn(8, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        first, second = (results(model, images, torch.bfloat16) for _ in range(2))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_a_cuda_graph_of_a_step_gives_what_the_step_gives(device: torch.device) -> None:
    """No kernel waits for the host, and none takes what it needs from there."""
    model = build("resnet20", "eca", device, torch.channels_last).eval()
    images = torch.randn(8, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
        for _ in range(2):  # the first compiles
            expected = model(images)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = model(images)
        found.zero_()
        graph.replay()
        torch.testing.assert_close(found, expected)
