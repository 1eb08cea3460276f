"""Round trips through every layout are bit-identical; files are written atomically."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pooch
import pytest
import timm
import torch
import torchvision
from helpers.networks import equal
from safetensors import safe_open
from torch import Tensor, nn

import ecanet.models.weights.convert as module
from ecanet.errors import UserError
from ecanet.models import create_model, insert_attention
from ecanet.models.weights.convert import LAYOUTS, convert_weights
from ecanet.models.weights.identify import read_weights
from ecanet.models.weights.layouts import from_ecanet
from ecanet.models.weights.load import build_from_weights, load_weights

MODELS = {
    "eca_resnet18": {"kernel_sizes": "3577"},
    "eca_resnet34": {"kernel_sizes": "3357"},
    "eca_resnet50": {"kernel_sizes": "3557"},
    "eca_mobilenet_v2": {},
    "resnet18": {"num_classes": 3},
    "mobilenet_v2": {"num_classes": 3},
}
# What has names for what; the others are refused.
HAS_NO = {
    ("eca_mobilenet_v2", "torchvision"),
    ("eca_mobilenet_v2", "timm"),
    ("eca_mobilenet_v2", "mmdetection"),
    ("mobilenet_v2", "mmdetection"),
}


def out(folder: Path, layout: str) -> Path:
    endings = {"ecanet": "out.safetensors", "official": "out.pth.tar", "hub": "hub"}
    return folder / endings.get(layout, "out.pth")


@pytest.fixture(scope="module", params=MODELS)
def official(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Tensor]]:
    """Return a model's name, a file in the authors' format, and its weights.

    All values are random, so that mistakes show. The larger models are in half precision, which must be
    preserved as well, and is read and written twice as fast.
    """
    torch.manual_seed(0)
    dtype = torch.float16 if request.param in ("eca_resnet34", "eca_resnet50") else torch.float32
    state = {
        name: torch.randn(tensor.shape, dtype=dtype) if tensor.is_floating_point() else tensor + 7
        for name, tensor in create_model(request.param, **MODELS[request.param])
        .state_dict()
        .items()
    }
    names = {f"module.{n}": t for n, t in from_ecanet(state, "official").items()}
    path = tmp_path_factory.mktemp("in") / "checkpoint.pth.tar"
    torch.save({"epoch": 90, "arch": "x", "state_dict": names, "best_prec1": 77.25}, path)
    return request.param, path, state


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trips_are_bit_identical(
    official: tuple[str, Path, dict[str, Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
) -> None:
    name, path, state = official
    monkeypatch.setattr("os.fsync", lambda _: None)  # it takes long, and no power is cut here
    there = out(tmp_path, layout)
    if (name, layout) in HAS_NO:
        with pytest.raises(UserError, match="--to"):
            convert_weights(path, there, layout)
        assert list(tmp_path.iterdir()) == []
        return
    conversion = convert_weights(path, there, layout)
    back = tmp_path / "back.pth.tar"
    convert_weights(there, back, "official")
    weights = read_weights(back)
    assert weights.model == name
    if layout == "mmdetection":
        assert conversion.left_out == ["fc.weight", "fc.bias"]
        state = {n: t for n, t in state.items() if not n.startswith("fc.")}
    assert equal(weights.state_dict, state)
    if layout in ("ecanet", "official"):
        assert (weights.metadata["epoch"], weights.metadata["best_prec1"]) == ("90", "77.25")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"stem": "cifar", "attention": "cbam", "in_chans": 1, "num_classes": 4}),
        ("resnet20", {"attention": "eca:kernel_size=9", "num_classes": 10}),
        ("resnet20", {"attention": "simam", "num_classes": 10}),
        ("resnet20", {"attention": "eca_circular", "num_classes": 10}),
        ("eca_resnet18", {"kernel_sizes": (3, 5, 7, 11), "num_classes": 0}),
    ],
)
def test_our_own_layout_holds_every_model(tmp_path: Path, name: str, arguments: dict) -> None:
    model = create_model(name, **arguments).eval()
    source = tmp_path / "in.pth"
    torch.save(model.state_dict(), source)
    convert_weights(source, tmp_path / "out.safetensors")
    if arguments.get("attention") in ("simam", "eca_circular"):
        # Names and shapes do not tell these: only a description can.
        weights = read_weights(source)
        weights.attention, weights.kernel_sizes = arguments["attention"], None
        module.write_ecanet(module.Conversion(weights, tmp_path / "out.safetensors"), source)
    again = build_from_weights(tmp_path / "out.safetensors").eval()
    assert equal(again.state_dict(), model.state_dict())
    images = torch.randn(1, arguments.get("in_chans", 3), 32, 32)
    assert torch.equal(again(images), model(images))


def test_our_files_describe_the_model(tmp_path: Path) -> None:
    model = create_model("eca_resnet18", kernel_sizes="3577", num_classes=5)
    source = tmp_path / "in.pth"
    torch.save({"state_dict": model.state_dict(), "epoch": 4}, source)
    convert_weights(source, tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "ecanet_format": "1",
            "model": "eca_resnet18",
            "attention": "eca",
            "kernel_sizes": "3,5,7,7",
            "num_classes": "5",
            "in_chans": "3",
            "model_args": "{}",
            "source_layout": "ecanet",
            "source_sha256": pooch.file_hash(str(source)),
            "epoch": "4",
        }


@pytest.fixture(scope="module")
def eca18(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    model = create_model("eca_resnet18", num_classes=5).eval()
    path = tmp_path_factory.mktemp("eca18") / "in.pth"
    torch.save(model.state_dict(), path)
    return path, model


def test_the_old_program_can_resume(eca18: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path, model = eca18
    convert_weights(path, tmp_path / "out.pth.tar", "official")
    content = torch.load(tmp_path / "out.pth.tar", weights_only=True)
    assert list(content) == ["epoch", "arch", "state_dict", "best_prec1", "optimizer"]
    assert content["arch"] == "eca_resnet18"
    assert all(name.startswith("module.") for name in content["state_dict"])
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9, weight_decay=1e-4)
    optimizer.load_state_dict(content["optimizer"])


def test_timm_reads_its_layout(eca18: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path, model = eca18
    for name in ("out.pth", "out.safetensors"):
        convert_weights(path, tmp_path / name, "timm")
        arguments = {"block_args": {"attn_layer": "eca"}, "checkpoint_path": tmp_path / name}
        theirs = timm.create_model("resnet18", num_classes=5, **arguments).eval()
        images = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(theirs(images), model(images))


def test_torchvision_reads_its_layout(eca18: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path, model = eca18
    convert_weights(path, tmp_path / "out.pth", "torchvision")
    theirs = insert_attention(torchvision.models.resnet18(num_classes=5), "eca").eval()
    theirs.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True))
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(theirs(images), model(images))
    assert load_weights(create_model("eca_resnet18", num_classes=5), tmp_path / "out.pth").complete


def test_mmdetection_gets_a_backbone(eca18: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path, _ = eca18
    convert_weights(path, tmp_path / "out.pth", "mmdetection")
    state = torch.load(tmp_path / "out.pth", weights_only=True)["state_dict"]
    assert "backbone.layer1.0.eca.conv.weight" in state
    assert not any("fc" in name for name in state)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("eca_resnet18", {"kernel_sizes": "3577", "num_classes": 5}),
        ("eca_resnet18", {"stem": "cifar", "num_classes": 5, "in_chans": 1}),
        ("eca_mobilenet_v2", {"num_classes": 5}),
        ("resnet18", {"num_classes": 5}),
        ("mobilenet_v2", {"num_classes": 0}),
    ],
)
def test_timm_and_ecanet_load_a_hub_folder(tmp_path: Path, name: str, arguments: dict) -> None:
    torch.manual_seed(0)
    model = create_model(name, **arguments).eval()
    torch.save(model.state_dict(), tmp_path / "in.pth")
    folder = tmp_path / "hub"
    for _ in range(2):  # the second replaces the first
        convert_weights(tmp_path / "in.pth", folder, "hub")
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["config.json", "model.safetensors"]
    images = torch.randn(1, arguments.get("in_chans", 3), 64, 64)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(theirs(images), model(images))
    config = timm.data.resolve_model_data_config(theirs)
    assert config["input_size"] == (images.shape[1], 224, 224)
    assert torch.equal(build_from_weights(folder).eval()(images), model(images))


def test_our_layout_holds_other_models(tmp_path: Path) -> None:
    reference = timm.create_model("resnet10t", num_classes=3)
    torch.save(reference.state_dict(), tmp_path / "in.pth")
    convert_weights(tmp_path / "in.pth", tmp_path / "out.safetensors", model="resnet10t")
    model = build_from_weights(tmp_path / "out.safetensors")
    assert equal(model.state_dict(), reference.state_dict())
    with pytest.raises(UserError, match=r"--to official is for ResNet-18 .* holds resnet10t"):
        convert_weights(tmp_path / "out.safetensors", tmp_path / "x.pth", "official")


def test_partial_writes_what_fits(tmp_path: Path) -> None:
    state: dict[str, Any] = dict(create_model("eca_resnet18", num_classes=5).state_dict())
    del state["layer2.0.bn1.weight"]
    state["layer2.0.extra"] = torch.zeros(1)
    state["layer3.0.bn1.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "in.pth")
    arguments = (tmp_path / "in.pth", tmp_path / "out.safetensors")
    with pytest.raises(UserError, match=r"is incomplete: layer3\.0\.bn1\.bias is 3 in the file"):
        convert_weights(*arguments)
    assert not arguments[1].exists()
    report = convert_weights(*arguments, partial=True).weights.report
    assert report.missing == ["layer2.0.bn1.weight"]
    assert report.surplus == ["layer2.0.extra"]
    written = read_weights(arguments[1]).state_dict
    assert written.keys() == state.keys() - {"layer2.0.extra", "layer3.0.bn1.bias"}
    with pytest.raises(UserError, match="needs all weights"):
        convert_weights(arguments[0], tmp_path / "hub", "hub", partial=True)


@pytest.mark.parametrize(
    ("name", "to", "says"),
    [
        ("in.pth", "torchvision", "is the file to convert"),
        ("link.pth", "torchvision", "is the file to convert"),
        ("in.pth", "hub", "is a file"),
        (".", "official", "is a folder"),
        ("x.pth", "ecanet", "end in .safetensors"),
        ("x.safetensors", "official", "end in .pth"),
        ("x.pth", "onnx", "unknown layout"),
        ("in.pth/x.pth", "official", "cannot be written"),
    ],
)
def test_bad_outputs_are_one_line(
    eca18: tuple[Path, nn.Module], tmp_path: Path, name: str, to: str, says: str
) -> None:
    whole = eca18[0].read_bytes()
    source = tmp_path / "in.pth"
    source.write_bytes(whole)
    (tmp_path / "link.pth").symlink_to(source)
    with pytest.raises(UserError, match=says) as caught:
        convert_weights(source, tmp_path / name, to)
    assert "\n" not in str(caught.value)
    assert source.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "link.pth"]


def test_a_folder_is_not_converted_to_itself(eca18: tuple[Path, nn.Module], tmp_path: Path) -> None:
    convert_weights(eca18[0], tmp_path, "hub")
    for target, to in ((tmp_path, "hub"), (tmp_path / "model.safetensors", "ecanet")):
        with pytest.raises(UserError, match="is the file to convert"):
            convert_weights(tmp_path, target, to)


def test_an_interrupted_write_leaves_the_old_file(
    eca18: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.pth.tar"
    convert_weights(eca18[0], target, "official")
    whole = target.read_bytes()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        convert_weights(eca18[0], target, "official")
    assert target.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [target]
    assert torch.load(io.BytesIO(whole), weights_only=True)["arch"] == "eca_resnet18"
