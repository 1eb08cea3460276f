"""Properties of every attention module: shapes, layout, dtypes, state, sizes, identity, arguments."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ecanet.attention import (
    PooledGate,
    create_attention,
    eca_kernel_size,
    list_attention,
    registry,
)

NAMES = list_attention()
POOLED = {
    *("eca", "eca_circular", "eca_ns", "se", "se_var1", "se_var2", "se_var3"),
    *("se_gc1", "se_gc2", "se_gc3", "srm"),
}


def bottleneck(channels: int) -> int:
    return {16: 4, 64: 4, 256: 16}[channels]


def kernel(channels: int) -> int:
    return {16: 3, 64: 3, 256: 5}[channels]


FORMULAS: dict[str, Callable[[int], int]] = {
    "none": lambda c: 0,
    "eca": kernel,
    "eca_circular": kernel,
    "eca_ns": lambda c: c * kernel(c),
    "se": lambda c: 2 * c * bottleneck(c) + bottleneck(c) + c,
    "se_var1": lambda c: 0,
    "se_var2": lambda c: c,
    "se_var3": lambda c: c * c,
    "se_gc1": lambda c: c * c // 16,
    "se_gc2": lambda c: 16 * c,
    "se_gc3": lambda c: 8 * c,
    "cbam": lambda c: 2 * c * bottleneck(c) + bottleneck(c) + c + 2 * 49 + 2,
    "triplet": lambda c: 3 * (2 * 49 + 2),
    "coord": lambda c: 3 * c * 8 + 3 * 8 + 2 * c,  # h = 8 up to 256 channels
    "gc": lambda c: 2 * c * bottleneck(c) + 3 * bottleneck(c) + 2 * c,
    "ge": lambda c: 34 * c + 2 * c * bottleneck(c) + bottleneck(c),
    "srm": lambda c: 4 * c,
    "gct": lambda c: 3 * c,
    "simam": lambda c: 0,
    "fca": lambda c: 2 * c * bottleneck(c),
    "ema": lambda c: {16: 10 * 4 + 4 * 2, 64: 10 * 4 + 4 * 2, 256: 10 * 64 + 4 * 8}[c],
    "ela": lambda c: 7 * c + 2 * c,
}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def build(spec: str, channels: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return create_attention(spec, channels)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_formula(name: str) -> None:
    for channels in (16, 64, 256):
        assert parameters(build(name, channels)) == FORMULAS[name](channels)


def test_parameter_formula_of_variants() -> None:
    assert parameters(build("se:bias=False:reduction=2", 16)) == 2 * 16 * 8
    assert parameters(build("ge:variant=minus", 16)) == 0
    assert parameters(build("ge:variant=theta:extent=4", 16)) == 2 * 11 * 16
    assert parameters(build("ge:variant=theta:extent=0:size=5", 16)) == 25 * 16 + 2 * 16
    assert parameters(build("coord", 1024)) == 3 * 1024 * 32 + 3 * 32 + 2 * 1024
    assert parameters(build("ela:kernel_size=5:conv_width=8", 64)) == 5 * 64 * 8 + 2 * 64


def test_se_without_biases_gives_the_published_size_of_se_resnet50() -> None:
    """26.77 M (of 2^20) in ECA-Net's Table 3; with the biases of the SE authors it would be 26.79."""
    blocks = [(256, 3), (512, 4), (1024, 6), (2048, 3)]
    added = sum(n * parameters(build("se:bias=False", c)) for c, n in blocks)
    assert round((25_557_032 + added) / 2**20, 2) == 26.77


@pytest.mark.parametrize(
    ("channels", "k"),
    [
        *((16, 3), (24, 3), (32, 3), (64, 3), (127, 3), (128, 5), (256, 5), (512, 5), (1024, 5)),
        *((2047, 5), (2048, 7), (8, 3), (7, 1), (1, 1)),
    ],
)
def test_eca_kernel_by_channels(channels: int, k: int) -> None:
    assert eca_kernel_size(channels) == k
    for name in ("eca", "eca_circular", "eca_ns"):
        assert build(name, channels).state_dict().popitem()[1].shape[-1] == k


