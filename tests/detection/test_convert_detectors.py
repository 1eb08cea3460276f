"""Detectors in other layouts and back: they find the same to the bit, and are evaluated alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Run
from helpers.detectors import outputs, small_detector
from torch import Tensor

from ecanet.detection import load_detector, save_detector
from ecanet.detection.convert import convert_detector
from ecanet.errors import UserError

FURTHER = {
    "epoch": "7",
    "metrics": '{"box_AP": 0.5}',
    "evaluation": json.dumps({"precision": "bf16", "channels_last": True, "ignore_exif": False}),
}


def detector(kind: str, **options: Any) -> Any:
    fixed = {"kernel_sizes": "3377", "norm": "frozen", "anchor_size": 16, "min_size": [48, 64]}
    classes = {"class_names": ["a", "b", "c"], "category_ids": [2, 5, 90]}
    return small_detector(kind, random_norms=True, **{**fixed, **classes, **options})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("ecanet", "x.safetensors"),
        ("torchvision", "x.safetensors"),
        ("torchvision", "x.pth"),
        ("mmdetection", "x.pth"),
    ],
)
@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "retinanet"])
def test_there_and_back(tmp_path: Path, kind: str, to: str, name: str) -> None:
    ours = detector(kind)
    save_detector(tmp_path / "ours.safetensors", ours, metadata=FURTHER)
    there, back = tmp_path / name, tmp_path / "back.safetensors"
    convert_detector(tmp_path / "ours.safetensors", there, to)
    convert_detector(there, back)
    expected = outputs(ours)
    assert len(expected["labels"]) > 5
    for file in (there, back):
        again, found = load_detector(file)
        torch.testing.assert_close(outputs(again), expected, rtol=0, atol=0)
        assert again.arguments == json.loads(json.dumps(ours.arguments))
        assert (again.class_names, again.category_ids) == (["a", "b", "c"], [2, 5, 90])
        assert FURTHER.items() <= found.metadata.items()


def test_a_pickle_for_torchvision_is_a_state_dict(tmp_path: Path) -> None:
    ours = detector("retinanet")
    save_detector(tmp_path / "ours.safetensors", ours)
    convert_detector(tmp_path / "ours.safetensors", tmp_path / "x.pth", "torchvision")
    state = torch.load(tmp_path / "x.pth", weights_only=True)
    assert all(isinstance(value, Tensor) for value in state.values())
    assert "backbone.body.layer1.0.bn2.attention.conv.weight" in state
    assert len(state["head.classification_head.cls_logits.bias"]) == 9 * 4


def test_mmdetection_gets_its_own_names_and_the_background_behind(tmp_path: Path) -> None:
    ours = detector("mask_rcnn")
    save_detector(tmp_path / "ours.safetensors", ours)
    convert_detector(tmp_path / "ours.safetensors", tmp_path / "x.pth", "mmdetection")
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    assert content["meta"]["CLASSES"] == ("a", "b", "c")
    state, own = content["state_dict"], ours.state_dict()
    score, boxes = (f"roi_heads.box_predictor.{n}.weight" for n in ("cls_score", "bbox_pred"))
    assert torch.equal(state["roi_head.bbox_head.fc_cls.weight"][:3], own[score][1:])
    assert torch.equal(state["roi_head.bbox_head.fc_cls.weight"][3], own[score][0])
    assert torch.equal(state["roi_head.bbox_head.fc_reg.weight"], own[boxes][4:])
    assert len(state["roi_head.mask_head.conv_logits.weight"]) == 3
    assert "backbone.layer1.0.eca.conv.weight" in state
    assert {n.split(".")[0] for n in state} == {"backbone", "neck", "rpn_head", "roi_head"}


def test_what_a_layout_has_no_place_for_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ours.safetensors"
    save_detector(file, detector("faster_rcnn", norm="group"))
    with pytest.raises(UserError, match="--norm frozen"):
        convert_detector(file, tmp_path / "x.pth", "mmdetection")
    with pytest.raises(UserError, match="a detector can go --to ecanet, torchvision, mmdetection"):
        convert_detector(file, tmp_path / "x.pth", "timm")
    with pytest.raises(UserError, match=r"let the name end in \.pth"):
        convert_detector(file, tmp_path / "x.safetensors", "mmdetection")
    with pytest.raises(UserError, match="give the new one another name"):
        convert_detector(file, file)
    assert [path.name for path in tmp_path.iterdir()] == ["ours.safetensors"]


def test_the_command_converts_the_whole_detector(run: Run, tmp_path: Path) -> None:
    save_detector(tmp_path / "ours.safetensors", detector("faster_rcnn"))
    files = (tmp_path / "ours.safetensors", tmp_path / "x.pth")
    code, out, _ = run("convert", *files, "--to", "mmdetection")
    assert code == 0
    assert out.splitlines()[0] == "faster_rcnn on eca_resnet18"
    assert load_detector(tmp_path / "x.pth")[0].arguments["kind"] == "faster_rcnn"
