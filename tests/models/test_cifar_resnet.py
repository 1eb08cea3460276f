"""CIFAR ResNets: the paper's sizes, and the forward pass written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ecanet.attention import list_attention
from ecanet.models import CifarResNet, attention_modules, create_model
from ecanet.profiling import count_parameters


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_sizes(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        model = create_model(f"resnet{depth}", num_classes=10)
    assert count_parameters(model) == parameters


def written_out(weights: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    def norm(x: Tensor, key: str) -> Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"{key}.{k}"] for k in keys))

    x = F.relu(norm(F.conv2d(x, weights["conv1.weight"], padding=1), "bn1"))
    for stage in (1, 2, 3):
        for block in range(blocks):
            key = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = F.conv2d(x, weights[f"{key}.conv1.weight"], stride=stride, padding=1)
            y = F.relu(norm(y, f"{key}.bn1"))
            y = norm(F.conv2d(y, weights[f"{key}.conv2.weight"], padding=1), f"{key}.bn2")
            if stride == 2:
                x = x[:, :, ::2, ::2]
                x = torch.cat([x, torch.zeros_like(x)], 1)
            x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), weights["fc.weight"], weights["fc.bias"])


def test_forward_pass_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    model = CifarResNet(20).double().eval()
    images = torch.randn(2, 3, 17, 17, dtype=torch.float64)
    torch.testing.assert_close(model(images), written_out(model.state_dict(), images, 3))


@pytest.mark.parametrize("attention", list_attention())
def test_every_attention_module_trains_on_small_grey_images(attention: str) -> None:
    torch.manual_seed(0)
    model = create_model("resnet20", num_classes=10, in_chans=1, attention=attention)
    assert len(attention_modules(model)) == (0 if attention == "none" else 9)
    images = torch.randn(4, 1, 8, 8).to(memory_format=torch.channels_last)
    logits = model(images)
    assert logits.shape == (4, 10)
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_head_is_that_of_timm() -> None:
    model = create_model("resnet20", num_classes=10, drop_rate=0.5)
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    assert features.shape == (2, 64, 8, 8)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert not torch.equal(model.forward_head(features), model.forward_head(features))
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    assert model.get_classifier().out_features == 3
    model.reset_classifier(0, "")
    assert model(images).shape == (2, 64, 8, 8)


def test_checkpointing_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    model = create_model("resnet20", num_classes=10, attention="eca")
    images = torch.randn(2, 3, 8, 8)
    model(images).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.set_grad_checkpointing()
    model(images).sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
