"""ResNet-18 to 152: published sizes, the same function as torchvision's, and timm's tools."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torchvision
from helpers.networks import eca, randomize_norms

from ecanet.errors import UserError
from ecanet.models import attention_modules, create_model
from ecanet.models.resnet import Bottleneck, ResNet
from ecanet.profiling import count_parameters

PLAIN = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}
# Kernels of the released models, and the sum of those kernels over all blocks.
RELEASED = {
    "resnet18": ("3577", 44),
    "resnet34": ("3357", 72),
    "resnet50": ("3557", 80),
    "resnet101": ("3357", 157),
    "resnet152": ("3357", 234),
}


@pytest.mark.parametrize("name", PLAIN)
def test_sizes_are_the_published_ones(name: str) -> None:
    kernels, weights = RELEASED[name]
    with torch.device("meta"):
        assert count_parameters(create_model(name)) == PLAIN[name]
        model = create_model(f"eca_{name}", kernel_sizes=kernels)
    assert count_parameters(model) == PLAIN[name] + weights
    assert sum(count_parameters(m) for m in attention_modules(model).values()) == weights


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_computes_what_torchvision_does(name: str) -> None:
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name).double()
    randomize_norms(reference)
    model = create_model(name).double()
    model.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for training in (False, True):
        expected = reference.train(training)(images)
        actual = model.train(training)(images)
        torch.testing.assert_close(actual, expected)
    expected.square().mean().backward()
    actual.square().mean().backward()
    for (key, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(("name", "norm"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_attention_comes_after_the_last_norm_and_before_the_addition(name: str, norm: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, attention="eca").double().eval()
    randomize_norms(model)
    reference = torchvision.models.get_model(name).double().eval()
    plain = {k: v for k, v in model.state_dict().items() if "attention" not in k}
    reference.load_state_dict(plain)
    for key, module in attention_modules(model).items():
        last = reference.get_submodule(key.replace("attention", norm))
        last.register_forward_hook(lambda m, args, out, w=module.conv.weight: eca(out, w))
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(model(images), reference(images))


def test_timms_tools_work() -> None:
    images = torch.randn(2, 3, 64, 64)
    features = timm.create_model("eca_resnet18", features_only=True, out_indices=(1, 4))
    assert [f.shape[1:] for f in features(images)] == [(64, 16, 16), (512, 2, 2)]
    assert len(attention_modules(features)) == 8

    model = timm.create_model("eca_resnet18", num_classes=0, drop_path_rate=0.5)
    assert model(images).shape == (2, 512)
    model.reset_classifier(7, "max")
    assert model(images).shape == (2, 7)
    assert model.get_classifier().out_features == 7

    model.train().set_grad_checkpointing()
    model(images).sum().backward()
    assert model.layer1[0].attention.conv.weight.grad is not None

    dilated = timm.create_model("eca_resnet18", output_stride=8)
    assert dilated.forward_features(images).shape == (2, 512, 8, 8)
    assert dilated.pretrained_cfg["first_conv"] == "conv1"
    assert timm.data.resolve_model_data_config(dilated)["input_size"] == (3, 224, 224)


def test_drop_path_is_used_in_training_only() -> None:
    torch.manual_seed(0)
    model = create_model("resnet18", stem="cifar", attention="se", drop_path_rate=0.9)
    randomize_norms(model)
    images = torch.randn(4, 3, 16, 16)
    assert not torch.equal(model(images), model(images))
    model.eval()
    torch.testing.assert_close(model(images), model(images))


def test_cifar_stem_keeps_the_resolution() -> None:
    model = create_model("resnet18", stem="cifar", num_classes=10, in_chans=1)
    assert model.forward_features(torch.randn(1, 1, 32, 32)).shape == (1, 512, 4, 4)
    assert count_parameters(model) == PLAIN["resnet18"] - 512 * 990 - 990 - 64 * (3 * 49 - 9)
    assert [info["reduction"] for info in model.feature_info] == [1, 1, 2, 4, 8]
    std = math.sqrt(2 / (64 * 9))
    assert model.conv1.weight.std().item() == pytest.approx(std, rel=0.15)


def test_contradictions_are_refused() -> None:
    with torch.device("meta"):
        with pytest.raises(UserError, match="attn_layer"):
            ResNet(Bottleneck, (1, 1, 1, 1), block_args={"attn_layer": "se"})
        with pytest.raises(UserError, match="unknown stem 'tiny'"):
            ResNet(Bottleneck, (1, 1, 1, 1), stem="tiny")  # type: ignore[arg-type]
        with pytest.raises(UserError, match="stem_type"):
            ResNet(Bottleneck, (1, 1, 1, 1), stem="cifar", stem_type="deep")
        with pytest.raises(UserError, match="contradicts"):
            timm.create_model("eca_resnet18", attention="se")
