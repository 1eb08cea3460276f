"""One contract for the operators of all devices: plain float64, and its gradients by autograd."""

from __future__ import annotations

import copy
import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.endings import EPS, Ending, Gate, Implementation, conv_gate, feature_map, noise
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ecanet.attention import ECA, operators

FORMATS = [torch.contiguous_format, torch.channels_last]


def many(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],  # to shrink an example takes minutes in the interpreter
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """A batch norm needs two values of each channel."""
    n, channels = draw(st.integers(1, 4)), draw(st.sampled_from([1, 5, 16, 24, 33, 70, 100]))
    h, w = draw(st.integers(1, 50)), draw(st.integers(1, 9))
    return (2 if n * h * w == 1 else n), channels, h, w


maps = {
    "shape": shapes(),
    "layout": st.sampled_from(FORMATS),
    "precision": st.integers(0, 2),
    "far": st.sampled_from([0.0, 30.0]),
}
kernel_sizes = st.sampled_from([1, 3, 5])


def assert_near(found: Tensor, exact: Tensor, parts: float = 2e-5) -> None:
    """Within ``parts`` of the largest value, or a rounding of the dtype."""
    assert found.shape == exact.shape
    size = max(1.0, exact.detach().abs().max().item())
    near = max(parts, 2 * torch.finfo(found.dtype).eps)
    torch.testing.assert_close(
        found.detach().cpu().double(), exact.detach().cpu(), rtol=near, atol=near * size
    )


class Case:
    """Random inputs of the operators, and the same in float64 with gradients."""

    def __init__(
        self, on: Implementation, shape: tuple[int, int, int, int], layout: torch.memory_format,
        precision: int, far: float = 0.0, *, shortcut: bool = False, gate: Gate | None = None,
    ) -> None:  # fmt: skip
        dtype = on.dtypes[precision % len(on.dtypes)]
        channels = shape[1]
        self.layout, self.gate = layout, gate
        self.x = feature_map(*shape, far=far).to(on.device, dtype).contiguous(memory_format=layout)
        self.shortcut = None
        if shortcut:
            self.shortcut = noise(*shape, seed=2).to(on.device, dtype)
        self.upstream = noise(*shape, seed=3).to(on.device, dtype)
        self.weight = (1 + noise(channels, seed=4) / 2).to(on.device)
        self.bias = noise(channels, seed=5).to(on.device)
        self.leaves = [
            None if t is None else t.detach().double().requires_grad_()
            for t in (self.x, self.weight, self.bias, self.shortcut)
        ]
        x, weight, bias, added = self.leaves
        assert x is not None
        assert weight is not None
        assert bias is not None
        self.exact = Ending(x, weight, bias, added, gate)

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Some other center and spread, as in evaluation."""
        return self.bias + 0.1, (self.weight.abs() + 0.5)

    def assert_map(self, found: Tensor) -> None:
        """A result is in x's dtype and memory order."""
        assert found.dtype == self.x.dtype
        assert found.is_contiguous(memory_format=self.layout)

    def exact_gradients(self, out: Tensor | None, *others: Tensor) -> list[Tensor]:
        """Of x, weight, bias, the shortcut if there is one, and others, with the ReLU of ``out``."""
        y = self.exact.before_relu()
        if out is not None:
            y = y * (out > 0)
        leaves = [leaf for leaf in (*self.leaves, *others) if leaf is not None]
        return list(torch.autograd.grad(y, leaves, self.upstream.double()))


@many(15)
@given(momentum=st.sampled_from([0.1, 1.0, None]), **maps)
def test_moments(implementation: Implementation, momentum: float | None, **of_map: Any) -> None:
    kernels, case = implementation.kernels, Case(implementation, **of_map)
    exact, x, channels = case.exact, case.x, case.x.shape[1]
    running: list[Tensor | None] = [None, None]
    if momentum is not None:
        running = [noise(channels, seed=6).to(x.device), torch.ones(channels, device=x.device)]
    norm = torch.nn.BatchNorm2d(channels, EPS, momentum or 0.1).double().to(x.device)
    if momentum is not None:
        norm.running_mean.copy_(running[0])  # type: ignore[union-attr,arg-type]
    norm(exact.x.detach())

    mean, variance, center, spread, pooled = kernels.batch_moments(
        x, case.weight, case.bias, EPS, *running, momentum or 0.0
    )

    assert_near(mean, exact.mean)
    assert_near(variance, exact.variance)
    assert_near(center, exact.center)
    assert_near(spread, exact.spread)
    assert_near(pooled, exact.pooled)
    if momentum is not None:
        assert_near(running[0], norm.running_mean)  # type: ignore[arg-type]
        assert_near(running[1], norm.running_var)  # type: ignore[arg-type]
    torch.testing.assert_close(kernels.image_moments(x), (mean, variance), rtol=1e-5, atol=1e-5)
    center, spread = case.statistics
    found = kernels.normalized_means(mean, case.weight, case.bias, center, spread, EPS)
    assert_near(found, exact.normalized(center.double(), spread.double()).mean((2, 3)), 1e-4)


