"""By what attention multiplies, and the index that says how much of it the image decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.gates import ChannelScale, gated, register_channel_scale
from torch import Tensor, nn

from ecanet import create_attention
from ecanet.errors import UserError
from ecanet.explain.gates import (
    MOST_CLASSES,
    Factors,
    Gates,
    Layer,
    channel_factors,
    hooked,
    pixel_factors,
)
from ecanet.models.holders import attention_modules


def measured(model: nn.Module, batches: list[Tensor]) -> Gates:
    gates = Gates()
    with torch.inference_mode(), hooked(model, channel_factors) as found:
        for batch in batches:
            model(batch)
            gates.add(found, torch.zeros(len(batch), dtype=torch.int64))
    return gates


def of(values: Tensor) -> Layer:
    layer = Layer("a", values.shape[1])
    layer.add(Factors(values.double(), 0.0, 1.0), torch.zeros(len(values), dtype=torch.int64))
    return layer


def images(count: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    scale = torch.rand(count, 1, 1, 1, generator=generator) * 3
    return torch.randn(count, 3, 16, 16, generator=generator) * scale


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize("scale", ["ones", "alike", "different"])
def test_the_index_of_a_constant_gate_is_0(scale: str) -> None:
    register_channel_scale()
    model = gated("channel_scale")
    for module in attention_modules(model).values():
        assert isinstance(module, ChannelScale)
        if scale != "different":
            nn.init.constant_(module.scale, {"ones": 1.0, "alike": 0.7}[scale])
    layers = measured(model, [images()]).layers
    assert len(layers) == 9
    for name, layer in layers.items():
        assert layer.index == 0, "rounding is no dependence on the image"
        assert layer.unexplained == 0
        expected = attention_modules(model)[name].scale.flatten().double()
        torch.testing.assert_close(layer.moments()[1], expected, rtol=1e-6, atol=0)
        assert layer.spread()[1] == 0
        assert (layer.spread()[2] > 0) == (scale == "different")


@pytest.mark.parametrize("attention", ["se", "eca", "simam", "cbam", "coord", "gct"])
def test_the_index_of_a_gate_that_looks_is_above_0(attention: str) -> None:
    for layer in measured(gated(attention), [images()]).layers.values():
        assert 0 < layer.index <= 1


def test_the_index_is_the_share_of_the_variance_between_images() -> None:
    chance = np.random.default_rng(0)
    values = chance.normal(size=(50, 8)) + 3 * chance.normal(size=(1, 8))
    expected = values.var(axis=0).mean() / values.var()
    assert of(torch.from_numpy(values)).index == pytest.approx(expected, rel=1e-12)
    same_in_all_channels = torch.rand(50, 1).expand(-1, 8)
    assert of(same_in_all_channels).index == pytest.approx(1)
    assert of(torch.full((5, 3), 0.5)).index == 0


def test_batches_give_what_all_images_at_once_do() -> None:
    model, x = gated("se"), images(20)
    streamed = measured(model, list(x.split(6)))
    with torch.inference_mode(), hooked(model, channel_factors) as found:
        model(x)
    for name, layer in streamed.layers.items():
        values = found[name].channels
        count, mean, variance = layer.moments()
        assert count.tolist() == [20] * layer.channels
        torch.testing.assert_close(mean, values.mean(0), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(variance, values.var(0, correction=0), rtol=1e-3, atol=1e-9)


def test_gates_of_channels_are_taken_as_they_are() -> None:
    module, x = create_attention("se", 16).eval(), torch.randn(4, 16, 6, 6)
    nn.init.normal_(next(module.parameters()))
    with torch.no_grad():
        y = module(x)
        found = channel_factors(module, x, y)
    torch.testing.assert_close(found.channels[:, :, None, None].float() * x, y)
    assert found.left == 0


def test_factors_of_other_modules_are_least_squares() -> None:
    x = torch.randn(3, 4, 5, 5)
    y = x * torch.rand(3, 1, 5, 5)  # a gate of pixels
    found = channel_factors(nn.Identity(), x, y)
    for n in range(3):
        for c in range(4):
            column = x[n, c].double().reshape(-1, 1).numpy()
            target = y[n, c].double().reshape(-1).numpy()
            solution = np.linalg.lstsq(column, target, rcond=None)[0][0]
            assert float(found.channels[n, c]) == pytest.approx(solution, rel=1e-5)
    rest = (y - found.channels.float()[:, :, None, None] * x).square().sum() / y.square().sum()
    layer = Layer("a", 4)
    layer.add(found, torch.zeros(3, dtype=torch.int64))
    assert layer.unexplained == pytest.approx(float(rest), rel=1e-4)
    torch.testing.assert_close(pixel_factors(x, y), (y / x)[:, 0])


def test_channels_that_are_0_have_no_factor() -> None:
    x = torch.randn(6, 3, 4, 4)
    x[:, 1] = 0  # never
    x[:3, 2] = 0  # on some images
    factors = torch.tensor([0.5, 0.5, 2.0])
    layer = Layer("a", 3)
    layer.add(channel_factors(nn.Identity(), x, x * factors[:, None, None]), torch.zeros(6).long())
    count, mean, _ = layer.moments()
    assert count.tolist() == [6, 0, 3]
    assert mean[0] == pytest.approx(0.5)
    assert mean[1].isnan()
    assert mean[2] == pytest.approx(2.0)
    assert layer.spread()[0] == pytest.approx((6 * 0.5 + 3 * 2.0) / 9), (
        "each counts as often as it is there"
    )
    assert layer.index == 0
    empty = of(torch.full((4, 2), float("nan")))
    assert empty.index == 0
    assert np.isnan(empty.spread()[0])


def test_classes_are_kept_apart_and_their_number_is_bounded() -> None:
    gates = Gates()
    numbers = torch.arange(MOST_CLASSES + 5).repeat(2)
    values = numbers.double()[:, None].expand(-1, 2)
    gates.add({"a": Factors(values, 0.0, 1.0)}, numbers)
    assert len(gates.rows) == MOST_CLASSES
    assert len(gates.images) == MOST_CLASSES + 5
    count, mean, variance = gates.layers["a"].moments(gates.rows[7])
    assert count.tolist() == [2, 2]
    assert mean.tolist() == [7, 7]
    assert variance.tolist() == [0, 0]
    chosen = Gates([3])
    chosen.add({"a": Factors(values, 0.0, 1.0)}, numbers)
    assert chosen.rows == {3: 1}
    assert chosen.layers["a"].moments(1)[1].tolist() == [3, 3]


def test_a_module_that_does_not_run_is_no_silent_gap() -> None:
    model = gated("se")
    with pytest.raises(UserError, match="do not run"), hooked(model, channel_factors):
        pass