def test_pooled_gates() -> None:
    assert {name for name in NAMES if isinstance(build(name), PooledGate)} == POOLED
    for name in POOLED:
        module, x = build(name), torch.randn(3, 16, 5, 4)
        variance, mean = torch.var_mean(x, (2, 3), correction=0)
        gate = module.gate(*(mean, variance)[: module.moments])
        assert gate.shape == (3, 16)
        torch.testing.assert_close(module(x), x * gate[:, :, None, None])


# Shapes, layouts, dtypes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [16, 48, 160])
def test_any_map_size(name: str, channels: int) -> None:
    module = build(name, channels)
    for n, h, w in [(2, 5, 7), (2, 1, 6), (2, 6, 1), (1, 3, 3), (2, 1, 1), (1, 1, 1), (2, 17, 9)]:
        # A batch norm in training needs two values per channel, as documented.
        one_value = n * h * w == 1 or (n == 1 and name == "srm") or (n == 1 and name == "ge")
        module.train(not one_value)
        x = torch.randn(n, channels, h, w, requires_grad=True)
        output = module(x)
        assert output.shape == x.shape
        output.square().sum().backward()
        tensors = [output, x.grad, *(parameter.grad for parameter in module.parameters())]
        assert all(tensor is not None and tensor.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "none"])
@pytest.mark.parametrize("shape", [(16,), (2, 16), (16, 5, 5), (2, 16, 9), (2, 16, 3, 5, 5)])
def test_signals_volumes_and_single_images_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"is for feature maps \(N, C, H, W\), got") as caught:
        build(name)(torch.randn(shape))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ("fca", "se_gc1", "se_gc2", "se_gc3")]
)
@pytest.mark.parametrize("channels", [1, 3, 8, 20, 24])
def test_any_channel_count(name: str, channels: int) -> None:
    x = torch.randn(2, channels, 5, 4)
    assert build(name, channels)(x).shape == x.shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_channels_last_is_kept_and_changes_no_values(name: str, training: bool) -> None:
    module = build(name).train(training)
    x = torch.randn(2, 16, 9, 6)
    last = x.contiguous(memory_format=torch.channels_last)
    expected = copy.deepcopy(module)(x)
    output = copy.deepcopy(module).to(memory_format=torch.channels_last)(last)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert expected.is_contiguous()
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_input_dtype(name: str, half: torch.dtype) -> None:
    module = build(name).train()
    x = torch.randn(4, 16, 9, 6)
    expected = copy.deepcopy(module)(x)
    for dtype in (half, torch.float32):
        given = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", half):
            output = copy.deepcopy(module)(given)
        assert output.dtype == dtype
        # bfloat16 keeps 8 bits; the batch norms of tiny maps amplify that.
        torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.1)
        output.float().sum().backward()
        assert given.grad is not None
        assert given.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_float16_does_not_overflow(name: str) -> None:
    """Sums over a large map of large values pass float16's 65504."""
    module = build(name).eval()
    x = (torch.randn(1, 16, 64, 64) * 30).half().requires_grad_()
    with torch.autocast("cpu", torch.float16):
        output = module(x)
    output.float().mean().backward()
    assert output.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


# State


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip_and_copy(name: str) -> None:
    module, x = build(name), torch.randn(4, 16, 9, 6)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    module(x)  # moves running statistics
    module.eval()
    torch.manual_seed(1)
    other = create_attention(name, 16).eval()
    other.load_state_dict(module.state_dict())
    expected = module(x)
    assert torch.equal(other(x), expected)
    assert torch.equal(copy.deepcopy(module)(x), expected)


# Identity

