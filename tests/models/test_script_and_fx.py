"""TorchScript and torch.fx compute what the models and inserted modules compute."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from timm.models import FeatureGraphNet
from timm.models._efficientnet_builder import decode_arch_def
from torch import Tensor, nn
from torchvision.models import convnext, mobilenetv2, resnet
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from ecanet import create_model, insert_attention, list_attention, list_models
from ecanet.attention import create_attention, register_attention, registry
from ecanet.models import CifarResNet, MobileNetV2, ResNet, attention_modules
from ecanet.models.resnet import BasicBlock, Bottleneck

SPECS = [
    *list_attention(),
    "ge:variant=minus",
    "ge:variant=minus:extent=0",
    "ge:variant=theta",
    "ge:extent=0:size=7",
    "se:bias=False",
]


def scripted(model: nn.Module) -> nn.Module:
    """Return the model as it is after TorchScript has saved and loaded it."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    return torch.jit.load(file)


def symbolic(model: nn.Module) -> nn.Module:
    return torch.fx.symbolic_trace(model)


def both(model: nn.Module) -> nn.Module:
    return scripted(symbolic(model))


def check(model: nn.Module, *images: Tensor, training: bool, ways: tuple[Callable, ...]) -> None:  # type: ignore[type-arg]
    """Assert that the model computes the same in every way, and in training has the same gradients."""
    model.train(training)
    for way in ways:
        other = way(copy.deepcopy(model))
        for image in images:
            with torch.set_grad_enabled(training):
                torch.manual_seed(0)
                expected = copy.deepcopy(model)(image)
                torch.manual_seed(0)
                found = other(image)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert dict(other.named_parameters()).keys() == dict(model.named_parameters()).keys()


def randomized(model: nn.Module) -> nn.Module:
    """Give gates that start as constants other weights, and norms other statistics."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            nn.init.uniform_(module.running_var, 0.5, 2)
    for gate in attention_modules(model).values() or [model]:
        for weight in gate.parameters():
            nn.init.normal_(weight, std=0.3)
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_attention_modules(spec: str, training: bool) -> None:
    module = randomized(create_attention(spec, 64))
    images = torch.randn(3, 64, 9, 6), torch.randn(2, 64, 16, 8)
    images += images[1].contiguous(memory_format=torch.channels_last), torch.randn(2, 64, 7, 7)
    if not training:
        images += (torch.randn(2, 64, 1, 1),)
    check(module, *images, training=training, ways=(scripted, symbolic))
    if not training:
        traced = torch.jit.trace(module, images[0])
        torch.testing.assert_close(traced(images[0]), module(images[0]))


def test_feature_maps_are_checked() -> None:
    gate = torch.jit.script(create_attention("eca", 8))
    with pytest.raises(torch.jit.Error, match=r"is for feature maps \(N, C, H, W\), got 3"):
        gate(torch.randn(8, 4, 4))


@pytest.mark.parametrize("spec", SPECS)
def test_every_module_in_a_network(spec: str) -> None:
    model = randomized(CifarResNet(8, num_classes=4, attention=spec, channels=(32, 32, 32)))
    check(model, torch.randn(2, 3, 32, 32), training=False, ways=(both,))


SMALL = {
    "cifar": partial(CifarResNet, 8, num_classes=4),
    "basic": partial(ResNet, BasicBlock, (1, 1, 1, 1), channels=(8, 16, 16, 32), num_classes=4),
    "bottleneck": partial(ResNet, Bottleneck, (1, 1, 1, 1), channels=(8, 8, 16, 16), num_classes=4),
    "mobilenet": partial(
        MobileNetV2, decode_arch_def([["ds_r1_k3_s1_c16"], ["ir_r2_k3_s2_e2_c24"]]), num_classes=4
    ),
}


@pytest.mark.parametrize("fused", ["auto", True, False])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("attention", ["none", "eca", "srm"])
@pytest.mark.parametrize("name", SMALL)
def test_our_models(name: str, attention: str, training: bool, fused: bool | str) -> None:
    model = randomized(SMALL[name](attention=attention, fused=fused))
    ways = {"auto": scripted, True: symbolic, False: both}  # what each does with fused is the same
    check(model, torch.randn(4, 3, 64, 64), training=training, ways=(ways[fused],))


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_each_of_our_models(name: str) -> None:
    model = create_model(name, num_classes=10).eval()
    check(model, torch.randn(1, 3, 64, 64), training=False, ways=(scripted, both))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "timm resnet": partial(timm.create_model, "test_resnet", num_classes=4),
    "timm convnext": partial(timm.create_model, "test_convnext", num_classes=4),
    "timm byobnet": partial(timm.create_model, "test_byobnet", num_classes=4),
    "timm nfnet": partial(timm.create_model, "test_nfnet", num_classes=4),
    "torchvision resnet": partial(resnet.ResNet, resnet.Bottleneck, [1, 1, 1, 1], num_classes=4),
    "torchvision mobilenet": partial(
        mobilenetv2.MobileNetV2,
        4,
        inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]],
        dropout=0.0,
    ),
    "torchvision convnext": partial(
        convnext.ConvNeXt, [convnext.CNBlockConfig(16, 32, 1), convnext.CNBlockConfig(32, None, 1)]
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("attention", ["eca", "srm", "cbam"])
@pytest.mark.parametrize("network", NETWORKS)
def test_insertions(network: str, attention: str, identity: bool, training: bool) -> None:
    """After a norm, in a Sequential, before a drop path; with a scale inside a gate and after a module."""
    torch.manual_seed(0)
    model = insert_attention(NETWORKS[network](), attention, identity=identity)
    image = torch.randn(4, 3, 64, 64)
    ways = (symbolic, scripted) if "timm" in network else (scripted, both)
    check(model, image, training=training, ways=ways)
    if not training:
        with torch.no_grad():
            traced = torch.jit.trace(model, image)
            torch.testing.assert_close(traced(image), model(image), rtol=1e-4, atol=1e-5)


def test_after_a_layer_of_its_own_constants() -> None:
    """TorchScript still knows the constants of timm's layer norm, whose class has annotations."""
    model = timm.create_model("test_convnext", num_classes=4)
    insert_attention(model, "eca", where="stages.*.downsample.0")
    check(model, torch.randn(2, 3, 64, 64), training=False, ways=(scripted,))


