"""torch.compile without a graph break and torch.export, for every module."""

from __future__ import annotations

import pytest
import torch

from ecanet.attention import create_attention, list_attention

SPECS = [*list_attention(), "ge:variant=minus", "ge:extent=0:size=3"]


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_compiles_as_one_graph(spec: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    module, x = create_attention(spec, 16), torch.randn(2, 16, 9, 6, requires_grad=True)
    expected = module(x)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    output = torch.compile(module, backend="aot_eager", fullgraph=True)(x)
    (found,) = torch.autograd.grad(output.square().sum(), x)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("spec", SPECS)
def test_exports_with_any_batch_size(spec: str) -> None:
    torch.manual_seed(0)
    module = create_attention(spec, 16).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    x, shapes = torch.randn(2, 16, 9, 6), ({0: batch},)
    exported = torch.export.export(module, (x,), dynamic_shapes=shapes)
    x = torch.randn(5, 16, 9, 6)
    torch.testing.assert_close(exported.module()(x), module(x))