INPUT_DEPENDENT = {"se_var1", "simam", "ge:variant=minus", "ge:variant=minus:extent=0"}
FACTOR = {
    **dict.fromkeys(POOLED | {"fca", "se:bias=False"}, 0.5),
    **dict.fromkeys(["ge:variant=minus", "ge:variant=minus:extent=0"], 0.5),
    **dict.fromkeys(["none", "gc", "gct"], 1.0),
    **dict.fromkeys(["se", "triplet", "ge", "ge:variant=theta", "srm", "ema"], 0.5),
    **dict.fromkeys(["cbam", "coord", "ela"], 0.25),
    "simam": 0.6792,
}


@pytest.mark.parametrize("spec", sorted(FACTOR))
def test_init_identity_gives_the_factor_it_returns(spec: str) -> None:
    module = build(spec)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    factor = module.init_identity()
    assert factor == pytest.approx(FACTOR[spec], abs=1e-4)
    if spec in INPUT_DEPENDENT:
        return
    x = torch.randn(3, 16, 9, 6, requires_grad=True)
    for training in (True, False):
        torch.testing.assert_close(module.train(training)(x), factor * x)
    # It can still learn: some parameter has a gradient.
    (module.train()(x) * torch.randn_like(x)).sum().backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    assert not gradients or any(g is not None and g.abs().max() > 1e-4 for g in gradients)


def test_every_module_has_an_identity() -> None:
    assert {spec.split(":")[0] for spec in FACTOR} == set(NAMES)


@pytest.mark.parametrize("name", ["gc", "gct", "none"])
def test_starts_as_the_identity(name: str) -> None:
    x = torch.randn(2, 16, 5, 4)
    torch.testing.assert_close(build(name)(x), x)


# Arguments: each has an effect or is refused

CHANGES = {
    **dict.fromkeys(("eca", "eca_circular", "eca_ns"), ("kernel_size=7", "gamma=1", "b=5")),
    "se": ["reduction=2", "bias=False"],
    "cbam": ["reduction=2", "kernel_size=3"],
    "triplet": ["kernel_size=3"],
    "coord": ["reduction=4"],
    "gc": ["reduction=2"],
    "ge": ["variant=minus", "extent=4", "reduction=2", "extent=0:size=5"],
    "simam": ["e_lambda=0.1"],
    "fca": ["frequencies=4", "size=8", "reduction=2"],
    "ema": ["groups=4"],
    "ela": ["kernel_size=5", "conv_width=4", "norm_groups=4"],
}
CHANGED = [f"{name}:{argument}" for name, arguments in CHANGES.items() for argument in arguments]


@pytest.mark.parametrize("spec", CHANGED)
def test_each_argument_changes_something(spec: str) -> None:
    x = torch.randn(4, 16, 9, 6)
    # The size is an argument of the global kernel only.
    sized = spec.startswith("ge:extent=0:size")
    plain = "ge:extent=0:size=3" if sized else spec.split(":")[0]
    before, after = build(plain), build(spec)
    shapes = [[parameter.shape for parameter in m.parameters()] for m in (before, after)]
    assert shapes[0] != shapes[1] or not torch.allclose(before(x), after(x), rtol=1e-3)


def test_every_argument_is_covered() -> None:
    arguments = {
        (name, argument)
        for name in NAMES
        for argument in list(inspect.signature(registry._entries[name].factory).parameters)[1:]
        if argument != "dims"
    }
    covered = [(spec.split(":")[0], spec.rpartition(":")[2].split("=")[0]) for spec in CHANGED]
    assert set(covered) == arguments


# Documentation


def test_docs_list_every_module() -> None:
    text = (Path(__file__).parents[2] / "docs" / "attention.md").read_text()
    rows = [line.split("|")[1].strip(" `") for line in text.splitlines() if line.startswith("| `")]
    assert sorted(rows) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_docstring_is_complete(name: str) -> None:
    factory = registry._entries[name].factory
    text = inspect.getdoc(type(create_attention(name, 16))) or ""
    needed = ["Shapes:", "Parameters:", "Saved for backward:", "Starts as:", "init_identity"]
    if name == "none":
        needed = needed[:4]
    assert all(word in text for word in needed)
    assert name == "none" or "Paper:" in text
    assert inspect.getdoc(factory)
