"""The fused passes against separate layers in float64: values, all gradients, statistics."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ecanet.attention import create_attention, fused
from ecanet.attention.fused import (
    gated_norm,
    gated_norm_in_evaluation,
    mean_of_conv,
    means_are_cheaper_before,
)
from ecanet.attention.gate import PooledGate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPECS = ["eca", "eca_circular", "eca_ns", "se", "se_var1", "se_var2", "se_var3", "srm"]
FORMATS = [torch.contiguous_format, torch.channels_last]

many = settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Branch:
    """The end of a residual branch with random weights, its inputs, and both ways to compute it."""

    def __init__(
        self, spec: str, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format,
        *, shortcut: bool, relu: bool, momentum: float | None = 0.1, far: float = 0.0,
    ) -> None:  # fmt: skip
        torch.manual_seed(0)
        self.relu = relu
        self.norm = nn.BatchNorm2d(shape[1], momentum=momentum)
        nn.init.normal_(self.norm.weight, 1, 0.5)
        nn.init.normal_(self.norm.bias)
        self.norm.running_mean.normal_()  # type: ignore[union-attr]
        self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        self.gate = create_attention(spec, shape[1])
        for parameter in self.gate.parameters():
            nn.init.normal_(parameter, std=0.5)
        x = torch.randn(shape) + far * torch.randn(shape[1], 1, 1)
        self.x = x.to(dtype).contiguous(memory_format=layout)
        self.shortcut = None
        if shortcut or relu:
            added = torch.randn(shape)
            if relu:
                # No value lies so near to the ReLU's corner that rounding moves it across.
                branch = copy.deepcopy(self).to(torch.float64)
                branch.shortcut = None
                before = branch.one_by_one(relu=False).detach().float().cpu() + added
                added += 0.5 * before.sign()
            self.shortcut = added.to(dtype).contiguous(memory_format=layout)
        self.grad = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
        self.to(dtype if dtype == torch.float64 else None)

    def to(self, dtype: torch.dtype | None) -> Branch:
        for module in (self.norm, self.gate):
            module.to(DEVICE, dtype)
        for name in ("x", "shortcut", "grad"):
            value = getattr(self, name, None)
            setattr(self, name, None if value is None else value.to(DEVICE, dtype))
        return self

    def one_by_one(self, relu: bool | None = None) -> Tensor:
        y = self.gate(self.norm(self.x).to(self.x.dtype))
        if self.shortcut is not None:
            y = y + self.shortcut
        return torch.relu(y) if (self.relu if relu is None else relu) else y

    def at_once(self) -> Tensor:
        gate: Any = self.gate
        return gated_norm(self.x, self.norm, gate, self.shortcut, self.relu)

    def results(self, way: str) -> dict[str, Tensor]:
        """Output, gradients of all inputs and weights, and running statistics, in float64."""
        inputs = {"x": self.x, "shortcut": self.shortcut}
        inputs = {k: v.requires_grad_() for k, v in inputs.items() if v is not None}
        output = getattr(self, way)()
        assert output.dtype == self.x.dtype
        output.backward(self.grad)
        found = {"output": output} | {f"grad of {k}": v.grad for k, v in inputs.items()}
        for module in (self.norm, self.gate):
            for name, parameter in module.named_parameters():
                found[f"grad of {type(module).__name__}.{name}"] = parameter.grad
            found |= dict(module.named_buffers())
        return {name: value.detach().to(torch.float64) for name, value in found.items()}


def assert_as_good_as_one_by_one(branch: Branch) -> None:
    """The fused result is as close to float64 as that of separate layers in the same dtype."""
    exact = copy.deepcopy(branch).to(torch.float64).results("one_by_one")
    usual = copy.deepcopy(branch).results("one_by_one")
    found = branch.results("at_once")
    assert found.keys() == exact.keys()
    rounding = max(4 * torch.finfo(branch.x.dtype).eps, 1e-12)
    for name, value in found.items():
        size = max(1.0, exact[name].abs().max(), branch.x.detach().abs().max())  # type: ignore[call-overload]
        allowed = 8 * (usual[name] - exact[name]).abs().max() + rounding * size
        error = (value - exact[name]).abs().max()
        assert error <= allowed, f"{name}: {error} from float64, {allowed} allowed"


branches = {
    "spec": st.sampled_from(SPECS),
    "n": st.integers(1, 4),
    "channels": st.sampled_from([8, 16, 33, 70]),
    "size": st.tuples(st.integers(1, 9), st.integers(1, 9)),
    "layout": st.sampled_from(FORMATS),
    "shortcut": st.booleans(),
    "relu": st.booleans(),
    "momentum": st.sampled_from([0.1, 0.7, None]),
    "far": st.sampled_from([0.0, 30.0]),
}


def draw(spec: str, n: int, channels: int, size: tuple[int, int], **kwargs: Any) -> Branch:
    if n == 1 and (spec == "srm" or size == (1, 1)):
        n = 2  # a batch norm needs two values
    return Branch(spec, (n, channels, *size), **kwargs)


@many
@given(dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]), **branches)
def test_training_in_pytorch(dtype: torch.dtype, **kwargs: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "usable_kernels", lambda x: None)
        assert_as_good_as_one_by_one(draw(dtype=dtype, **kwargs))


@many
@given(dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), **branches)
def test_training_in_kernels(kernels: ModuleType, dtype: torch.dtype, **kwargs: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "usable_kernels", lambda x: kernels)
        assert_as_good_as_one_by_one(draw(dtype=dtype, **kwargs))


@pytest.mark.parametrize("spec", ["eca", "srm"])
@pytest.mark.parametrize("shortcut", [True, False])
def test_gradcheck(spec: str, shortcut: bool) -> None:
    branch = Branch(
        spec, (2, 3, 2, 2), torch.float64, torch.contiguous_format, shortcut=shortcut, relu=shortcut
    )
    tensors = [branch.x, branch.norm.weight, branch.norm.bias, *branch.gate.parameters()]
    tensors = [t.requires_grad_() for t in [*tensors, branch.shortcut] if t is not None]

    def output(*_: Tensor) -> Tensor:
        return branch.at_once()

    branch.norm.momentum = 0.0
    assert torch.autograd.gradcheck(output, tensors)


@pytest.mark.parametrize("through_kernels", [False, True])
@pytest.mark.parametrize("spec", ["eca", "se", "srm"])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shortcut", [True, False])
def test_evaluation(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, through_kernels: bool,
    spec: str, layout: torch.memory_format, kernel: int, shortcut: bool,
) -> None:  # fmt: skip
    """In float32, as the kernels do not support float64."""
    chosen = request.getfixturevalue("kernels") if through_kernels else None
    monkeypatch.setattr(fused, "usable_kernels", lambda x: chosen)
    branch = Branch(spec, (2, 48, 6, 7), torch.float32, layout, shortcut=shortcut, relu=shortcut)
    branch.norm.eval()
    branch.gate.eval()
    conv = nn.Conv2d(8, 48, kernel, padding=kernel // 2, bias=False).to(DEVICE)
    z = torch.randn(2, 8, 6, 7).contiguous(memory_format=layout).to(DEVICE)
    gate: Any = branch.gate
    with torch.no_grad():
        branch.x = conv(z)
        expected = branch.one_by_one()
        found = gated_norm_in_evaluation(conv, branch.norm, gate, z, branch.shortcut, branch.relu)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.stride() == expected.stride()


@many
@given(
    n=st.integers(1, 3),
    size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    kernel=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    layout=st.sampled_from(FORMATS),
)
def test_mean_of_conv(
    n: int, size: tuple[int, int], kernel: tuple[int, int], dilation: tuple[int, int], groups: int,
    bias: bool, layout: torch.memory_format,
) -> None:  # fmt: skip
    """Also where the kernel is larger than the image."""
    torch.manual_seed(0)
    padding = [d * (k // 2) for k, d in zip(kernel, dilation, strict=True)]
    conv = nn.Conv2d(4, 6, kernel, padding=padding, dilation=dilation, groups=groups, bias=bias)  # type: ignore[arg-type]
    conv = conv.to(torch.float64, memory_format=layout)  # type: ignore[call-overload]
    z = torch.randn(n, 4, *size, dtype=torch.float64).contiguous(memory_format=layout)
    torch.testing.assert_close(mean_of_conv(conv, z), conv(z).mean((2, 3)))


def test_means_are_taken_where_that_is_cheaper() -> None:
    z = torch.empty(8, 64, 56, 56)
    assert means_are_cheaper_before(nn.Conv2d(64, 256, 1), z)
    assert not means_are_cheaper_before(nn.Conv2d(64, 16, 1), z)
    assert not means_are_cheaper_before(nn.Conv2d(64, 256, 1, stride=2), z)
    assert not means_are_cheaper_before(nn.Conv2d(64, 256, 3), z)
    # As many weights as values to sum.
    assert not means_are_cheaper_before(nn.Conv2d(64, 256, 1), z[:1, :, :8, :8])


def test_moments_have_the_dtype_of_the_gate() -> None:
    gate = create_attention("se", 16).to(torch.bfloat16)
    assert isinstance(gate, PooledGate)
    assert gate.factors(torch.randn(2, 16)).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert create_attention("se", 16).factors(torch.randn(2, 16)).dtype == torch.bfloat16
