"""Attention that starts as the identity: networks compute the same, whatever precedes the module."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from helpers.networks import equal, randomize_norms
from torch import Tensor, nn

from ecanet.attention import ECA, PooledGate, list_attention
from ecanet.errors import UserError
from ecanet.models import attention_modules, create_model, insert_attention, start_as_identity
from ecanet.models.identity import SCALE
from ecanet.models.residual import ResidualEnd, set_fused
from ecanet.models.weights.load import build_from_weights, load_weights
from ecanet.models.weights.save import save_weights

# What precedes the module: a layer scale, a sum of branches, an activation in the norm.
SCALED = [
    "convnext_atto", "torchvision/convnext_tiny", "repvgg_a0", "mobileone_s0", "cspdarknet53",
    "ese_vovnet19b_dw", "resnest14d",
]  # fmt: skip
CANNOT = {"simam", "se_var1"}


def same(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether logits agree, relative to the largest one."""
    return bool((actual - expected).abs().max() <= tolerance * expected.abs().max())


def scales(model: nn.Module) -> list[str]:
    return [name for name in model.state_dict() if name.endswith(SCALE)]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("torchvision/"):
        model = torchvision.models.get_model(name.rpartition("/")[2])
    else:
        model = timm.create_model(name)
    randomize_norms(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gamma" in name or "layer_scale" in name:
                parameter.fill_(0.5)
    return model.eval()


@pytest.fixture(scope="module")
def convnext() -> nn.Module:
    return insert_attention(build("convnext_atto"), "se", identity=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCALED)
def test_a_fixed_factor_where_nothing_in_front_can_take_it(name: str) -> None:
    model = build(name)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(1, 3, 64, 64)
    expected = model(images)
    for attention in ("eca", "se", "cbam"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            insert_attention(model, attention, identity=True)
        assert len(scales(model)) == len(attention_modules(model)) > 0
        assert same(model(images), expected)
        insert_attention(model, "none")
        assert equal(model.state_dict(), weights)


@pytest.mark.parametrize("attention", sorted({*list_attention()} - CANNOT - {"none"}))
@pytest.mark.parametrize("scaled", [True, False])
def test_every_module_keeps_the_function_and_can_learn(attention: str, scaled: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU() if scaled else nn.BatchNorm2d(32)).double()
    images = torch.randn(4, 3, 18, 18, dtype=torch.float64)
    expected = model.eval()(images)
    insert_attention(model, attention, where="1", identity=True)
    torch.testing.assert_close(model(images), expected)
    has_factor = attention not in ("gc", "gct")
    assert len(scales(model)) == (scaled and has_factor)

    (module,) = attention_modules(model).values()
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    target = torch.randn_like(expected)
    seen = dict.fromkeys(dict(module.named_parameters()), 0.0)
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(model(images), target, reduction="sum").backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            seen[name] = max(seen[name], float(parameter.grad.abs().max()))
        optimizer.step()
    # A bias before a batch norm or a softmax has no effect in any state of the module.
    without_effect = {name for name, gradient in seen.items() if gradient < 1e-10}
    assert without_effect <= {"conv.bias", "mask.bias", "conv1.bias", "gather.0.bias"}


class Uses(nn.Module):
    """A network whose norm does not only feed its drop_path, by a way that shows in no tensor's identity."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.bn, self.drop_path = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Identity()
        self.way = way
        if way == "tied":
            self.other = nn.BatchNorm2d(8)
            self.other.weight, self.other.bias = self.bn.weight, self.bn.bias
        if way == "parametrized":
            nn.utils.parametrizations.weight_norm(self.conv)
            self.bn = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.conv(x)
        x = self.bn(shortcut)
        if self.way == "added":
            shortcut = shortcut + x
        if self.way == "tied":
            shortcut = self.other(shortcut)
        y = self.drop_path(x) + (0 if self.way == "parametrized" else shortcut)
        return y.mean((2, 3))


@pytest.mark.parametrize("way", ["added", "tied", "parametrized"])
def test_a_layer_that_is_used_elsewhere_is_not_divided(way: str) -> None:
    torch.manual_seed(0)
    model = Uses(way)
    randomize_norms(model)
    images = torch.randn(2, 3, 12, 12)
    expected = model.eval()(images)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    insert_attention(model, "eca", identity=True)
    assert len(scales(model)) == 1
    torch.testing.assert_close(model(images), expected)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


class TwoImages(nn.Module):
    """A network that no small image can be run through."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.bn(self.conv(left)) + right


def test_a_network_that_cannot_be_run_is_left_as_it_is() -> None:
    model = TwoImages()
    names = list(model.state_dict())
    with pytest.raises(UserError, match="give --identity false"):
        insert_attention(model, "se", where="bn", identity=True)
    assert list(model.state_dict()) == names
    assert not attention_modules(model)


def test_our_networks_get_no_factor_however_deep() -> None:
    torch.manual_seed(0)
    model = create_model("resnet110", attention="eca", identity=True)
    assert len(attention_modules(model)) == 54
    assert not scales(model)


def round_trip(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)  # type: ignore[no-any-return]


def reloaded(model: nn.Module) -> nn.Module:
    fresh = insert_attention(timm.create_model("convnext_atto"), "se", identity=True)
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    "survive",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        round_trip,
        reloaded,
        lambda model: copy.deepcopy(model).to(memory_format=torch.channels_last),
        lambda model: torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True),
        lambda model: torch.export.export(model, (torch.randn(2, 3, 64, 64),)).module(),
        nn.SyncBatchNorm.convert_sync_batchnorm,
    ],
    ids=["deepcopy", "pickle", "save", "reload", "channels_last", "compile", "export", "sync"],
)
def test_the_factor_survives(
    convnext: nn.Module, survive: Callable[[nn.Module], nn.Module]
) -> None:
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(survive(convnext)(images), convnext(images))


