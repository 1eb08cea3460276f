"""Signals and volumes: as images with a side of one, refused where they mean nothing, and the docs' table."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecanet.attention import create_attention, list_attention, parse_attention, register_attention

ANY = [name for name in list_attention() if name not in ("coord", "ela", "ema", "fca", "triplet")]
SPECS = [
    *ANY,
    *("eca:kernel_size=7", "se:bias=False", "cbam:kernel_size=3:reduction=2"),
    *("ge:variant=minus", "ge:variant=minus:extent=0", "ge:variant=theta:extent=4"),
    *("ge:extent=0:size=3", "ge:extent=0:size=5"),
]


def center(weight: Tensor, shape: torch.Size) -> Tensor:
    """Return the part of a kernel that sees the one pixel along an axis that ``shape`` does not have."""
    if weight.ndim == len(shape):
        return weight
    return weight.select(2 if weight.ndim == 5 else -1, weight.shape[-1] // 2)


def twins(spec: str, one: int, other: int) -> tuple[nn.Module, nn.Module]:
    """Return a module for ``one`` and one for ``other`` axes, more, with the same weights."""
    torch.manual_seed(0)
    small = create_attention(spec, 16, dims=one).double()
    large = create_attention(spec, 16, dims=other).double()
    with torch.no_grad():
        for name, tensor in large.state_dict().items():
            if name == "gather.0.weight" and ":size=" in spec:
                tensor.zero_()  # of a map that is repeated along the axis, one copy is to count
                center(tensor, small.get_parameter(name).shape).uniform_(0.2, 1)
            elif tensor.is_floating_point():
                tensor.uniform_(0.2, 1)
        for name, tensor in small.state_dict().items():
            tensor.copy_(center(large.state_dict()[name], tensor.shape))
    return small, large


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("one", "size", "axis"), [(2, (9, 6), 2), (1, (11,), -1)])
@pytest.mark.parametrize("spec", SPECS)
def test_a_side_of_one_changes_nothing(
    spec: str, one: int, size: tuple[int, ...], axis: int, training: bool
) -> None:
    """A volume of depth 1 is an image, and an image of width 1 a signal: outputs, gradients, statistics."""
    small, large = (module.train(training) for module in twins(spec, one, one + 1))
    x = torch.randn(3, 16, *size, dtype=torch.float64, requires_grad=True)
    wide = x.detach().unsqueeze(axis).requires_grad_()
    direction = torch.randn_like(x)
    expected, found = small(x), large(wide)
    assert found.shape == wide.shape
    torch.testing.assert_close(found.squeeze(axis), expected, rtol=1e-12, atol=1e-12)

    (expected * direction).sum().backward()
    (found * direction.unsqueeze(axis)).sum().backward()
    assert wide.grad is not None
    torch.testing.assert_close(wide.grad.squeeze(axis), x.grad, rtol=1e-12, atol=1e-12)
    theirs = dict(large.named_parameters())
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None
        gradient = theirs[name].grad
        assert gradient is not None
        torch.testing.assert_close(
            center(gradient, parameter.shape), parameter.grad, rtol=1e-12, atol=1e-12
        )
    for name, statistic in small.named_buffers():
        torch.testing.assert_close(large.get_buffer(name), statistic, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("one", "other"), [(1, 2), (2, 3)])
@pytest.mark.parametrize("name", [n for n in ANY if n not in ("cbam", "ge")])
def test_weights_are_the_same_for_any_dims(name: str, one: int, other: int) -> None:
    small, large = (create_attention(name, 16, dims=dims) for dims in (one, other))
    large.load_state_dict(small.state_dict())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", [(3, 16, 13), (3, 16, 5, 6, 7), (3, 16, 1), (3, 16, 1, 1, 1)])
def test_autocast_and_no_overflow(spec: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = create_attention(spec, 16, dims=len(shape) - 2).train()
    x = torch.randn(shape)
    expected = copy.deepcopy(module)(x)
    # In float16 the gradient of SimAM's root of λ alone, of a single pixel, is infinite on a CPU.
    alone = spec == "simam" and x[0, 0].numel() == 1
    for half in (torch.bfloat16,) if alone else (torch.bfloat16, torch.float16):
        given = x.to(half).requires_grad_()
        with torch.autocast("cpu", half):
            output = copy.deepcopy(module)(given)
        assert output.dtype == half
        torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.1)
        output.float().sum().backward()
        assert given.grad is not None
        assert given.grad.isfinite().all()


@pytest.mark.parametrize("spec", SPECS)
def test_channels_last_volumes(spec: str) -> None:
    torch.manual_seed(0)
    module, x = create_attention(spec, 16, dims=3).train(), torch.randn(2, 16, 4, 9, 6)
    last = x.contiguous(memory_format=torch.channels_last_3d)
    expected, output = copy.deepcopy(module)(x), copy.deepcopy(module)(last)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert output.is_contiguous(memory_format=torch.channels_last_3d)
    assert expected.is_contiguous()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("size", [(12,), (3, 9, 6)])
def test_exports_with_any_batch_size(spec: str, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = create_attention(spec, 16, dims=len(size)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        module, (torch.randn(2, 16, *size),), dynamic_shapes=({0: batch},)
    )
    x = torch.randn(5, 16, *size)
    torch.testing.assert_close(exported.module()(x), module(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("size", [(12,), (3, 9, 6)])
def test_scripts_and_traces_symbolically(spec: str, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module, x = create_attention(spec, 16, dims=len(size)).eval(), torch.randn(2, 16, *size)
    expected = module(x)
    scripted: Any = torch.jit.script(module)
    torch.testing.assert_close(scripted(x), expected)
    if spec != "none":
        with pytest.raises(torch.jit.Error, match="is for feature maps"):
            scripted(x[0])
    torch.testing.assert_close(torch.fx.symbolic_trace(module)(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["eca", "se", "srm", "cbam", "ge", "gc", "gct", "simam"])
@pytest.mark.parametrize("size", [(12,), (3, 9, 6)])
def test_compiles_as_one_graph(spec: str, size: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = create_attention(spec, 16, dims=len(size))
    x = torch.randn(2, 16, *size, requires_grad=True)
    expected = module(x)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    output = torch.compile(module, backend="aot_eager", fullgraph=True)(x)
    (found,) = torch.autograd.grad(output.square().sum(), x)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("name", [n for n in list_attention() if n != "none"])
def test_other_shapes_are_refused(name: str, dims: int) -> None:
    if name not in ANY:
        with pytest.raises(ValueError, match="height and width of 2-D maps") as caught:
            create_attention(name, 16, dims=dims)
        assert f"for dims={dims} there are cbam, eca, " in str(caught.value)
        return
    axes = {1: "L", 3: "D, H, W"}[dims]
    module = create_attention(name, 16, dims=dims)
    for shape in [(2, 16), (2, 16, 9), (2, 16, 9, 9), (2, 16, 9, 9, 9)]:
        if len(shape) != dims + 2:
            with pytest.raises(ValueError, match=rf"\(N, C, {axes}\), got {len(shape)} dim"):
                module(torch.randn(shape))


@pytest.mark.parametrize("dims", [0, 4, -1, 2.5, "3", True, None])
@pytest.mark.parametrize("name", ANY)
def test_dims_are_checked(name: str, dims: Any) -> None:
    with pytest.raises(ValueError, match=r"dims must be") as caught:
        create_attention(name, 16, dims=dims)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("own_registry")
def test_a_users_module_declares_dims_or_is_for_images() -> None:
    @register_attention("images_only")
    class Plain(nn.Identity):
        def __init__(self, channels: int) -> None:
            super().__init__()

    @register_attention("any_dims")
    class Declared(nn.Identity):
        def __init__(self, channels: int, power: int = 1, dims: int = 2) -> None:
            super().__init__()
            self.dims = dims

    assert isinstance(create_attention("images_only", 16), Plain)
    assert create_attention("any_dims", 16).dims == 2
    assert create_attention("any_dims:power=2", 16, dims=3).dims == 3
    with pytest.raises(ValueError, match=r"'images_only'.* it has no argument dims"):
        create_attention("images_only", 16, dims=3)
    with pytest.raises(ValueError, match="follows from the network"):
        parse_attention("any_dims:dims=3")


def test_docs_table_of_dims() -> None:
    """The column of docs/attention.md says what create_attention builds."""
    text = (Path(__file__).parents[2] / "docs" / "attention.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in text.splitlines()
        if line.startswith(("| `", "| name "))
    ]
    column = rows[0].index("dims")
    for row in rows[1:]:
        name, built = row[0].strip("`"), []
        for dims in (1, 2, 3):
            try:
                create_attention(name, 64, dims=dims)
            except ValueError:
                continue
            built.append(dims)
        assert row[column] == ", ".join(map(str, built)), name
