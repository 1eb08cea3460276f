"""insert_attention for models of ecanet, timm and torchvision: names and function are preserved."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from helpers.networks import eca, randomize_norms
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.feature_extraction import create_feature_extractor

from ecanet.attention import list_attention, register_attention, registry
from ecanet.errors import UserError
from ecanet.models import attention_modules, create_model, insert_attention


def build(name: str) -> nn.Module:
    if name.startswith("torchvision/"):
        return torchvision.models.get_model(name.rpartition("/")[2])
    return create_model(name) if name == "resnet20" else timm.create_model(name)


# The number of places: blocks that add something to a shortcut.
PLACES = {
    "resnet20": 9,
    "resnet10t": 4,
    "resnetv2_18": 8,
    "regnetx_002": 13,
    "efficientnet_lite0": 9,
    "mobilenetv3_small_050": 7,
    "skresnet18": 8,
    "rexnet_100": 11,
    "torchvision/resnet18": 8,
    "torchvision/mobilenet_v2": 10,
    "torchvision/mobilenet_v3_small": 6,
    "torchvision/efficientnet_b0": 9,
    "torchvision/regnet_x_400mf": 22,
    "torchvision/mnasnet0_5": 10,
}


@pytest.mark.parametrize(("name", "count"), PLACES.items())
def test_identity_keeps_names_weights_and_outputs(name: str, count: int) -> None:
    torch.manual_seed(0)
    model = build(name).eval()
    randomize_norms(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(1, 3, 64, 64)
    expected = model(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert insert_attention(model, "eca", identity=True) is model
    modules = attention_modules(model)
    assert len(modules) == count
    names = [key for key in model.state_dict() if key not in before]
    assert names == [f"{name}.conv.weight" for name in modules]
    assert set(before) <= set(model.state_dict())
    # Halving a gate and doubling a weight are exact.
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize("attention", [a for a in list_attention() if a != "none"])
def test_identity_of_every_module(attention: str) -> None:
    torch.manual_seed(0)
    model = build("resnet20").double().eval()
    randomize_norms(model)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = model(images)
    if attention in ("simam", "se_var1"):  # without weights, there is nothing to set
        with pytest.raises(UserError, match="cannot start as the identity"):
            insert_attention(model, attention, identity=True)
    else:
        insert_attention(model, attention, identity=True)
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)


def test_outputs_are_those_of_attention_after_the_last_norm() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    for name in ("resnet10t", "torchvision/resnet18"):
        model = build(name).eval()
        randomize_norms(model)
        reference = copy.deepcopy(model)
        insert_attention(model, "eca")
        for key, module in attention_modules(model).items():
            block = ".".join(key.split(".")[:2])
            last = reference.get_submodule(f"{block}.bn2")
            last.register_forward_hook(lambda m, args, out, w=module.conv.weight: eca(out, w))
        torch.testing.assert_close(model(images), reference(images))


def test_into_a_detectors_backbone_with_frozen_norms() -> None:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = backbone(images)
    insert_attention(backbone, "eca", identity=True)
    assert next(iter(attention_modules(backbone))) == "body.layer1.0.bn2.attention"
    actual = backbone(images)
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def round_trip(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def reload(model: nn.Module, name: str) -> nn.Module:
    fresh = insert_attention(build(name), "se")
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


# A place of ours, one of timm's, and one after a batch norm.
@pytest.mark.parametrize("name", ["resnet20", "resnet10t", "torchvision/resnet18"])
@pytest.mark.parametrize(
    "survive",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        round_trip,
        nn.SyncBatchNorm.convert_sync_batchnorm,
        lambda model: torch.compile(model, backend="eager", fullgraph=True),
        lambda model: torch.export.export(model, (torch.randn(2, 3, 64, 64),)).module(),
    ],
    ids=["deepcopy", "pickle", "save", "synchronized", "compile", "export"],
)
def test_survives(name: str, survive: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = insert_attention(build(name), "se").eval()
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)
    torch.testing.assert_close(survive(model)(images), expected)
    if survive is copy.deepcopy:
        torch.testing.assert_close(reload(model, name)(images), expected)
        duplicate = survive(model)
        for module in attention_modules(duplicate).values():
            nn.init.zeros_(next(module.parameters()))
        torch.testing.assert_close(model(images), expected)


def test_survives_torch_fx() -> None:
    model = insert_attention(build("torchvision/resnet18"), "eca").eval()
    images = torch.randn(2, 3, 64, 64)
    extractor = create_feature_extractor(model, {"fc": "logits", "layer4": "features"})
    torch.testing.assert_close(extractor(images)["logits"], model(images))


def test_where_puts_a_module_after_each_match() -> None:
    with torch.device("meta"):
        model = build("torchvision/vgg11_bn")
    names = list(model.state_dict())
    # A sequence of numbered modules: an insertion between them would move the numbers.
    insert_attention(model, "eca", where="features.[58]")
    assert list(attention_modules(model)) == ["features.5.attention", "features.8.attention"]
    assert [key for key in model.state_dict() if "attention" not in key] == names


def test_where_finds_channels_by_running_the_model() -> None:
    model = timm.create_model("resnet10t").eval()
    insert_attention(model, "eca_ns", where="layer*")
    channels = [next(m.parameters()).shape[0] for m in attention_modules(model).values()]
    assert channels == [64, 128, 256, 512]
    assert next(iter(attention_modules(model))) == "layer1.attention"
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("name", "where", "count"),
    # Blocks of convolutions and, in the first one, of attention on (N, C, H, W); windows get none.
    [
        ("coatnet_pico_rw_224", None, 19),
        ("torchvision/maxvit_t", None, 11),
        ("torchvision/maxvit_t", "blocks.*", 4),
    ],
)
def test_networks_of_one_size_are_run_at_their_own(
    name: str, where: str | None, count: int
) -> None:
    with torch.device("meta"):
        model = insert_attention(build(name), "eca_ns", where=where)
    assert len(attention_modules(model)) == count


def test_where_on_one_of_our_blocks_fills_its_slot() -> None:
    model = insert_attention(create_model("resnet20"), "se", where="layer3.*")
    assert list(attention_modules(model)) == [f"layer3.{i}.attention" for i in range(3)]


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(8), nn.SyncBatchNorm(8), nn.GroupNorm(2, 8)])
def test_where_on_a_norm_of_vectors_is_refused(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm)
    with pytest.raises(UserError, match=r"need \(N, C, H, W\)"):
        insert_attention(model, "eca", where="3")
    assert attention_modules(model) == {}


def test_where_before_and_after_in_one_residual_branch() -> None:
    model = create_model("resnet20").eval()
    insert_attention(model, "se", where="layer3.*.bn1")
    insert_attention(model, "eca", where="layer3.*")
    assert len(attention_modules(model)) == 6
    assert model(torch.randn(1, 3, 8, 8)).shape == (1, 1000)


@pytest.mark.parametrize("name", ["resnet20", "resnet10t", "torchvision/resnet18"])
def test_a_second_module_replaces_the_first(name: str) -> None:
    torch.manual_seed(0)
    model = build(name).eval()
    randomize_norms(model)
    images = torch.randn(1, 3, 64, 64)
    plain = model(images)
    insert_attention(model, "se")
    count = len(attention_modules(model))
    insert_attention(model, "eca")
    assert len(attention_modules(model)) == count
    assert not any("fc1" in key for key in model.state_dict())
    insert_attention(model, "none")
    assert attention_modules(model) == {}
    assert torch.equal(model(images), plain)


def test_follows_the_models_device_dtype_and_mode() -> None:
    model = insert_attention(timm.create_model("resnet10t").double().eval(), "cbam")
    for module in attention_modules(model).values():
        assert not module.training
        assert next(module.parameters()).dtype == torch.float64
    with torch.device("meta"):
        meta = timm.create_model("resnet10t")
    insert_attention(meta, "cbam")
    assert all(value.is_meta for value in meta.state_dict().values())


def test_a_refused_insertion_leaves_the_model_unchanged() -> None:
    model = timm.create_model("resnet10t")
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    values = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError):
        insert_attention(model, "eca:kernel_size=4")
    assert [module.training for module in model.modules()] == modes
    assert list(model.state_dict()) == list(values)
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
    assert model.layer1[0].drop_path is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("lcnet_035", {}, "no residual block .* where"),
        ("lcnet_035", {}, "some of its modules: blocks"),
        ("vit_tiny_patch16_224", {}, "no residual block"),
        ("mambaout_femto", {}, r"need \(N, C, H, W\)"),
        ("sequencer2d_s", {}, "runs 2 times"),
        ("resnet20", {"where": "layer5.*"}, "matches no module .*: layer3"),
        ("resnet20", {"where": "layer1.*.attention"}, "matches no module"),
        ("torchvision/convnext_tiny", {"where": "features.1.*.block.2"}, r"need \(N, C, H, W\)"),
        ("resnet10t", {"kernel_sizes": "357"}, "3 kernels, but the model has 4 stages"),
    ],
)
def test_refusals_are_one_line(name: str, arguments: dict, message: str) -> None:
    with torch.device("meta"):
        model = build(name)
    names = list(model.state_dict())
    with pytest.raises(UserError, match=message) as caught:
        insert_attention(model, "eca", **arguments)
    assert "\n" not in str(caught.value)
    assert list(model.state_dict()) == names


def test_a_compiled_model_is_refused() -> None:
    model = create_model("resnet20", num_classes=3)
    for compiled in (torch.compile(model), nn.Sequential(torch.compile(model))):
        with pytest.raises(UserError, match="the model is compiled: insert first"):
            insert_attention(compiled, "eca", identity=True)
    assert not attention_modules(model)


def test_arguments_without_effect_are_refused() -> None:
    model = create_model("resnet20", attention="se")
    for arguments in ({"where": "layer1.*"}, {"identity": True}, {"kernel_sizes": "357"}):
        with pytest.raises(UserError, match="have no effect"):
            insert_attention(model, "none", **arguments)
    with pytest.raises(UserError, match="without attention modules"):
        insert_attention(model, "eca", identity=True)


def test_a_module_that_the_model_does_not_run_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    model[0].extra = nn.ReLU()
    with pytest.raises(UserError, match=r"0\.extra matches .* does not run it"):
        insert_attention(model, "eca", where="0.extra")


class Skipped(nn.Module):
    """A network that does not run its norm, or takes two images."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        if images == 2:
            self.forward = self.of_two  # type: ignore[method-assign, assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def of_two(self, left: Tensor, right: Tensor) -> Tensor:
        return self.bn(self.conv(left + right))


