"""Weight files of detectors: ours and MMDetection's, made here name by name, and backbones for them."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.detectors import outputs, small_detector
from torch import Tensor

from ecanet.detection import create_detector, load_backbone, load_detector, load_into_detector
from ecanet.detection.detectors import DetectorSpec
from ecanet.detection.weights import _spec_checks, save_detector
from ecanet.errors import UserError
from ecanet.models import create_model
from ecanet.models.weights.save import save_weights

SMALL: dict[str, Any] = {"width": 32, "min_size": 64, "max_size": 96}
TORCHVISION_TO_MM = {
    r"^backbone\.body\.(layer\d\.\d)\.attention\.": r"backbone.\1.eca.",
    r"^backbone\.body\.": "backbone.",
    r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.": r"neck.lateral_convs.\1.conv.",
    r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.": r"neck.fpn_convs.\1.conv.",
    r"^backbone\.fpn\.extra_blocks\.p6\.": "neck.fpn_convs.3.conv.",
    r"^backbone\.fpn\.extra_blocks\.p7\.": "neck.fpn_convs.4.conv.",
    r"^rpn\.head\.conv\.0\.0\.": "rpn_head.rpn_conv.",
    r"^rpn\.head\.cls_logits\.": "rpn_head.rpn_cls.",
    r"^rpn\.head\.bbox_pred\.": "rpn_head.rpn_reg.",
    r"^roi_heads\.box_head\.fc6\.": "bbox_head.shared_fcs.0.",
    r"^roi_heads\.box_head\.fc7\.": "bbox_head.shared_fcs.1.",
    r"^roi_heads\.box_predictor\.cls_score\.": "bbox_head.fc_cls.",
    r"^roi_heads\.box_predictor\.bbox_pred\.": "bbox_head.fc_reg.",
    r"^roi_heads\.mask_head\.(\d)\.0\.": r"mask_head.convs.\1.conv.",
    r"^roi_heads\.mask_predictor\.conv5_mask\.": "mask_head.upsample.",
    r"^roi_heads\.mask_predictor\.mask_fcn_logits\.": "mask_head.conv_logits.",
    r"^head\.classification_head\.conv\.(\d)\.0\.": r"bbox_head.cls_convs.\1.conv.",
    r"^head\.regression_head\.conv\.(\d)\.0\.": r"bbox_head.reg_convs.\1.conv.",
    r"^head\.classification_head\.cls_logits\.": "bbox_head.retina_cls.",
    r"^head\.regression_head\.bbox_reg\.": "bbox_head.retina_reg.",
}


def mmdetection(detector: Any, version: int) -> dict[str, Tensor]:
    """The detector's weights as MMDetection 1 or 2 names and orders them."""
    state = {}
    for name, tensor in detector.state_dict().items():
        if version == 2 and "box_predictor.cls_score" in name:
            tensor = torch.cat([tensor[1:], tensor[:1]])  # the background comes last
        if version == 2 and "box_predictor.bbox_pred" in name:
            tensor = tensor[4:]
        if version == 2 and "mask_fcn_logits" in name:
            tensor = tensor[1:]
        for ours, theirs in TORCHVISION_TO_MM.items():
            name, count = re.subn(ours, theirs, name)
            if count:
                break
        if version == 2 and re.match(r"bbox_head\.(shared|fc)|mask_head", name):
            name = f"roi_head.{name}"
        state[name] = tensor
    return state


def detector_of(kind: str, num_classes: int = 3, **options: Any) -> Any:
    fixed = {"num_classes": num_classes, "kernel_sizes": "3377", "norm": "frozen"}
    return small_detector(kind, random_norms=True, **{**fixed, **options})


def test_our_file_says_all_that_is_needed(tmp_path: Path) -> None:
    detector = detector_of("mask_rcnn", class_names=["a", "b", "c"], category_ids=[2, 5, 90])
    save_detector(tmp_path / "x.safetensors", detector, metadata={"epoch": "7"})
    again, file = load_detector(tmp_path / "x.safetensors")
    assert (again.class_names, again.category_ids) == (["a", "b", "c"], [2, 5, 90])
    assert again.arguments == detector.arguments
    assert file.layout == "ecanet"
    assert file.metadata["epoch"] == "7"
    assert file.report.complete
    assert not again.training
    torch.testing.assert_close(outputs(again), outputs(detector), rtol=0, atol=0)
    larger, _ = load_detector(tmp_path / "x.safetensors", min_size=96)
    assert larger.transform.min_size[-1] == 96
    assert list(_spec_checks(1)) == [field.name for field in fields(DetectorSpec)]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "retinanet"])
def test_mmdetections_files_detect_the_same(tmp_path: Path, kind: str, version: int) -> None:
    detector = detector_of(kind)
    state = {f"module.{n}": t for n, t in mmdetection(detector, version).items()}
    torch.save({"meta": {"epoch": 12}, "state_dict": state}, tmp_path / "x.pth")
    again, file = load_detector(tmp_path / "x.pth", **SMALL)
    assert file.layout == "mmdetection"
    assert file.report.complete, file.report
    assert (again.arguments["kind"], again.arguments["backbone"]) == (kind, "eca_resnet18")
    assert tuple(again.arguments["kernel_sizes"]) == (3, 3, 7, 7)
    torch.testing.assert_close(outputs(again), outputs(detector), rtol=0, atol=0)


