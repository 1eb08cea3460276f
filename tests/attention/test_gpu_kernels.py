"""What only the Triton kernels have: strips, blocks, and code for a GPU. Results: test_operators.py."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from helpers.endings import EPS, feature_map, noise
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = [torch.contiguous_format, torch.channels_last]


def _results(kernels: ModuleType, x: Tensor) -> list[Tensor]:
    """What is summed over strips: of all operators with a reduction."""
    channels = x.shape[1]
    weight, bias, kernel = (noise(k, seed=k).to(DEVICE) for k in (channels, channels, 3))
    upstream = noise(*x.shape).to(DEVICE)
    moments = kernels.batch_moments(x, weight, bias, EPS, None, None, 0.0)
    mean, _, center, spread, _ = moments
    norm = weight, bias, center, spread, EPS
    results = [*moments, *kernels.image_moments(x)]
    results += kernels.gate_add_backward(upstream, x, x, mean, *norm)[1:]
    results += kernels.eca_backward(upstream, x, kernel, mean, mean.sigmoid())
    for given_kernel in (None, kernel):
        out, saved = kernels.norm_eca(
            x, weight, bias, EPS, given_kernel, None, None, None, 0.0, True
        )
        grads = kernels.norm_eca_backward(upstream, out, x, weight, bias, EPS, given_kernel, saved)
        results += [out, *grads]
    return results


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "strips", "rows"), [((12, 7), 7, 2), ((12, 7), 7, 64), ((89, 1), 1, 2)]
)
def test_strips_and_blocks_do_not_change_results(
    kernels: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    strips: int,
    rows: int,
) -> None:
    """There may be more strips than a block of vectors has rows, and fewer."""
    x = feature_map(2, 12, *size, far=30).to(DEVICE).contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(kernels, "_PROGRAMS", 1)
    assert kernels._plan(x).strips == 1
    expected = _results(kernels, x)
    sizes = {"_TILE": 64, "_BLOCK_C": 8, "_PROGRAMS": 48, "_ROWS": rows, "_CHANNELS": 8}
    for name, value in sizes.items():
        monkeypatch.setattr(kernels, name, value)
    assert kernels._plan(x).strips == strips  # 89 has no divisors
    for found, wanted in zip(_results(kernels, x), expected, strict=True):
        size_of_values = max(1.0, wanted.abs().max().item()) if wanted.numel() else 1.0
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5 * size_of_values)


def test_strips_cover_an_image_in_equal_lengths(kernels: ModuleType) -> None:
    for n, channels, pixels in [
        (256, 256, 56 * 56),
        (1, 2048, 49),
        (2, 64, 200 * 336),
        (1, 3, 961),
    ]:
        for last in (False, True):
            plan = kernels._planned(n, channels, pixels, last, 2048, 64, 2048)
            assert pixels % plan.strips == 0
            assert plan.block_c * plan.block_p <= 2048
            programs = n * -(-channels // plan.block_c) * plan.strips
            assert plan.strips == 1 or programs <= 2048
            assert plan.tiles * plan.block_p >= pixels


@pytest.mark.parametrize("layout", FORMATS)
def test_a_single_channel_or_pixel(kernels: ModuleType, layout: torch.memory_format) -> None:
    """These are contiguous in both orders; loads are of values that lie side by side."""
    pixels = noise(2, 1, 4, 4).contiguous(memory_format=layout)
    assert not kernels._plan(pixels).last
    assert kernels._plan(noise(2, 8, 1, 1).contiguous(memory_format=layout)).last


_COMPILE = """
import itertools
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ecanet.attention import gpu_kernels

MAPS = {"x", "out", "grad_out", "grad_x", "passed", "shortcut"}
INTEGERS = {"C", "P", "N", "K", "tiles", "strips", "rows", "images", "parts", "row"}
REALS = {"eps", "momentum", "correction"}
OPTIONAL = {
    "_moments_kernel": [{"variance"}],
    "_gate_add_kernel": [{"gate"}, {"shortcut"}],
    "_gradient_sums_kernel": [{"out"}, {"center", "of_shift", "out"}],
    "_eca_kernel": [{"of_mean"}],
    "_batch_moments_kernel": [{"mean", "variance", "pooled", "running_mean", "running_var"}],
    "_gate_gradient_kernel": [{"grad_gate"}],
    "_eca_gate_kernel": [{"mean"}],
    "_eca_gate_backward_kernel": [{"shifts", "weight", "bias", "spread", "of_scale", "of_shift"}],
    "_norm_coefficients_kernel": [
        {"grad_variance", "variance"}, {"of_kernel", "grad_kernel"},
        {"gate", "grad_pooled", "grad_variance", "mean", "variance", "of_kernel", "grad_kernel"},
    ],
}

def compiled(kernel, absent, **constants):
    signature, known = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument in constants or argument in absent:
            signature[argument], known[(i,)] = "constexpr", constants.get(argument)
        elif argument in INTEGERS | REALS:
            signature[argument] = "i32" if argument in INTEGERS else "fp32"
        else:
            signature[argument] = "*bf16" if argument in MAPS else "*fp32"
    pointers = [i for i, type in enumerate(signature.values()) if type.startswith("*")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in pointers}
    source = ASTSource(kernel, signature, constexprs=known, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]

for name, kernel in vars(gpu_kernels).items():
    if not name.endswith("_kernel") or name == "_kernel":
        continue
    constants = {"RELU": True, "STAGES": 1, "TAPS": 4 if "norm" in name else 5}
    if "LAST" not in kernel.arg_names:
        constants |= {"IMAGES": 128, "STRIPS": 2, "CHANNELS": 8}
        variants = [constants]
    else:
        # 7 x 7 and 14 x 14 pixels, or channels by eights.
        shapes = [(1, 32, 64, False), (4, 8, 256, False), (8, 64, 32, True)]
        names = ("ALIGN", "BLOCK_C", "BLOCK_P", "LAST")
        variants = [constants | dict(zip(names, shape)) for shape in shapes]
    for chosen, absent in itertools.product(variants, [set(), *OPTIONAL.get(name, [])]):
        code = compiled(kernel, absent, **chosen)
        assert ".visible .entry" in code, name
        if "LAST" in chosen:
            widths = {1: "b16", 4: "v2.b32", 8: "v4.b32"}
            assert f"ld.global.{widths[chosen['ALIGN']]}" in code, (name, chosen)
    print(name)
"""


@pytest.mark.slow
def test_kernels_compile_without_a_gpu() -> None:
    """The interpreter accepts more than the compiler. Triton can compile for sm_90 without a GPU.

    Loads are as wide as the number of channels, or of pixels, allows.
    """
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 12
