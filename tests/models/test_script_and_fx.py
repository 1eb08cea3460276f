"""TorchScript and torch.fx compute what the models and inserted modules compute."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.networks import randomize_norms
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


Way = Callable[[nn.Module], nn.Module]


def check(
    model: nn.Module,
    *images: Tensor,
    ways: tuple[Way, ...],
    modes: tuple[bool, ...] = (False, True),
) -> None:
    """Assert that the model computes the same in every way, and has weights of the same names.

    Args:
        model: any.
        images: given to it one by one.
        ways: of which only TorchScript's keeps a model that can be set to evaluation or training.
        modes: whether in training.
    """
    for way in ways:
        other = None
        for training in modes:
            model.train(training)
            if other is None or way is not scripted:
                other = way(copy.deepcopy(model))
            other.train(training)
            for image in images if training else (*images, images[0][:1]):
                with torch.set_grad_enabled(training):
                    torch.manual_seed(0)
                    expected = copy.deepcopy(model)(image)
                    torch.manual_seed(0)
                    found = other(image)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert dict(other.named_parameters()).keys() == dict(model.named_parameters()).keys()


def randomized(model: nn.Module) -> nn.Module:
    """Give norms and gates that start as constants other weights."""
    torch.manual_seed(0)
    randomize_norms(model)
    for gate in attention_modules(model).values() or [model]:
        for weight in gate.parameters():
            nn.init.normal_(weight, std=0.3)
    return model


@pytest.mark.parametrize("spec", SPECS)
def test_attention_modules(spec: str) -> None:
    module = randomized(create_attention(spec, 64))
    images = torch.randn(3, 64, 9, 6), torch.randn(2, 64, 16, 8), torch.randn(2, 64, 7, 7)
    last = images[1].contiguous(memory_format=torch.channels_last)
    check(module, *images, last, ways=(scripted, symbolic))
    check(module, torch.randn(2, 64, 1, 1), modes=(False,), ways=(scripted, symbolic))
    traced = torch.jit.trace(module.eval(), images[0])
    torch.testing.assert_close(traced(images[0]), module(images[0]))


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("spec", ["eca", "srm", "cbam"])
def test_signals_and_volumes(spec: str, dims: int) -> None:
    module = randomized(create_attention(spec, 16, dims=dims))
    check(module, torch.randn(2, 16, *[6] * dims), ways=(scripted, symbolic))


def test_feature_maps_are_checked() -> None:
    gate = torch.jit.script(create_attention("eca", 8))
    with pytest.raises(torch.jit.Error, match=r"is for feature maps \(N, C, H, W\), got 3"):
        gate(torch.randn(8, 4, 4))


@pytest.mark.parametrize("spec", SPECS)
def test_every_module_in_a_block(spec: str) -> None:
    block = BasicBlock(32, 32)
    block.attention = create_attention(spec, 32)
    check(randomized(nn.Sequential(block)), torch.randn(2, 32, 8, 8), modes=(False,), ways=(both,))


def small_mobilenet(**kwargs: Any) -> nn.Module:
    blocks = decode_arch_def([["ds_r1_k3_s1_c16"], ["ir_r2_k3_s2_e2_c24"]])
    return MobileNetV2(blocks, num_classes=4, **kwargs)


SMALL = {
    "cifar": partial(CifarResNet, 8, num_classes=4),
    "basic": partial(ResNet, BasicBlock, (1, 1, 1, 1), channels=(8, 16, 16, 32), num_classes=4),
    "bottleneck": partial(ResNet, Bottleneck, (1, 1, 1, 1), channels=(8, 8, 16, 16), num_classes=4),
    "mobilenet": small_mobilenet,
}


@pytest.mark.parametrize("fused", ["auto", True, False])
@pytest.mark.parametrize("attention", ["none", "eca"])
@pytest.mark.parametrize("name", SMALL)
def test_our_models(name: str, attention: str, fused: bool | str) -> None:
    model = randomized(SMALL[name](attention=attention, fused=fused))
    # Of what is scripted, fused is a mere attribute.
    ways: tuple[Way, ...] = (scripted, symbolic) if fused == "auto" else (symbolic,)
    check(model, torch.randn(4, 3, 64, 64), ways=ways)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_each_of_our_models(name: str) -> None:
    model = create_model(name, num_classes=10).eval()
    check(model, torch.randn(1, 3, 64, 64), modes=(False,), ways=(scripted, both))


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


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "identity"), [("srm", False), ("eca", True)])
@pytest.mark.parametrize("network", NETWORKS)
def test_insertions(network: str, attention: str, identity: bool) -> None:
    """After a norm, in a Sequential, before a drop path; with a scale inside a gate and after a module."""
    torch.manual_seed(0)
    model = NETWORKS[network]()
    randomize_norms(model)
    insert_attention(model, attention, identity=identity)
    image = torch.randn(4, 3, 64, 64)
    check(model, image, ways=(scripted, symbolic))
    with torch.no_grad():
        traced = torch.jit.trace(model.eval(), image)
        torch.testing.assert_close(traced(image), model(image), rtol=1e-4, atol=1e-5)


def test_after_a_layer_of_its_own_constants() -> None:
    """TorchScript still knows the constants of timm's layer norm, whose class has annotations."""
    model = timm.create_model("test_convnext", num_classes=4)
    insert_attention(model, "eca", where="stages.*.downsample.0")
    check(model, torch.randn(2, 3, 64, 64), modes=(False,), ways=(scripted,))


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
        grads = {name: weight.grad for name, weight in other.named_parameters()}
        for name, weight in one.named_parameters():
            assert weight.grad is not None
            difference = (weight.grad - grads[name]).abs().max()  # type: ignore[operator]
            assert difference <= 1e-4 * weight.grad.abs().max(), name


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
        check(model, torch.randn(2, 3, 32, 32), modes=(False,), ways=(scripted, both))