@pytest.mark.parametrize("version", [1, 2])
def test_eighty_classes_are_cocos(tmp_path: Path, version: int) -> None:
    state = mmdetection(detector_of("faster_rcnn", 80), version)
    assert len(state[f"{'roi_head.' * (version == 2)}bbox_head.fc_reg.bias"]) == 4 * (82 - version)
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    detector, _ = load_detector(tmp_path / "x.pth", **SMALL)
    assert detector.class_names[0] == "person"
    assert detector.class_names[-1] == "toothbrush"
    assert detector.category_ids[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13]
    assert detector.category_ids[-1] == 90


def test_what_does_not_agree_is_told(tmp_path: Path) -> None:
    state = mmdetection(detector_of("faster_rcnn", 80), 2)
    state["roi_head.bbox_head.extra.weight"] = torch.zeros(2)
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    detector = detector_of("mask_rcnn", 3)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    report = load_into_detector(detector, tmp_path / "x.pth")
    lines = str(report).splitlines()
    assert "roi_heads.mask_head.0.0.weight" in lines[1]
    assert lines[2] == "1 surplus in the file: bbox_head.extra.weight"
    # 80 classes are COCO's, and the detector is of others.
    assert lines[3].startswith("4 unrelated to the model, ignored: roi_heads.box_predictor.")
    kept = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(detector.state_dict()[kept], before[kept])
    assert not torch.equal(detector.state_dict()["rpn.head.cls_logits.bias"], torch.ones(3))


def test_other_classes_get_fresh_last_layers_even_if_as_many(tmp_path: Path) -> None:
    old = detector_of("mask_rcnn", class_names=["a", "b", "c"])
    save_detector(tmp_path / "x.safetensors", old)
    new = detector_of("mask_rcnn", seed=9, class_names=["a", "b", "d"])
    last = new.roi_heads.box_predictor.cls_score.weight.clone()
    report = load_into_detector(new, tmp_path / "x.safetensors")
    assert len(report.unrelated) == 6
    assert torch.equal(new.roi_heads.box_predictor.cls_score.weight, last)
    assert torch.equal(new.rpn.head.cls_logits.weight, old.rpn.head.cls_logits.weight)


@pytest.mark.parametrize("layout", ["ecanet", "official", "detector"])
def test_a_backbone_comes_from_any_layout(tmp_path: Path, layout: str) -> None:
    torch.manual_seed(4)
    model = create_model("eca_resnet18", kernel_sizes="3377", num_classes=10)
    state, path = model.state_dict(), tmp_path / "x.safetensors"
    if layout == "ecanet":
        save_weights(path, state, model="eca_resnet18", attention="eca", num_classes=10)
    elif layout == "official":
        path = tmp_path / "x.pth.tar"
        names = {f"module.{n.replace('.attention.', '.eca.')}": t for n, t in state.items()}
        torch.save({"epoch": 100, "arch": "eca_resnet18", "state_dict": names}, path)
    else:
        source = detector_of("faster_rcnn")
        save_detector(path, source)
        state = source.backbone.body.state_dict()
    detector = detector_of("mask_rcnn")
    report = load_backbone(detector, path)
    assert not report.missing
    assert not report.surplus
    for name, tensor in detector.backbone.body.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_mobilenet_backbone_and_fresh_attention(tmp_path: Path) -> None:
    torch.manual_seed(4)
    plain = create_model("mobilenet_v2", num_classes=10)
    path = tmp_path / "x.safetensors"
    save_weights(path, plain.state_dict(), model="mobilenet_v2", attention="none", num_classes=10)
    detector = create_detector("mask_rcnn", "mobilenet_v2", 3, attention="eca", **SMALL)
    report = load_backbone(detector, path)
    assert all(".attention." in name for name in report.missing)
    assert len(report.missing) == 17
    found = detector.backbone.body.model.state_dict()
    assert torch.equal(found["blocks.6.0.conv_pwl.weight"], plain.blocks[6][0].conv_pwl.weight)


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    model = create_model("eca_resnet18", kernel_sizes="3577", num_classes=10)
    save_weights(path, model.state_dict(), model="eca_resnet18", attention="eca", num_classes=10)
    with pytest.raises(UserError, match='the file\'s kernels are kernel_sizes="3577"'):
        load_backbone(detector_of("mask_rcnn"), path)
    with pytest.raises(UserError, match="holds no detector"):
        load_detector(path)
    with pytest.raises(UserError, match="holds no detector"):
        load_into_detector(detector_of("mask_rcnn"), path)
    deeper = create_detector("mask_rcnn", "resnet34", 3, **SMALL)
    with pytest.raises(UserError, match="does not fit"):
        load_backbone(deeper, path)
    save_detector(path, detector_of("mask_rcnn"))
    with pytest.raises(UserError, match="is for another backbone: backbone"):
        load_into_detector(deeper, path)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged"):
        load_detector(damaged)
    told = json.dumps({"kind": "mask_rcnn"})
    save_weights(path, {"x": torch.ones(1)}, model="resnet18", attention="none", num_classes=1,
                 metadata={"detector": told})  # fmt: skip
    with pytest.raises(UserError, match="detector"):
        load_detector(path)


@pytest.mark.parametrize(
    "head", ["roi_heads.box_predictor.cls_score", "head.classification_head.cls_logits"]
)
@pytest.mark.parametrize("shape", [(), (0,), (0, 256, 3, 3)])
def test_heads_of_odd_shapes_are_refused(tmp_path: Path, head: str, shape: tuple[int, ...]) -> None:
    state = {f"{head}.weight": torch.zeros(shape), "backbone.body.conv1.weight": torch.zeros(())}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError) as caught:
        load_detector(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)
