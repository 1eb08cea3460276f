"""Exported files compute the same as the models; those that do not are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import Refuse, Run
from helpers.detectors import small_detector
from helpers.news import news
from PIL import Image
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from ecanet import create_attention, list_attention
from ecanet.config import ExportSettings
from ecanet.data.preprocessing import Preprocessing
from ecanet.detection import save_detector
from ecanet.errors import UserError
from ecanet.export import detectors, export_model
from ecanet.export import run as export
from ecanet.export.verify import compare_logits, compare_objects
from ecanet.models import create_model
from ecanet.models.weights.save import save_weights


def detector(kind: str) -> Any:
    """Return a small detector whose objects differ clearly in their scores."""
    sizes = {"min_size": 96, "max_size": 160, "width": 16, "anchor_size": 16}
    classes = {"class_names": ["a", "b", "c"], "category_ids": [2, 5, 9]}
    proposals = {} if kind == "retinanet" else {"proposals": 50}
    return small_detector(kind, **sizes, **classes, **proposals)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Return images of several shapes, some of which scale to whole pixels, without equal objects."""
    generator = np.random.default_rng(0)
    paths = [str(tmp_path / f"{n}.png") for n in range(3)]
    for path, size in zip(paths, [(320, 200), (210, 300), (150, 150)], strict=True):
        pixels = generator.integers(0, 255, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mine.safetensors", "mine"])
def test_a_classifier_is_exported_for_any_batch_and_size(
    run: Run, workdir: Path, name: str
) -> None:
    file, out = Path(name), Path("mine.pt2")
    if name == "mine":  # the folder of a run
        file = Path("mine/best.safetensors")
        file.parent.mkdir()
        Path("mine/settings.json").write_text("{}")
    torch.manual_seed(0)
    model = create_model("resnet20", attention="eca", num_classes=4).eval()
    save_weights(
        file, model.state_dict(), model="resnet20", attention="eca", num_classes=4,
        preprocessing=Preprocessing(32, 36), classes=["w", "x", "y", "z"],
    )  # fmt: skip
    code, printed, err = run("export", name, "--format", "torch")
    assert (code, printed) == (0, f"{out}\n"), err
    assert "agrees with PyTorch: largest difference of the logits " in err
    kept = {"ecanet.json": ""}
    program = torch.export.load(out, extra_files=kept).module()
    told = json.loads(kept["ecanet.json"])
    assert json.loads(told["classes"]) == ["w", "x", "y", "z"]
    assert Preprocessing.from_metadata(told) == Preprocessing(32, 36)
    for shape in ((1, 3, 32, 32), (5, 3, 40, 48)):
        images = torch.randn(shape)
        torch.testing.assert_close(program(images), model(images))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build a CNN of two blocks for every name, as export time grows with the number of layers."""

    def build(name: str, *, num_classes: int, attention: str, pretrained: bool) -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3)]
        for chans in (16, 32):
            layers += [nn.Conv2d(chans, 2 * chans, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * chans)]
            layers += [create_attention(attention, 2 * chans), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes)]
        return nn.Sequential(*layers)

    monkeypatch.setattr(export, "create_model", build)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("attention", list_attention())
def test_every_attention_module_can_be_exported(
    attention: str, tmp_path: Path, small: None
) -> None:
    settings = ExportSettings("small", "torch", attention, num_classes=10, image_size=64)
    assert "agrees" in export_model(settings, tmp_path / "model.pt2")


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["none", "eca", "cbam", "fca"])
def test_classifiers_run_in_onnx_runtime(attention: str, tmp_path: Path, small: None) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    settings = ExportSettings("small", "onnx", attention, num_classes=10, image_size=64)
    assert "agrees" in export_model(settings, out)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"], "one file, weights inside"
    session = onnxruntime.InferenceSession(str(out))
    assert session.get_modelmeta().custom_metadata_map["model"] == "small"
    # The frequencies of fca are those of a 7x7 grid, and ONNX has no pooling to it from any size.
    sides = (64, 64) if attention == "fca" else (96, 80)
    logits = session.run(["logits"], {"images": np.zeros((7, 3, *sides), np.float32)})[0]
    assert logits.shape == (7, 10)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "form"), [("mask_rcnn", "onnx"), ("retinanet", "onnx"), ("mask_rcnn", "torch")]
)
def test_detectors_find_the_same_objects_in_images_of_any_size(
    kind: str, form: Any, tmp_path: Path, pictures: list[str]
) -> None:
    pytest.importorskip("onnxruntime")
    file, out = tmp_path / f"{kind}.safetensors", tmp_path / f"{kind}.{form}"
    save_detector(file, detector(kind))
    settings = ExportSettings(str(file), form, threshold=0.45, images=pictures)
    with news() as lines:
        line = export_model(settings, out)
    assert line.startswith("agrees with PyTorch: "), line
    again, total = line.split(": ")[1].split(" objects")[0].split(" of ")
    assert int(total) >= int(again) > 10
    assert lines == [], "all sizes are dynamic"


def test_a_file_that_does_not_agree_is_not_written(
    refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_write", lambda source, path, form: path.touch() or {})
    monkeypatch.setattr(export, "_torch_run", lambda path: lambda image: (torch.zeros(2, 10),))
    out = tmp_path / "model.pt2"
    out.write_text("an older one")
    flags = ("--num-classes", "10", "--format", "torch", "--out", str(out))
    refuse("does not agree with PyTorch", "export", "resnet20", *flags)
    assert out.read_text() == "an older one"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_logits_are_compared() -> None:
    logits = torch.randn(3, 5)
    assert "0.0e+00" in compare_logits([(logits,)], [(logits,)])
    for other in (logits + 0.1, logits * torch.nan):
        with pytest.raises(UserError, match="does not agree"):
            compare_logits([(logits,)], [(other,)])


def test_objects_are_compared_in_any_order() -> None:
    corner = torch.rand(60, 2) * 500
    ours = (torch.cat([corner, corner + 40], 1), torch.arange(60) % 3, torch.rand(60))
    order = torch.randperm(60)
    theirs = tuple(part[order] for part in ours)
    assert "60 of 60 objects" in compare_objects([ours], [theirs])
    one_less = tuple(part[:-1] for part in theirs)
    assert "59 of 60" in compare_objects([ours], [one_less])
    moved = (ours[0] + 2, *ours[1:])
    others = (ours[0], (ours[1] + 1) % 3, ours[2])
    fewer = tuple(part[:50] for part in ours)
    none = tuple(part[:0] for part in ours)
    for wrong in (moved, others, fewer, none):
        for pair in ((ours, wrong), (wrong, ours)):
            with pytest.raises(UserError, match="does not agree"):
                compare_objects(pair[:1], pair[1:])
    assert "the check is weak" in compare_objects([none], [none])


def test_masks_are_pasted_as_torchvision_pastes_them() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(40, 2, generator=generator) * 90
    boxes = torch.cat([corner, corner + torch.rand(40, 2, generator=generator) * 90 + 0.3], 1)
    boxes = boxes.clamp(max=torch.tensor([120.0, 97, 120, 97]))  # as detectors give them
    masks = torch.rand(40, 1, 28, 28, generator=generator)
    ours = detectors.paste_masks(masks, boxes, (97, 120))
    theirs = paste_masks_in_image(masks, boxes, (97, 120))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert detectors.paste_masks(masks[:0], boxes[:0], (9, 8)).shape == (0, 1, 9, 8)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "no model given"),
        ("resnet21", "unknown model 'resnet21'"),
        ("text.pth", "not a weight file"),
        ("resnet20 --format onyx", "expected one of 'onnx', 'torch'"),
        ("resnet20 --threshold 0.3", "changes nothing for a classifier"),
        ("resnet20 --image-size 2", "--image-size 2"),
        ("resnet20 --images text.pth", "text.pth cannot be read as an image"),
        ("resnet20 --images nowhere.png", "nowhere.png cannot be read"),
        ("resnet20 --attention ecca", "eca"),
        ("resnet20 --plugin nowhere.py", "nowhere.py"),
        ("text.pth --out text.pth", "choose another file"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    refuse: Refuse, workdir: Path, arguments: str, says: str
) -> None:
    Path("text.pth").write_text("not found")
    refuse(says, "export", *arguments.split())
    assert [path.name for path in workdir.iterdir()] == ["text.pth"]


def test_flags_that_detectors_cannot_use_are_refused(refuse: Refuse, tmp_path: Path) -> None:
    file = tmp_path / "retinanet.safetensors"
    save_detector(file, detector("retinanet"))
    for name, value in (("image-size", "64"), ("attention", "se"), ("threshold", "2")):
        refuse(name, "export", file, f"--{name}", value, "--out", tmp_path / "out.onnx")
