"""Attention modules in 1-D and 3-D networks: places, names, outputs, a step of training."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.networks import randomize_norms
from torch import Tensor, nn
from torchvision.models import video

from ecanet.attention import create_attention
from ecanet.errors import UserError
from ecanet.models import attention_modules, checked_attention, insert_attention
from ecanet.models.probe import small_image


class Block(nn.Module):
    """A residual block of signals or volumes, as users write it."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        conv, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
        self.conv1 = conv(channels, channels, 3, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = conv(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


def resnet(dims: int) -> nn.Module:
    """Two blocks in each of two stages, and a classifier."""
    layer, pool = getattr(nn, f"Conv{dims}d"), getattr(nn, f"MaxPool{dims}d")
    return nn.Sequential(
        *(layer(1, 16, 5, 2, 2), pool(2), Block(dims, 16), Block(dims, 16)),
        *(layer(16, 32, 3, 2, 1), Block(dims, 32), Block(dims, 32)),
        *(getattr(nn, f"AdaptiveAvgPool{dims}d")(1), nn.Flatten(), nn.Linear(32, 4)),
    )


class TemporalBlock(nn.Module):
    """A block of a temporal convolutional network: causal, by padding and cutting off the future."""

    def __init__(self, before: int, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(before, channels, 3, padding=2 * dilation, dilation=dilation)
        self.conv2 = nn.Conv1d(channels, channels, 3, padding=2 * dilation, dilation=dilation)
        self.norm = nn.GroupNorm(4, channels)
        self.down = nn.Conv1d(before, channels, 1) if before != channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[2]
        y = torch.relu(self.conv1(x)[:, :, :length])
        y = self.norm(self.conv2(y)[:, :, :length])
        return torch.relu(self.down(x) + y)


def tcn() -> nn.Module:
    blocks = [TemporalBlock(8 if i == 0 else 16, 16, 2**i) for i in range(4)]
    return nn.Sequential(*blocks, nn.Conv1d(16, 2, 1))


def monai(name: str, dims: int, **kwargs: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        networks: Any = pytest.importorskip("monai.networks.nets")
        built: nn.Module = getattr(networks, name)(spatial_dims=dims, **kwargs)
        return built

    return build


def of_torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(video, name)(num_classes=4)


CHANNELS = {"in_channels": 1, "out_channels": 2}
UNET = {**CHANNELS, "channels": (16, 32, 32), "strides": (2, 2)}
FEATURES = {**CHANNELS, "features": (16, 16, 16, 16, 32, 16)}
# The network, its input, the pattern and the number of places.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str | None, int]] = {
    "resnet, 1-D": (lambda: resnet(1), (1, 99), None, 4),
    "resnet, 3-D": (lambda: resnet(3), (1, 9, 17, 14), None, 4),
    "resnet, 1-D, by pattern": (lambda: resnet(1), (1, 99), "*.bn1", 4),
    "resnet, 3-D, by pattern": (lambda: resnet(3), (1, 9, 17, 14), "*.conv2", 4),
    "tcn": (tcn, (8, 50), None, 4),
    "tcn, by pattern": (tcn, (8, 50), "*.conv2", 4),
    "r3d_18": (of_torchvision("r3d_18"), (3, 8, 32, 32), None, 8),
    "mc3_18": (of_torchvision("mc3_18"), (3, 8, 32, 32), None, 8),
    "r2plus1d_18": (of_torchvision("r2plus1d_18"), (3, 8, 32, 32), None, 8),
    "s3d": (of_torchvision("s3d"), (3, 16, 224, 224), None, 9),
    "UNet, 3-D, by pattern": (monai("UNet", 3, **UNET), (1, 16, 16, 16), "model.[02]", 2),
    "UNet of residual units, 3-D": (
        monai("UNet", 3, num_res_units=2, **UNET),
        (1, 16, 16, 16),
        None,
        4,
    ),
    "UNet of residual units, 1-D": (monai("UNet", 1, num_res_units=2, **UNET), (1, 64), None, 4),
    "SegResNet, 3-D": (
        monai("SegResNet", 3, init_filters=16, blocks_down=(1, 1, 1), blocks_up=(1, 1)),
        (1, 16, 16, 16),
        None,
        5,
    ),
    "DenseNet121, 3-D": (monai("DenseNet121", 3, **CHANNELS), (1, 32, 32, 32), None, 4),
    "DenseNet121, 1-D": (monai("DenseNet121", 1, **CHANNELS), (1, 128), None, 4),
    "resnet10, 3-D": (
        monai("resnet10", 3, n_input_channels=1, num_classes=3),
        (1, 16, 32, 32),
        None,
        4,
    ),
    "resnet10, 1-D": (
        monai("resnet10", 1, n_input_channels=1, num_classes=3),
        (1, 128),
        None,
        4,
    ),
    "BasicUNet, 3-D": (monai("BasicUNet", 3, **FEATURES), (1, 32, 32, 32), None, 9),
}
LARGE = {"r3d_18", "mc3_18", "r2plus1d_18", "s3d", "DenseNet121, 3-D", "resnet10, 3-D"}


@pytest.mark.parametrize("attention", ["eca", "se", "cbam"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in NETWORKS],
)
def test_identity_keeps_names_weights_and_outputs_and_a_step_trains(
    name: str, attention: str
) -> None:
    build, size, where, count = NETWORKS[name]
    torch.manual_seed(0)
    model = build().eval()
    randomize_norms(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(2, *size)
    with torch.no_grad():
        expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        insert_attention(model, attention, where, identity=True)
    modules = attention_modules(model)
    assert len(modules) == count
    added = set(model.state_dict()) - set(before)
    assert set(before) <= set(model.state_dict())
    assert {key.rpartition(".attention.")[0] + ".attention" for key in added} == set(modules)
    with torch.no_grad(), checked_attention(model):
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)

    started = {key: copy.deepcopy(module.state_dict()) for key, module in modules.items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    output = model.train()(x)
    (output * torch.randn_like(output)).sum().backward()
    optimizer.step()
    for key, module in modules.items():
        parameters = dict(module.named_parameters())
        assert any(not torch.equal(started[key][n], p) for n, p in parameters.items()), key


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("attention", ["srm", "gct", "gc", "ge", "eca_ns", "se_gc1", "simam"])
def test_any_module_in_any_network(attention: str, dims: int) -> None:
    model = insert_attention(resnet(dims), attention)
    assert len(attention_modules(model)) == 4
    x = torch.randn(2, 1, *[32] * dims)
    model(x).sum().backward()
    again = pickle.loads(pickle.dumps(model)).eval()
    assert torch.equal(again(x), model.eval()(x))


@pytest.mark.parametrize("dims", [1, 3])
def test_modules_are_what_create_attention_builds_for_the_dims(dims: int) -> None:
    model = insert_attention(resnet(dims), "cbam:kernel_size=3")
    for module in attention_modules(model).values():
        channels = module.fc1.in_features
        built = create_attention("cbam:kernel_size=3", channels, dims=dims)
        module.load_state_dict(built.state_dict())
    insert_attention(model, "eca", kernel_sizes=(5, 7))
    kernels = [m.conv.kernel_size[0] for m in attention_modules(model).values()]
    assert kernels == [5, 5, 7, 7]
    assert not attention_modules(insert_attention(model, "none"))


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 3])
def test_compiles_exports_and_runs_under_autocast(dims: int) -> None:
    torch.manual_seed(0)
    model = insert_attention(resnet(dims), "cbam").eval()
    x = torch.randn(2, 1, *[16] * dims)
    expected = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(x).float() - expected).abs().max() < 0.1


@pytest.mark.parametrize(
    ("attention", "dims", "where", "message"),
    [
        ("coord", 3, None, "'coord' is defined by the height and width of 2-D maps"),
        ("triplet", 1, "*.bn2", "'triplet' is defined by .* for dims=1 there are cbam, eca, "),
        ("eca:dims=3", 3, None, "dims, which follows from the network"),
        ("eca", 1, "9", r"9 gives \(1, 4\), but attention modules need \(N, C, L\)"),
        ("eca", 3, "9", r"9 gives \(1, 4\), but attention modules need \(N, C, D, H, W\)"),
    ],
)
def test_refused_in_one_line_without_a_change(
    attention: str, dims: int, where: str | None, message: str
) -> None:
    model = resnet(dims)
    keys = list(model.state_dict())
    with pytest.raises(UserError, match=message) as caught:
        insert_attention(model, attention, where)
    assert "\n" not in str(caught.value)
    assert list(model.state_dict()) == keys
    assert not attention_modules(model)


def test_layers_along_the_channels_of_images_are_no_place() -> None:
    """The 1-D convolution in somebody's ECA has (N, 1, C)."""

    class Theirs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3)
            self.along = nn.Conv1d(1, 1, 3, padding=1)
            self.norm = nn.BatchNorm1d(16)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            means = x.mean((2, 3))
            return self.norm(self.along(means[:, None])[:, 0] * means)

    for where in ("along", "norm"):
        with pytest.raises(UserError, match=rf"{where} gives .* need \(N, C, H, W\)"):
            insert_attention(Theirs(), "se", where)