@pytest.mark.parametrize("layout", FORMATS)
def test_variances_far_from_zero(
    implementation: Implementation, layout: torch.memory_format
) -> None:
    """Sums of squares would lose all digits."""
    x = (noise(3, 5, 20, 30) + 5000).to(implementation.device).contiguous(memory_format=layout)
    _, variance, center, spread, _ = implementation.kernels.batch_moments(
        x, torch.ones(5, device=x.device), torch.zeros(5, device=x.device), EPS, None, None, 0.0
    )
    assert_near(variance, x.double().var((2, 3), correction=0), 1e-3)
    assert_near(center, x.double().mean((0, 2, 3)), 1e-6)
    assert_near(spread, x.double().var((0, 2, 3), correction=0), 1e-3)


@many(20)
@given(
    gated=st.booleans(), shortcut=st.booleans(), relu=st.booleans(), in_place=st.booleans(), **maps
)
def test_gate_add(
    implementation: Implementation, gated: bool, shortcut: bool, relu: bool, in_place: bool,
    **of_map: Any,
) -> None:  # fmt: skip
    case = Case(implementation, shortcut=shortcut, **of_map)
    center, spread = case.statistics
    exact = case.exact.normalized(center.double(), spread.double())
    gate = None
    if gated:
        gate = noise(*exact.shape[:2], seed=7).to(case.x.device)
        exact = exact * gate.double()[:, :, None, None]
    if case.shortcut is not None:
        exact = exact + case.shortcut.double()
    if relu:
        exact = torch.relu(exact)
    out = case.x if in_place else torch.empty_like(case.x)
    implementation.kernels.gate_add(
        case.x, gate, case.shortcut, case.weight, case.bias, center, spread, EPS, relu, out
    )
    assert_near(out, exact)


def smooth(mean: Tensor, variance: Tensor) -> Tensor:
    """Some gate of both moments."""
    return torch.sigmoid(mean - 0.5 * variance + 0.3 * mean.flip(1))


def of_means(mean: Tensor, variance: Tensor) -> Tensor:
    """Some gate of the means."""
    return torch.tanh(mean + 0.3 * mean.flip(1))


@many(20)
@given(
    gate=st.sampled_from([None, of_means, smooth]),
    shortcut=st.booleans(),
    relu=st.booleans(),
    **maps,
)
def test_training(
    implementation: Implementation, gate: Gate | None, shortcut: bool, relu: bool, **of_map: Any
) -> None:
    """Forward and backward, one operator after the other, around a gate of autograd."""
    kernels, case = (
        implementation.kernels,
        Case(implementation, shortcut=shortcut, gate=gate, **of_map),
    )
    x, weight, bias = case.x, case.weight, case.bias
    mean, variance, center, spread, pooled = kernels.batch_moments(
        x, weight, bias, EPS, None, None, 0.0
    )
    norm = weight, bias, center, spread, EPS
    inputs = [pooled.clone().requires_grad_()]
    inputs += [(variance * weight.square() / (spread + EPS)).requires_grad_()]
    factors = None if gate is None else gate(*inputs)
    known = None if factors is None else factors.detach()
    y = torch.empty_like(x)
    kernels.gate_add(x, known, case.shortcut, *norm, relu, y)
    out = y if relu else None
    passed, of_shift, of_scale, grad_gate = kernels.gate_add_backward(
        case.upstream, out, x, known, *norm
    )
    of_moments: list[Tensor | None] = [None, None]
    if factors is None:
        assert grad_gate.shape == (0,)
    else:
        grads = torch.autograd.grad(factors, inputs, grad_gate, allow_unused=True)
        of_moments = list(grads)
    if out is None:
        assert passed.shape == (0,)
        passed = case.upstream
    grad_x, grad_weight, grad_bias = kernels.norm_backward(
        passed,
        x,
        known,
        of_shift,
        of_scale,
        *of_moments,
        mean,
        variance,
        weight,
        center,
        spread,
        EPS,
    )

    before = case.exact.before_relu()
    assert_near(y, torch.relu(before) if relu else before, 1e-4)
    case.assert_map(grad_x)
    exact_passed = case.upstream.double() * (1 if out is None else out > 0)
    from_center = case.exact.x - case.exact.center[:, None, None]
    assert_near(of_shift, exact_passed.sum((2, 3)))
    assert_near(of_scale, (exact_passed * from_center).sum((2, 3)))
    found = [grad_x, grad_weight, grad_bias] + ([] if case.shortcut is None else [passed])
    for one, exact in zip(found, case.exact_gradients(out), strict=True):
        assert_near(one, exact, 1e-4)


