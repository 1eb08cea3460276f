"""create_model: every name, the same weights for the same seed, and helpful errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from ecanet.errors import UserError
from ecanet.models import attention_modules, create_model, factory, list_models


@pytest.mark.parametrize("name", list_models())
def test_every_model_runs_forward_and_backward(name: str) -> None:
    attention = "eca" if name.startswith("eca_") else "cbam"
    # The deepest differ in depth alone: their shapes are enough.
    with torch.device("meta" if name.endswith(("101", "152", "110")) else "cpu"):
        model = create_model(name, num_classes=3, attention=attention, image_size=32)
        logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    assert attention_modules(model)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "name", ["resnet20", "resnet18", "mobilenet_v2", "resnet10t", "torchvision/mobilenet_v3_small"]
)
def test_a_seed_gives_all_attention_modules_the_same_common_weights(name: str) -> None:
    torch.manual_seed(0)
    plain = create_model(name, num_classes=10).state_dict()
    after = torch.rand(3)
    for attention in ("none", "eca", "cbam", "ge"):
        torch.manual_seed(0)
        model = create_model(name, num_classes=10, attention=attention)
        assert torch.equal(torch.rand(3), after), attention
        weights = model.state_dict()
        assert all(torch.equal(weights[key], value) for key, value in plain.items()), attention
        torch.manual_seed(0)
        again = create_model(name, num_classes=10, attention=attention).state_dict()
        assert all(torch.equal(again[key], value) for key, value in weights.items()), attention


def test_eca_by_name_and_by_argument_are_the_same_model() -> None:
    torch.manual_seed(0)
    by_name = create_model("eca_resnet18", image_size=32).state_dict()
    torch.manual_seed(0)
    by_argument = create_model("resnet18", attention="eca", stem="cifar").state_dict()
    assert list(by_name) == list(by_argument)
    assert all(torch.equal(by_name[key], by_argument[key]) for key in by_name)


@pytest.mark.parametrize(
    ("name", "arguments", "kernels"),
    [
        ("resnet20", {"attention": "eca", "kernel_sizes": (3, 5, 7)}, [3] * 3 + [5] * 3 + [7] * 3),
        ("eca_resnet50", {}, [5] * 13 + [7] * 3),
        ("eca_mobilenet_v2", {}, [1] * 6 + [3] * 11),
        ("mobilenet_v2", {"attention": "eca"}, [3] * 13 + [5] * 4),
        ("eca_mobilenet_v2", {"attention": "eca:kernel_size=9"}, [9] * 17),
        ("eca_mobilenet_v2", {"kernel_sizes": "3333555"}, [3] * 10 + [5] * 7),
    ],
)
def test_kernels_of_eca(name: str, arguments: dict[str, Any], kernels: list[int]) -> None:
    with torch.device("meta"):
        model = create_model(name, **arguments)
    assert [m.conv.weight.shape[-1] for m in attention_modules(model).values()] == kernels


@pytest.mark.parametrize(
    ("name", "image_size", "kernel"),
    [
        *(("resnet18", size, kernel) for size, kernel in ((32, 3), (64, 3), (65, 7), (None, 7))),
        # These have one stem.
        *(("mobilenet_v2", 32, 3), ("resnet20", 224, 3), ("torchvision/resnet18", 32, 7)),
    ],
)
def test_stem_fits_the_image(name: str, image_size: int | None, kernel: int) -> None:
    with torch.device("meta"):
        model = create_model(name, image_size=image_size)
    stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert stem.kernel_size == (kernel, kernel)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet21", {}, "Did you mean .*resnet20"),
        ("???", {}, "Known: eca_mobilenet_v2"),
        ("efficientnet_b00", {}, "Did you mean .*efficientnet_b0"),
        ("torchvision/resnet19", {}, "Did you mean .*resnet18"),
        ("resnet18", {"attention": "ecaa"}, "unknown attention module 'ecaa'"),
        ("resnet18", {"attention": "eca:kernel_size=4"}, "kernel_size"),
        ("eca_resnet18", {"attention": "none"}, "use resnet18"),
        ("eca_resnet18", {"attention": "se"}, "contradicts"),
        ("eca_resnet18", {"attention": "ecaa"}, "unknown attention module 'ecaa'"),
        ("eca_resnet18", {"kernel_sizes": "355"}, "3 kernels, but the model has 4 stages"),
        ("eca_resnet18", {"kernel_sizes": "3x57"}, "a digit for each stage"),
        ("eca_resnet18", {"kernel_sizes": "3456"}, "kernel_size"),
        (
            "eca_resnet18",
            {"kernel_sizes": "3557", "attention": "eca:kernel_size=3"},
            "give only one",
        ),
        ("resnet18", {"kernel_sizes": "3557"}, "have no effect"),
        ("resnet18", {"kernel_sizes": "3557", "attention": "simam"}, "kernel_size"),
        ("resnet10t", {"kernel_sizes": "3557"}, "have no effect"),
        ("resnet20", {"stem": "cifar"}, "only one stem"),
        ("mobilenet_v2", {"stem": "imagenet"}, "only one stem"),
        ("resnet18", {"stem": "cifar", "image_size": 32}, "give only one"),
        ("resnet18", {"stem": "cifar", "pretrained": True}, "imagenet stem"),
        ("resnet20", {"pretrained": True}, "no pretrained weights"),
        ("eca_resnet18", {"pretrained": True}, "resnet18 with attention=eca"),
        ("resnet20", {"no_such": 1}, "no_such"),
        ("resnet18", {"no_such": 1}, "no_such"),
        ("resnet10t", {"no_such": 1}, "no_such"),
    ],
)
def test_bad_arguments_are_one_line(name: str, arguments: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=message) as caught:
        create_model(name, **arguments)
    assert "\n" not in str(caught.value)


def test_pretrained_weights_fill_all_but_the_attention_modules(tmp_path: Path) -> None:
    torch.manual_seed(1)
    released = timm.create_model("resnet18").state_dict()
    file = tmp_path / "weights.pth"
    torch.save(released, file)
    model = create_model(
        "resnet18",
        attention="se",
        num_classes=5,
        image_size=32,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(file)},
    )
    weights = model.state_dict()
    for key, value in released.items():
        assert key.startswith("fc.") or torch.equal(weights[key], value), key
    assert model.fc.out_features == 5
    assert model.conv1.kernel_size == (7, 7)  # the weights' stem, whatever the image's size


def test_missing_pretrained_weights_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no\nroute to host")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", fail)
    with pytest.raises(UserError, match=r"no pretrained weights for resnet18 .*no route to host"):
        create_model("resnet18", pretrained=True)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_torchvisions_stem_takes_grey_images_as_color(name: str) -> None:
    outputs = []
    image = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for channels in (1, 3):
        torch.manual_seed(0)
        model = create_model(f"torchvision/{name}", num_classes=7, in_chans=channels).eval()
        with torch.no_grad():
            outputs.append(model(image.expand(1, channels, 64, 64)))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_torchvisions_classifier_gets_classes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = torchvision.models.get_model
    monkeypatch.setattr(torchvision.models, "get_model", lambda short, weights: build(short))
    model = create_model(f"torchvision/{name}", num_classes=7, pretrained=True)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_a_plugins_model_is_found_and_gets_attention() -> None:
    @timm.models.register_model
    def one_block_net(pretrained: bool = False, **kwargs: object) -> nn.Module:
        block = timm.models.resnet.BasicBlock(8, 8)
        return nn.Sequential(nn.Conv2d(3, 8, 3), block, nn.Flatten(), nn.LazyLinear(2))

    model = create_model("one_block_net", attention="eca")
    assert list(attention_modules(model)) == ["1.drop_path.attention"]


def test_list_models_builds() -> None:
    assert {"resnet20", "resnet50", "eca_resnet152", "eca_mobilenet_v2"} <= set(list_models())
    assert list_models() == sorted(factory._OURS)