class Turned(nn.Module):
    """A signal as (N, L, C) in between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.turned = nn.Conv1d(2, 16, 3, padding=1), nn.Linear(16, 16)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.turned(self.act(self.conv(x)).mT)


def test_channels_last_signals_are_no_place() -> None:
    model = insert_attention(Turned(), "se", "act")
    assert attention_modules(model)["act.attention"].fc1.in_features == 16
    with pytest.raises(UserError, match=r"turned gives \(1, 128, 16\), but .* need \(N, C, L\)"):
        insert_attention(Turned(), "se", "turned")


def test_a_network_of_one_length_takes_convolutions_by_pattern() -> None:
    model = nn.Sequential(nn.Conv1d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 298, 2))
    with pytest.warns(UserWarning, match="does not take a 128 or 1024 or 16384 signal"):
        insert_attention(model, "se", "0")
    assert attention_modules(model)["0.attention"].fc1.in_features == 8
    model(torch.randn(2, 1, 300)).sum().backward()
    other = nn.Sequential(nn.Conv1d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 126, 2))
    assert attention_modules(insert_attention(other, "se", "1"))


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (tcn, (1, 8, 128)),
        (lambda: resnet(3), (1, 1, 16, 64, 32)),
        (of_torchvision("mc3_18"), (1, 3, 16, 64, 32)),
        (lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.AvgPool3d(20)), (1, 2, 32, 128, 64)),
        (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.AvgPool1d(1000)), (1, 2, 1024)),
    ],
)
def test_small_signals_and_volumes(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    assert small_image(build(), "").shape == shape