def test_features_by_the_names_of_modules() -> None:
    model = SMALL["basic"](attention="eca").eval()
    image = torch.randn(1, 3, 64, 64)
    names = get_graph_node_names(model)[1]
    wanted = ["layer1.0.bn2", "layer1.0.attention", "layer1.0.act2", "layer4", "fc"]
    assert {"layer1.0.bn2", "layer1.0.act2", "layer1.0.attention.sigmoid", "fc"} <= set(names)
    found = create_feature_extractor(model, wanted)(image)

    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _, args, output, name=name: seen.update({name: output.clone()})
        )
        for name in wanted
    ]
    model(image)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close({k: found[k] for k in seen}, seen, rtol=1e-4, atol=1e-5)
    assert seen.keys() == set(wanted)

    stages = FeatureGraphNet(model, (1, 2, 3))
    torch.testing.assert_close(
        stages(image),
        model.forward_intermediates(image, indices=[1, 2, 3], intermediates_only=True),
    )


def test_gradients_of_scripted_training() -> None:
    model = randomized(SMALL["basic"](attention="se", fused=True, drop_path_rate=0.3))
    image = torch.randn(8, 3, 64, 64)
    for other in (scripted(copy.deepcopy(model)), symbolic(copy.deepcopy(model))):
        one = copy.deepcopy(model)
        for net in (one, other):
            torch.manual_seed(0)
            net(image).square().sum().backward()
        for (name, weight), same in zip(one.named_parameters(), other.parameters(), strict=True):
            scale = weight.grad.abs().max()  # type: ignore[union-attr]
            difference = (weight.grad - same.grad).abs().max()  # type: ignore[operator]
            assert difference <= 1e-3 * scale, name


def test_a_saved_file_needs_no_ecanet(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = insert_attention(NETWORKS["torchvision resnet"](), "srm", identity=True).eval()
    image = torch.randn(2, 3, 64, 64)
    torch.jit.script(model).save(str(tmp_path / "model.pt"))
    torch.save((image, model(image)), tmp_path / "example.pt")
    program = """
import sys, torch
image, expected = torch.load("example.pt")
torch.testing.assert_close(torch.jit.load("model.pt")(image), expected, rtol=1e-4, atol=1e-5)
assert "ecanet" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_ones_own_pooled_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    from ecanet.attention import PooledGate

    @register_attention("both_moments")
    class BothMoments(PooledGate):
        moments = 2

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(channels))

        def gate(self, mean: Tensor, variance: Tensor) -> Tensor:
            return torch.sigmoid(mean * self.weight + variance)

    for fused in (True, False):
        model = CifarResNet(8, attention="both_moments", fused=fused)
        check(model, torch.randn(2, 3, 32, 32), training=False, ways=(scripted, both))