@many(15)
@given(n=st.integers(1, 4), channels=st.sampled_from([1, 5, 16, 33, 300]), k=kernel_sizes)
def test_eca_gate(implementation: Implementation, n: int, channels: int, k: int) -> None:
    kernels, device = implementation.kernels, implementation.device
    pooled, upstream = noise(n, channels).to(device), noise(n, channels, seed=1).to(device)
    kernel = noise(1, 1, k, seed=2).to(device)
    exact_pooled, exact_kernel = (t.double().requires_grad_() for t in (pooled, kernel))
    exact = conv_gate(exact_pooled, exact_kernel)
    exact.backward(upstream.double())

    gate = kernels.eca_gate(pooled, kernel)
    grad_pooled, grad_kernel = kernels.eca_gate_backward(upstream, gate, pooled, kernel)

    assert_near(gate, exact)
    assert_near(grad_pooled, exact_pooled.grad)  # type: ignore[arg-type]
    assert_near(grad_kernel, exact_kernel.grad.view(k))  # type: ignore[union-attr]


@many(15)
@given(
    k=st.one_of(st.none(), kernel_sizes), shortcut=st.booleans(), relu=st.booleans(),
    running=st.booleans(), **maps,
)  # fmt: skip
def test_norm_eca(
    implementation: Implementation, k: int | None, shortcut: bool, relu: bool, running: bool,
    **of_map: Any,
) -> None:  # fmt: skip
    """The whole end of a branch with ECA, or without a gate."""
    kernels, device = implementation.kernels, implementation.device
    kernel = None if k is None else noise(1, 1, k, seed=8).to(device)
    exact_kernel = None if kernel is None else kernel.double().requires_grad_()

    def eca(mean: Tensor, variance: Tensor) -> Tensor:
        assert exact_kernel is not None
        return conv_gate(mean, exact_kernel)

    case = Case(implementation, shortcut=shortcut, gate=None if k is None else eca, **of_map)
    x, weight, bias = case.x, case.weight, case.bias
    norm = torch.nn.BatchNorm2d(x.shape[1], EPS).to(device)
    statistics = (norm.running_mean, norm.running_var) if running else (None, None)
    y, saved = kernels.norm_eca(
        x, weight, bias, EPS, kernel, case.shortcut, *statistics, 0.1 if running else 0.0, relu
    )
    out = y if relu else None
    grad_x, grad_weight, grad_bias, grad_kernel, passed = kernels.norm_eca_backward(
        case.upstream, out, x, weight, bias, EPS, kernel, saved
    )

    before = case.exact.before_relu()
    assert_near(y, torch.relu(before) if relu else before, 1e-4)
    case.assert_map(y)
    case.assert_map(grad_x)
    if running:
        exact_norm = torch.nn.BatchNorm2d(x.shape[1], EPS).double().to(device)
        exact_norm(x.double())
        assert_near(norm.running_mean, exact_norm.running_mean)  # type: ignore[arg-type]
        assert_near(norm.running_var, exact_norm.running_var)  # type: ignore[arg-type]
    assert passed.shape == (x.shape if relu else (0,))
    found = [grad_x, grad_weight, grad_bias]
    found += [] if case.shortcut is None else [passed if relu else case.upstream]
    exact = case.exact_gradients(out, *([] if exact_kernel is None else [exact_kernel]))
    if exact_kernel is not None:
        found.append(grad_kernel.view(1, 1, -1))
    else:
        assert grad_kernel.shape == (0,)
    for one, wanted in zip(found, exact, strict=True):
        assert_near(one, wanted, 1e-4)


