"""MobileNetV2: sizes, the same function as timm's, attention on every block's output."""

from __future__ import annotations

import timm
import torch
from helpers.networks import eca, randomize_norms

from ecanet.models import attention_modules, create_model
from ecanet.profiling import count_parameters


def test_sizes() -> None:
    with torch.device("meta"):
        assert count_parameters(create_model("mobilenet_v2")) == 3_504_872
        model = timm.create_model("eca_mobilenet_v2")
    assert count_parameters(model) == 3_504_872 + 6 * 1 + 11 * 3
    assert model.drop_rate == 0.25


def test_computes_what_timm_does_with_attention_after_each_block() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    reference = timm.create_model("mobilenetv2_100").double().eval()
    randomize_norms(reference)
    model = create_model("mobilenet_v2").double().eval()
    model.load_state_dict(reference.state_dict())
    torch.testing.assert_close(model(images), reference(images))

    model = create_model("eca_mobilenet_v2").double().eval()
    model.load_state_dict(reference.state_dict(), strict=False)
    for key, module in attention_modules(model).items():
        norm = "bn2" if key.startswith("blocks.0.") else "bn3"
        last = reference.get_submodule(key.replace("attention", norm))
        last.register_forward_hook(lambda m, args, out, w=module.conv.weight: eca(out, w))
    torch.testing.assert_close(model(images), reference(images))


def test_timms_tools_work() -> None:
    images = torch.randn(2, 3, 64, 64)
    features = timm.create_model("eca_mobilenet_v2", features_only=True)
    assert [f.shape[1] for f in features(images)] == [16, 24, 32, 96, 320]
    model = create_model("mobilenet_v2", attention="se", num_classes=0, drop_path_rate=0.2)
    assert model(images).shape == (2, 1280)
    model.reset_classifier(5)
    model.set_grad_checkpointing()
    model(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
