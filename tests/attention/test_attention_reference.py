"""Every module against an independent float64 reference, forward and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from reference.attention_reference import REFERENCES
from torch import Tensor, nn

from ecanet.attention import create_attention, list_attention, parse_attention

# spec, channels, height, width: sizes odd, different, and on both sides of a module's own sizes. Signals and
# volumes are added below.
CASES: list[tuple[Any, ...]] = [
    ("none", 16, 5, 4),
    ("eca", 16, 5, 4),
    ("eca:kernel_size=9", 16, 3, 2),
    ("eca:kernel_size=7", 4, 3, 2),
    ("eca:gamma=1:b=2", 16, 3, 2),
    ("eca_circular", 16, 5, 4),
    ("eca_circular:kernel_size=5", 5, 3, 2),
    ("eca_ns", 16, 5, 4),
    ("eca_ns:kernel_size=5", 8, 3, 2),
    ("se", 32, 5, 4),
    ("se:reduction=8:bias=False", 16, 5, 4),
    ("se_var1", 16, 5, 4),
    ("se_var2", 16, 5, 4),
    ("se_var3", 16, 5, 4),
    ("se_gc1", 32, 5, 4),
    ("se_gc2", 32, 5, 4),
    ("se_gc3", 32, 5, 4),
    ("cbam", 16, 9, 8),
    ("cbam:reduction=2:kernel_size=3", 12, 5, 4),
    ("triplet", 16, 9, 8),
    ("triplet:kernel_size=3", 8, 5, 4),
    ("coord", 16, 5, 4),
    ("coord:reduction=4", 12, 1, 6),
    ("gc", 16, 5, 4),
    ("gc:reduction=4", 16, 5, 1),
    ("ge", 16, 11, 6),
    ("ge:variant=theta:extent=2", 8, 5, 4),
    ("ge:variant=minus", 8, 11, 6),
    ("ge:variant=minus:extent=4", 8, 9, 3),
    ("ge:variant=minus:extent=0", 8, 5, 4),
    ("ge:extent=0:size=5", 8, 5, 5),
    ("ge:variant=theta:extent=0:size=3", 8, 5, 7),
    ("ge:extent=2:reduction=4", 8, 4, 5),
    ("srm", 16, 5, 4),
    ("gct", 16, 5, 4),
    ("simam", 16, 5, 4),
    ("simam:e_lambda=0.1", 4, 1, 6),
    ("fca", 32, 7, 7),
    ("fca:frequencies=8:reduction=4", 16, 9, 4),
    ("fca:frequencies=32:size=14", 32, 14, 14),
    ("ema", 16, 5, 4),
    ("ema:groups=2", 8, 5, 4),
    ("ela", 16, 5, 4),
    ("ela:kernel_size=5:conv_width=4:norm_groups=2", 8, 6, 3),
]
TWO_DIMENSIONAL = {"triplet", "coord", "fca", "ema", "ela"}
for _spec, _channels, _height, _width in list(CASES):
    if _spec.split(":")[0] not in TWO_DIMENSIONAL:
        CASES += [
            (_spec, _channels, _height + 8),
            (_spec, _channels, 3, _height, _width),
        ]
MODES = ["train", "eval"]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Build modules in float64, so that their constants are exact too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def randomize(module: nn.Module) -> None:
    """Give every parameter and statistic a value that differs from its initialization."""
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.normal_(std=0.7)
        for name, tensor in module.named_buffers():
            if name.endswith("running_mean"):
                tensor.normal_()
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2)


def run(
    output: Tensor, x: Tensor, leaves: list[Tensor], direction: Tensor
) -> tuple[Tensor, list[Tensor]]:
    gradients = torch.autograd.grad((output * direction).sum(), [x, *leaves])
    return output.detach(), list(gradients)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{len(case) - 2}d")
def test_forward_and_gradients(case: tuple[Any, ...], mode: str) -> None:
    spec, channels, *size = case
    torch.manual_seed(0)
    module = create_attention(spec, channels, dims=len(size)).train(mode == "train")
    randomize(module)
    name, arguments = parse_attention(spec)
    x = torch.randn(3, channels, *size, requires_grad=True)
    direction = torch.randn_like(x)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    leaves = [state[key].requires_grad_() for key, _ in module.named_parameters()]

    expected = REFERENCES[name](x, state, mode == "train", **arguments)
    expected, wanted = run(expected * 1, x, leaves, direction)
    output, found = run(module(x) * 1, x, list(module.parameters()), direction)

    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-10)
    keys = ["input", *(key for key, _ in module.named_parameters())]
    for key, mine, theirs in zip(keys, found, wanted, strict=True):
        torch.testing.assert_close(
            mine, theirs, rtol=1e-8, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}"
        )
    # A gradient that is zero everywhere would prove nothing; a bias before a batch norm's mean has none.
    flat = {key for key, gradient in zip(keys, found, strict=True) if gradient.abs().max() < 1e-8}
    assert flat == ({"conv1.bias"} if name == "coord" and mode == "train" else set())


def test_every_registered_module_has_a_reference_and_a_case() -> None:
    assert set(REFERENCES) == set(list_attention())
    assert {case[0].split(":")[0] for case in CASES} == set(list_attention())
