"""Attention modules that are constants, merged into the layers before them."""

from __future__ import annotations

import pytest
import torch
from helpers.gates import gated, register_channel_scale
from torch import Tensor, nn

from ecanet.models import create_model, insert_attention
from ecanet.models.fold import fold_constants
from ecanet.models.holders import attention_modules, check_attention

pytestmark = pytest.mark.usefixtures("own_registry")


def constants(model: nn.Module) -> dict[str, Tensor]:
    return {name: m.scale.detach().flatten() for name, m in attention_modules(model).items()}


@pytest.mark.parametrize(
    "name", ["resnet20", "resnet18", "resnet50", "mobilenet_v2", "torchvision/resnet18", "resnet26"]
)
def test_the_output_stays_and_the_network_is_the_plain_one(name: str) -> None:
    register_channel_scale()
    # In float64, as random networks of this depth enlarge the rounding of float32.
    model = gated("channel_scale", name, spread=0.2).double()
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        assert fold_constants(model, constants(model)) == []
        after = model(x)
    assert (after - before).abs().max() < 1e-12 * before.abs().max()
    assert not attention_modules(model)
    check_attention(model, 64)
    plain = create_model(name, num_classes=3).eval().double()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain(x), after)


def test_some_are_folded_and_the_others_stay() -> None:
    register_channel_scale()
    model, x = gated("channel_scale"), torch.randn(4, 3, 32, 32)
    found = constants(model)
    chosen = {name: found[name] for name in list(found)[::2]}
    with torch.no_grad():
        before = model(x)
        assert fold_constants(model, chosen) == []
        torch.testing.assert_close(model(x), before)
    assert list(attention_modules(model)) == list(found)[1::2]


def test_without_a_norm_before_it_a_module_is_kept() -> None:
    """A layer scale stands before it in ConvNeXt, an activation in MBConv."""
    register_channel_scale()
    model = insert_attention(create_model("convnext_atto", num_classes=3).eval(), "channel_scale")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = constants(model)
    assert fold_constants(model, found) == list(found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(attention_modules(model)) == list(found)


def test_a_norm_that_others_read_too_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.scaled = nn.Sequential(nn.Identity())

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            return (self.scaled(y) + y).mean((2, 3))

    register_channel_scale()
    model = insert_attention(Twice().eval(), "channel_scale", where="scaled")
    (module,) = attention_modules(model).values()
    nn.init.constant_(module.scale, 0.5)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = model(x)
        assert fold_constants(model, constants(model)) == ["scaled.attention"]
        torch.testing.assert_close(model(x), before)
    assert len(attention_modules(model)) == 1