@many(8)
@given(k=kernel_sizes, shortcut=st.booleans(), relu=st.booleans(), in_place=st.booleans(), **maps)
def test_eca_add(
    implementation: Implementation,
    k: int,
    shortcut: bool,
    relu: bool,
    in_place: bool,
    **of_map: Any,
) -> None:
    case = Case(implementation, shortcut=shortcut, **of_map)
    kernel = noise(1, 1, k, seed=8).to(case.x.device)
    center, spread = case.statistics
    exact = case.exact.normalized(center.double(), spread.double())
    exact = exact * conv_gate(exact.mean((2, 3)), kernel.double())[:, :, None, None]
    if case.shortcut is not None:
        exact = exact + case.shortcut.double()
    out = case.x if in_place else torch.empty_like(case.x)
    implementation.kernels.eca_add(
        case.x, kernel, case.shortcut, case.weight, case.bias, center, spread, EPS, relu, out
    )
    assert_near(out, torch.relu(exact) if relu else exact, 1e-4)


@many(10)
@given(k=kernel_sizes, **maps)
def test_eca(implementation: Implementation, k: int, **of_map: Any) -> None:
    """ECA alone."""
    kernels, case = implementation.kernels, Case(implementation, **of_map)
    kernel = noise(1, 1, k, seed=8).to(case.x.device)
    exact_x, exact_kernel = (t.double().requires_grad_() for t in (case.x, kernel))
    exact_mean = exact_x.mean((2, 3))
    exact_gate = conv_gate(exact_mean, exact_kernel)
    exact = exact_x * exact_gate[:, :, None, None]
    exact.backward(case.upstream.double())

    out, mean, gate = kernels.eca(case.x, kernel)
    grad_x, grad_kernel = kernels.eca_backward(case.upstream, case.x, kernel, mean, gate)

    case.assert_map(out)
    case.assert_map(grad_x)
    assert_near(out, exact)
    assert_near(mean, exact_mean)
    assert_near(gate, exact_gate)
    assert_near(grad_x, exact_x.grad)  # type: ignore[arg-type]
    assert_near(grad_kernel, exact_kernel.grad.view(k), 1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize("layout", FORMATS)
def test_nan_passes_the_relu(implementation: Implementation, layout: torch.memory_format) -> None:
    """A network that diverges shows it."""
    kernels, case = implementation.kernels, Case(implementation, (2, 5, 3, 4), layout, 0)
    case.x[1, 2, 1, 1] = torch.nan
    norm = case.weight, case.bias, *case.statistics, EPS
    out = torch.empty_like(case.x)
    kernels.gate_add(case.x, None, None, *norm, True, out)
    assert torch.equal(out.isnan(), case.x.isnan())
    passed, of_shift, of_scale, _ = kernels.gate_add_backward(
        case.upstream, out, case.x, None, *norm
    )
    assert torch.equal(passed, torch.where(out <= 0, 0.0, case.upstream))
    assert passed[1, 2, 1, 1] == case.upstream[1, 2, 1, 1]
    assert of_scale.isnan().sum() == 1
    assert of_scale[1, 2].isnan()
    assert not of_shift.isnan().any()
    _, _, center, _, _ = kernels.batch_moments(case.x, case.weight, case.bias, EPS, None, None, 0.0)
    assert torch.equal(center.isnan().cpu(), torch.arange(5) == 2)


def test_results_are_repeated_exactly(implementation: Implementation) -> None:
    """Sums have a fixed order."""
    kernels, case = implementation.kernels, Case(implementation, (4, 33, 20, 9), FORMATS[1], 0)
    kernel = noise(3, seed=8).to(case.x.device)

    def results() -> list[Tensor]:
        out, saved = kernels.norm_eca(
            case.x, case.weight, case.bias, EPS, kernel, None, None, None, 0.0, True
        )
        grads = kernels.norm_eca_backward(
            case.upstream, out, case.x, case.weight, case.bias, EPS, kernel, saved
        )
        return [out, *grads]

    assert all(map(torch.equal, results(), results()))


# ---- as operators of torch


def test_operators_pass_torchs_checks(implementation: Implementation) -> None:
    """Schemas, with what is changed and aliased, and fake tensors; under a name that no other test has."""
    kernels, device = implementation.kernels, implementation.device
    with torch.library._scoped_library("ecanet_under_test", "DEF") as library:
        for name, schema in operators.SCHEMAS.items():
            library.define(name + schema)
            library.impl(name, getattr(kernels, name), "CUDA" if device == "cuda" else "CPU")
            torch.library.register_fake(
                f"ecanet_under_test::{name}", operators._FAKES[name], lib=library
            )
        for name, arguments in _arguments(implementation).items():
            # What norm_eca saves is each implementation's own.
            checks = ["test_schema"] + ["test_faketensor"] * (name != "norm_eca")
            operator = getattr(torch.ops.ecanet_under_test, name).default
            for given_arguments in arguments:
                torch.library.opcheck(operator, given_arguments, test_utils=checks)


def _arguments(on: Implementation) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments of each operator: with all that is optional, then without."""

    def make(*shape: int) -> Tensor:
        return noise(*shape, seed=len(shape)).to(on.device)

    x, channel, image, kernel = make(2, 5, 3, 4), make(5), make(2, 5), make(1, 1, 3)
    x = x.contiguous(memory_format=torch.channels_last)
    norm = channel, channel, channel, channel.abs(), EPS
    sums = image, image
    calls: dict[str, list[tuple[Any, ...]]] = {
        "image_moments": [(x,)],
        "batch_moments": [
            (x, channel, channel, EPS, make(5), make(5).abs(), 0.1),
            (x, channel, channel, EPS, None, None, 0.0),
        ],
        "normalized_means": [(image, *norm)],
        "gate_add": [
            (x, image, make(2, 5, 3, 4), *norm, True, torch.empty_like(x)),
            (x, None, None, *norm, False, torch.empty_like(x)),
        ],
        "gate_add_backward": [(x, x.clone(), x, image, *norm), (x, None, x, None, *norm)],
        "norm_backward": [
            (x, x, image, *sums, *sums, image, image.abs(), channel, *norm[2:]),
            (x, x, None, *sums, None, None, image, image.abs(), channel, *norm[2:]),
        ],
        "eca_gate": [(image, kernel)],
        "eca_gate_backward": [(image, image, image, kernel)],
        "eca_add": [(x, kernel, None, *norm, True, torch.empty_like(x))],
        "eca": [(x, kernel)],
        "eca_backward": [(x, x, kernel, image, image)],
        "norm_eca": [
            (x, channel, channel, EPS, kernel, x.clone(), make(5), make(5).abs(), 0.1, True),
            (x, channel, channel, EPS, None, None, None, None, 0.0, False),
        ],
    }
    of_saved = []
    for arguments in calls["norm_eca"]:
        out, saved = on.kernels.norm_eca(*arguments)
        norm_and_kernel = channel, channel, EPS, arguments[4]
        of_saved.append((x, out if arguments[-1] else None, x, *norm_and_kernel, saved))
    return calls | {"norm_eca_backward": of_saved}


# ---- which tensors are given to them


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return what stands for the kernels of CPUs."""
    stub = ModuleType("kernels")
    monkeypatch.setattr(operators, "_cpu_kernels", lambda: stub)
    return stub


def test_which_tensors_use_kernels(monkeypatch: pytest.MonkeyPatch, cpu: ModuleType) -> None:
    x = torch.empty(1, 2, 3, 3)
    assert operators.usable_kernels(x) is cpu
    assert operators.usable_kernels(x.bfloat16()) is cpu
    for dtype in (torch.float64, torch.float16, torch.int64):
        assert operators.usable_kernels(x.to(dtype)) is None
    assert operators.usable_kernels(x.to("meta")) is None
    # By way of the dispatcher where something listens to it.
    with FakeTensorMode() as mode:
        assert operators.usable_kernels(mode.from_tensor(x)) is operators.OPERATORS
    with FlopCounterMode(display=False):
        assert operators.usable_kernels(x) is operators.OPERATORS
    monkeypatch.setattr(operators, "_cpu_kernels", lambda: None)
    assert operators.usable_kernels(x) is None


def test_tensors_are_made_dense() -> None:
    x = torch.empty(2, 3, 4, 5)
    for dense in (x, x.contiguous(memory_format=torch.channels_last)):
        assert operators.in_memory_format(dense) is dense
    assert operators.in_memory_format(x.transpose(2, 3)).is_contiguous()


def test_no_kernels_where_operations_are_transformed_or_recorded(cpu: ModuleType) -> None:
    answers = []

    def ask(x: Tensor) -> Tensor:
        answers.append(operators.usable_kernels(x))
        return x.sum() + (answers[-1] is not None)

    x = torch.ones(2, 3, 4, 5)
    torch.func.grad(ask)(x)
    torch.func.vmap(ask)(x)
    torch.func.jvp(ask, (x,), (x,))
    torch.jit.trace(ask, x, check_trace=False)
    assert answers == [None] * 4
    ask(x)
    assert answers[-1] is cpu

    def compiled(x: Tensor) -> Tensor:
        return x if operators.usable_kernels(x) is None else x + 1

    assert torch.equal(torch.compile(compiled, backend="eager", fullgraph=True)(x), x)


def test_a_failing_first_launch_is_told_once(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton needs a C compiler when it first launches a kernel: without one, all runs without kernels."""

    def fail(x: Tensor) -> None:
        raise RuntimeError("Compilation failed\nFailed to find C compiler.")

    class OnGPU:
        is_cuda, dtype = True, torch.float32

    monkeypatch.setattr(kernels, "image_moments", fail)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: torch.empty(shape))
    operators._gpu_kernels.cache_clear()
    x: Any = OnGPU()
    with caplog.at_level(logging.WARNING):
        assert operators.usable_kernels(x) is None
        assert operators.usable_kernels(x) is None
    operators._gpu_kernels.cache_clear()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("attention is not fused on the GPU")
    assert message.endswith("Failed to find C compiler.")


def test_eca_has_second_derivatives() -> None:
    """Those of PyTorch, also where the gradient that arrives is a constant."""
    torch.manual_seed(0)
    module, x = ECA(4), torch.randn(2, 4, 3, 3)
    found = torch.autograd.functional.hessian(lambda t: module(t).sum(), x)
    exact = copy.deepcopy(module).double()
    expected = torch.autograd.functional.hessian(lambda t: exact(t).sum(), x.double())
    assert expected.norm() > 1e-3
    torch.testing.assert_close(found, expected.float())
    together = torch.autograd.functional.jacobian(module, x, vectorize=True)
    torch.testing.assert_close(together, torch.autograd.functional.jacobian(module, x))


def test_overrides_of_ecas_gate_are_kept() -> None:
    class Half(ECA):
        def factors(self, *moments: Tensor) -> Tensor:
            return super().factors(*moments) / 2

    x, whole, half = torch.randn(2, 4, 3, 3), ECA(4), Half(4)
    half.load_state_dict(whole.state_dict())
    torch.testing.assert_close(half(x), whole(x) / 2)
    whole.gate = torch.ones_like  # type: ignore[method-assign,assignment]
    torch.testing.assert_close(whole(x), x)


@pytest.mark.slow
def test_kernels_are_compiled_where_and_as_often_as_needed(tmp_path: Path) -> None:
    """By several processes at once; again where the library is damaged; not without a compiler."""
    if importlib.import_module("ecanet.attention.cpu_kernels").available() is False:
        pytest.skip("the kernels for CPUs cannot be compiled here")
    program = "from ecanet.attention.cpu_kernels import available; print(available())"

    def start(**known: str) -> subprocess.Popen[str]:
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)} | known
        command = [sys.executable, "-c", program]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)

    for process in [start(), start()]:
        assert process.communicate()[0] == "True\n"
    (library,) = (tmp_path / "ecanet").iterdir()
    library.write_bytes(b"damaged")
    assert start().communicate()[0] == "True\n"
    assert library.stat().st_size > 10_000
    for broken in ('"', "/nowhere/c++", "false"):
        output, warning = start(CXX=broken).communicate()
        assert output == "False\n"
        assert "without its kernels for CPUs" in warning
    assert list((tmp_path / "ecanet").iterdir()) == [library]
