"""The Triton kernels alone: ECA against its float64 module, and torch's checks of the operators."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ecanet.attention import ECA, backend, eca

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    n=st.integers(1, 3),
    channels=st.sampled_from([1, 5, 16, 70]),
    size=st.tuples(st.integers(1, 50), st.integers(1, 9)),
    kernel_size=st.sampled_from([1, 3, 7]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_eca(
    kernels: ModuleType, n: int, channels: int, size: tuple[int, int], kernel_size: int,
    layout: torch.memory_format, dtype: torch.dtype,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    module = ECA(channels, kernel_size=min(kernel_size, 2 * channels - 1)).to(DEVICE)
    x = (torch.randn(n, channels, *size) + 1).to(DEVICE, dtype).contiguous(memory_format=layout)
    upstream = torch.randn(x.shape).to(DEVICE, dtype)

    exact, exact_x = copy.deepcopy(module).double(), x.double().requires_grad_()
    exact(exact_x).backward(upstream.double())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eca, "usable_kernels", lambda x: kernels)
        y = module(x.requires_grad_())
    y.backward(upstream)

    assert y.dtype == dtype
    assert y.stride() == x.stride()
    near = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(y, exact(exact_x).to(dtype), **near)
    torch.testing.assert_close(x.grad, exact_x.grad.to(dtype), **near)  # type: ignore[union-attr]
    # A sum over all values, in float32.
    weight, expected = module.conv.weight.grad, exact.conv.weight.grad
    assert weight is not None
    assert expected is not None
    torch.testing.assert_close(weight, expected.float(), rtol=1e-4, atol=1e-4)


def test_operators_pass_torchs_checks(kernels: ModuleType) -> None:
    """Schema, fake tensors, autograd registration and torch.compile."""

    def wanting(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE, requires_grad=True)

    x = wanting(2, 5, 3, 4)
    torch.library.opcheck(kernels.eca, (x, wanting(1, 1, 3)))
    # The gradients of these two mean something together only: values are compared below.
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(kernels.image_moments, (x,), test_utils=checks)
    *_, carrier_x, carrier_scale = (t.detach().requires_grad_() for t in kernels.image_moments(x))
    arguments = (x, wanting(5), wanting(2, 5), wanting(2, 5), wanting(2, 5, 3, 4), True)
    arguments += (carrier_x, carrier_scale)
    torch.library.opcheck(kernels.scale_shift_add, arguments, test_utils=checks)


@pytest.mark.slow
def test_compiled_through_the_operators(kernels: ModuleType) -> None:
    """As one graph: torch.compile keeps the operators and their backward passes."""
    torch.manual_seed(0)
    x, added = torch.randn(2, 2, 5, 3, 4, device=DEVICE).requires_grad_()

    def run(x: Tensor, added: Tensor) -> Tensor:
        mean, variance, *grad_route = kernels.image_moments(x)
        gate = torch.sigmoid(mean + variance)
        return kernels.scale_shift_add(x, mean.mean(0), gate, -gate, added, True, *grad_route)

    expected = torch.autograd.grad(run(x, added).square().sum(), (x, added))
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(x, added).square().sum(), (x, added))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [(28, 28), (30, 17), (31, 31), (37, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_strips_do_not_change_results(
    kernels: ModuleType, size: tuple[int, int], layout: torch.memory_format
) -> None:
    """Moments and gradients do not depend on the number of programs per image."""
    torch.manual_seed(0)
    x = (torch.randn(2, 70, *size) * 3 + 100).to(DEVICE).contiguous(memory_format=layout)
    strips = kernels._strips(x)
    assert size[0] * size[1] % strips == 0
    if layout == torch.channels_last:
        # 961 has no divisor of a use.
        assert (strips > 1) == (size in [(28, 28), (30, 17)])
    mean, variance, *grad_route = kernels.image_moments(x)
    exact = x.double()
    torch.testing.assert_close(mean, exact.mean((2, 3)).float())
    wanted = exact.var((2, 3), correction=0).float()
    torch.testing.assert_close(variance, wanted, rtol=1e-4, atol=1e-4)
    center, upstream = mean.mean(0), torch.randn_like(x)
    scale = torch.randn(2, 70, device=DEVICE, requires_grad=True)
    shift = torch.randn(2, 70, device=DEVICE, requires_grad=True)
    y = kernels.scale_shift_add(x, center, scale, shift, None, True, *grad_route)
    y.backward(upstream)
    passed = upstream.double() * (y > 0)
    product = (passed * (exact - center.double()[:, None, None])).sum((2, 3))
    torch.testing.assert_close(shift.grad, passed.sum((2, 3)).float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scale.grad, product.float(), rtol=1e-4, atol=1e-3)


def test_which_tensors_use_kernels() -> None:
    assert backend.usable_kernels(torch.empty(1, 2, 3, 3)) is None  # a CPU's tensor
    x = torch.empty(2, 3, 4, 5)
    for dense in (x, x.contiguous(memory_format=torch.channels_last)):
        assert backend.in_memory_format(dense) is dense
    assert backend.in_memory_format(x.transpose(2, 3)).is_contiguous()


_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ecanet.attention import kernels

CONSTANTS = {"BLOCK_C": 64, "BLOCK_P": 32, "VARIANCE": True, "SHORTCUT": True, "RELU": True, "K": 5}
LARGE = {"x", "out", "grad_out", "grad_x", "carried", "passed", "shortcut"}
NUMBERS = {"C", "P", "tiles", "strips", "stride_c", "stride_p"}
# A number that is 1 is a constant to the compiler.
ONES = [(), ("stride_c",), ("strips", "tiles"), ("strips", "tiles", "C", "P", "stride_c", "stride_p")]
for name, kernel in vars(kernels).items():
    if name.endswith("_kernel"):
        for ones in ONES:
            known = CONSTANTS | dict.fromkeys(ones, 1)
            signature, constants = {}, {}
            for i, argument in enumerate(kernel.arg_names):
                if argument in known:
                    signature[argument], constants[(i,)] = "constexpr", known[argument]
                elif argument in NUMBERS:
                    signature[argument] = "i32"
                else:
                    signature[argument] = "*bf16" if argument in LARGE else "*fp32"
            source = ASTSource(kernel, signature, constexprs=constants)
            code = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
            assert ".visible .entry" in code, name
        print(name)
"""


@pytest.mark.slow
def test_kernels_compile_without_a_gpu() -> None:
    """The interpreter accepts more than the compiler. Triton can compile for sm_90 without a GPU."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 9
