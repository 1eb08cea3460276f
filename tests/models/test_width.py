"""Networks of other widths: what they cost is counted, what cannot be widened is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import nn

from ecanet.errors import UserError
from ecanet.models import create_model
from ecanet.models.counts import count_macs, count_parameters
from ecanet.models.width import channels_for, stage_channels, without_values


def build(name: str, channels: Sequence[int] | None = None) -> nn.Module:
    return without_values(partial(create_model, name, num_classes=10, channels=channels))


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.03, 1.1, 1.5])
@pytest.mark.parametrize("count", [partial(count_macs, image_size=32), count_parameters])
@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50", "seresnext26d_32x4d"])
def test_the_cost_is_met(name: str, count: Callable[[nn.Module], int], share: float) -> None:
    plain = build(name)
    channels = channels_for(plain, share * count(plain), lambda c: count(build(name, c)))
    model = build(name, channels)
    assert count(model) == pytest.approx(share * count(plain), rel=0.01)
    assert stage_channels(model) == channels
    own = stage_channels(plain)
    assert own is not None
    assert all(wide >= narrow for wide, narrow in zip(channels, own, strict=True))
    if name == "resnet18":
        assert channels[0] == 64, "the shortcuts of its first stage have no weights"
        assert model.layer1[0].downsample is None  # type: ignore[index, union-attr]


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "mobilenet_v2"])
def test_its_own_channels_change_nothing(name: str) -> None:
    torch.manual_seed(0)
    plain = create_model(name, num_classes=3)
    torch.manual_seed(0)
    same = create_model(name, num_classes=3, channels=stage_channels(plain))
    assert {n: t.shape for n, t in plain.state_dict().items()} == {
        n: t.shape for n, t in same.state_dict().items()
    }
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), same.parameters(), strict=True)
    )


def test_a_wider_network_computes() -> None:
    model = create_model("mobilenet_v2", num_classes=3, channels=[17, 25, 33, 66, 99, 165, 330])
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    model = create_model("resnet20", num_classes=3, channels=[16, 32, 32], attention="eca")
    assert model.forward_features(torch.randn(2, 3, 32, 32)).shape == (2, 32, 8, 8)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "channels", "says"),
    [
        ("resnet20", [16, 32], "resnet20 has 3 stages, give a number for each"),
        ("resnet18", [16, 32, 64], "resnet18 has 4 stages"),
        ("mobilenet_v2", [16], "mobilenet_v2 has 7 stages"),
        ("regnety_002", [16, 32, 64, 128], "regnety_002 does not take the channels of its stages"),
        ("torchvision/resnet18", [64, 128, 256, 512], "leave channels out"),
    ],
)
def test_channels_that_do_not_fit_are_refused(name: str, channels: list[int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build(name, channels)


def test_pretrained_weights_have_their_own_channels() -> None:
    with pytest.raises(UserError, match="are for its own channels: leave channels out"):
        create_model("resnet18", pretrained=True, channels=[64, 128, 256, 520])