def test_a_module_that_does_not_run_is_refused_and_the_model_is_as_before() -> None:
    model = Skipped(1)
    before = dict(model.named_modules())
    with pytest.raises(
        UserError, match=r"1 of the 1 attention modules .* do not run \(bn\.attention"
    ):
        insert_attention(model, "se", where="bn")
    assert dict(model.named_modules()) == before
    assert type(model) is Skipped
    assert type(model.bn) is nn.BatchNorm2d
    assert not hasattr(model, "inserted_attention")


def test_what_cannot_be_checked_is_said() -> None:
    model = Skipped(2)
    with pytest.warns(
        UserWarning, match=r"was not checked, as Skipped does not take .* run one of"
    ):
        insert_attention(model, "se", where="bn")
    assert list(attention_modules(model)) == ["bn.attention"]


def test_a_users_module_that_raises_or_has_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @register_attention("raises_in_test")
    class Raises(nn.Module):
        def __init__(self, channels: int) -> None:
            raise RuntimeError("first line\nsecond line")

    @register_attention("bare_in_test")
    class Bare(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            return x

    @register_attention("fails_in_test")
    class Fails(Bare):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("one too many")

    model = create_model("resnet20")
    with pytest.raises(UserError, match="RuntimeError: first line second line"):
        insert_attention(model, "raises_in_test")
    with pytest.raises(UserError, match="no init_identity"):
        insert_attention(model, "bare_in_test", identity=True)
    with pytest.raises(
        UserError, match=r"fails_in_test fails at layer1\.0\.attention: .*one too many"
    ):
        insert_attention(model, "fails_in_test")
    assert attention_modules(model) == {}