def test_the_factor_survives_a_conversion_of_the_network() -> None:
    model = build("repvgg_a0")
    images = torch.randn(1, 3, 64, 64)
    expected = model(images)
    insert_attention(model, "se", where="stages.*.*.attn", identity=True)
    assert scales(model)
    for module in model.modules():
        if hasattr(module, "reparameterize"):
            module.reparameterize()
    assert same(model(images), expected, 1e-4)


@pytest.mark.slow
def test_the_factor_is_in_onnx_files(convnext: nn.Module, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    images = torch.randn(1, 3, 64, 64)
    file = tmp_path / "model.onnx"
    torch.onnx.export(convnext, (images,), str(file), dynamo=False)
    session = onnxruntime.InferenceSession(str(file))
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(logits, convnext(images).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays(convnext: nn.Module, dtype: torch.dtype) -> None:
    images = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", dtype):
        (block,) = (
            m for n, m in attention_modules(convnext).items() if n.startswith("stages.0.blocks.0")
        )
        assert block(torch.randn(1, 40, 8, 8, dtype=dtype)).dtype == dtype
    half = copy.deepcopy(convnext).to(dtype)
    assert half(images.to(dtype)).dtype == dtype


def test_the_fused_path_scales_too() -> None:
    torch.manual_seed(0)
    model = create_model("resnet20", attention="se")
    randomize_norms(model)
    for module in model.modules():
        if isinstance(module, ResidualEnd):  # a norm without weights cannot be divided
            norm = module.last_norm()
            norm.register_parameter("weight", None)
            norm.register_parameter("bias", None)
    plain = insert_attention(copy.deepcopy(model), "none").eval()
    start_as_identity(model)
    assert len(scales(model)) == 9
    for module in model.modules():
        if isinstance(module, ResidualEnd):
            norm = module.last_norm()
            norm.weight, norm.bias = (
                nn.Parameter(torch.ones(norm.num_features)),
                nn.Parameter(torch.zeros(norm.num_features)),
            )
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        for fused in (True, False):
            set_fused(model, fused)
            torch.testing.assert_close(model.eval()(images), plain(images), rtol=1e-4, atol=1e-4)


def test_a_modules_own_kernel_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = insert_attention(build("convnext_atto"), "eca", identity=True)
    (first, *_) = attention_modules(model).values()
    assert isinstance(first, ECA)
    assert type(first).forward is PooledGate.forward
    x = torch.randn(1, 40, 8, 8)
    monkeypatch.setattr(ECA, "by_kernel", lambda self, x: x / 2)
    torch.testing.assert_close(first(x), x)


# Networks by name, and weights of files


def test_create_model_starts_at_the_identity() -> None:
    images = torch.randn(1, 3, 64, 64)
    for name in ("resnet20", "mobilenet_v2", "resnet10t", "torchvision/resnet18", "convnext_atto"):
        torch.manual_seed(0)
        expected = create_model(name).eval()(images)
        torch.manual_seed(0)
        model = create_model(name, attention="se", identity=True).eval()
        assert attention_modules(model)
        torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)
    torch.manual_seed(0)
    assert not attention_modules(create_model("convnext_atto", identity=True))
    with pytest.raises(UserError, match="identity and replace_attention: give only one"):
        create_model("regnety_002", attention="eca", replace_attention=True, identity=True)
    with pytest.raises(UserError, match="cannot start as the identity"):
        create_model("resnet20", attention="simam", identity=True)


@pytest.mark.parametrize("name", ["resnet20", "convnext_atto"])
def test_attention_that_a_file_lacks_starts_as_the_identity(name: str, tmp_path: Path) -> None:
    file = tmp_path / "plain.safetensors"
    torch.manual_seed(0)
    plain = create_model(name, num_classes=5).eval()
    randomize_norms(plain)
    save_weights(file, plain.state_dict(), model=name, attention="none", num_classes=5)
    images = torch.randn(2, 3, 64, 64)
    model = create_model(name, num_classes=5, attention="cbam").eval()
    load_weights(model, file, identity=True)
    torch.testing.assert_close(model(images), plain(images), rtol=1e-5, atol=1e-5)

    # Weights of the attention module are kept as they are, with and without a factor.
    trained = tmp_path / "trained.safetensors"
    with torch.no_grad():
        for module in attention_modules(model).values():
            nn.init.normal_(module.fc2.weight)
    save_weights(trained, model.state_dict(), model=name, attention="cbam", num_classes=5)
    expected = model(images)
    torch.testing.assert_close(build_from_weights(trained).eval()(images), expected)
    other = create_model(name, num_classes=5, attention="cbam").eval()
    assert load_weights(other, trained, identity=True).complete
    torch.testing.assert_close(other(images), expected)

    free = create_model(name, num_classes=5, attention="cbam").eval()
    save_weights(trained, free.state_dict(), model=name, attention="cbam", num_classes=5)
    assert load_weights(other, trained, identity=True).complete
    torch.testing.assert_close(other(images), free(images))


def test_a_refused_identity_leaves_the_weights() -> None:
    model = create_model("resnet20", attention="simam")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match="cannot start as the identity"):
        start_as_identity(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
