"""torchvision's own detectors: ours gives what theirs gives, and those that ours cannot be are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models.detection as torchvision_detection
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from ecanet.detection import load_detector
from ecanet.detection.torchvision_names import foreign_detector
from ecanet.errors import UserError

SIZES = {"min_size": 96, "max_size": 160}
COCO = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
OLD_NAMES = [
    (r"^(backbone\.fpn\.\w+_blocks\.\d)\.0\.", r"\1."),
    (r"^rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
]


def theirs(name: str, **options: Any) -> Any:
    """Return a detector of torchvision's that finds many things, and never the background."""
    torch.manual_seed(0)
    if "rcnn" in name:
        options |= {"rpn_pre_nms_top_n_test": 60, "rpn_post_nms_top_n_test": 60}
    options |= {"weights": None, "weights_backbone": None}
    model = getattr(torchvision_detection, name)(**SIZES, **options)
    for buffer_name, buffer in model.named_buffers():
        if "running" in buffer_name:
            buffer.uniform_(0.5, 1.5)
    if "retinanet" in name:
        logits = model.head.classification_head.cls_logits
        nn.init.normal_(logits.weight, std=0.3)
        nn.init.constant_(logits.bias, -1.0)
        logits.bias.data.unflatten(0, (9, -1))[:, 0] = -1e4
    else:
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=3.0)
    return model.eval()


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the names of torchvision's published files, which are older than its code."""
    renamed = {}
    for name, tensor in state.items():
        for new, old in OLD_NAMES:
            name = re.sub(new, old, name)
        name = re.sub(
            r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name
        )
        name = re.sub(
            r"(\w+_head)\.conv\.(\d)\.0\.", lambda m: f"{m[1]}.conv.{2 * int(m[2])}.", name
        )
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize(
    ("name", "kind", "naming"),
    [
        ("fasterrcnn_resnet50_fpn", "faster_rcnn", "new"),
        ("maskrcnn_resnet50_fpn", "mask_rcnn", "old"),
        ("retinanet_resnet50_fpn", "retinanet", "new"),
        ("retinanet_resnet50_fpn", "retinanet", "old"),
    ],
)
def test_it_finds_what_torchvision_finds(tmp_path: Path, name: str, kind: str, naming: str) -> None:
    """Boxes, scores and labels; a label's name and id are those that torchvision publishes for it."""
    model = theirs(name)
    if kind == "retinanet":
        model.detections_per_img = 100
    state = model.state_dict()
    torch.save(state if naming == "new" else old_names(state), tmp_path / "x.pth")
    fewer = {"proposals": 60} if kind != "retinanet" else {}
    ours, file = load_detector(tmp_path / "x.pth", **SIZES, **fewer)
    assert (file.layout, ours.arguments["kind"]) == ("torchvision", kind)
    assert file.report.complete
    image = torch.rand(3, 90, 120, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = model([image])[0], ours([image])[0]
    assert len(expected["labels"]) > 20
    assert torch.equal(found["labels"], expected["labels"])
    for part in set(expected) - {"labels"}:
        torch.testing.assert_close(found[part], expected[part], rtol=1e-4, atol=1e-4)
    for label in found["labels"].unique().tolist():
        assert ours.class_names[label - 1] == COCO[label]
        assert ours.category_ids[label - 1] == label


def test_own_classes_of_torchvisions_retinanet_begin_behind_the_background(tmp_path: Path) -> None:
    model = theirs("retinanet_resnet50_fpn", num_classes=4)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    ours, _ = load_detector(tmp_path / "x.pth", **SIZES)
    assert ours.arguments["num_classes"] == 3
    image = torch.rand(3, 90, 120, generator=torch.Generator().manual_seed(1))
    model.detections_per_img = 100
    with torch.no_grad():
        expected, found = model([image])[0], ours([image])[0]
    assert torch.equal(found["labels"], expected["labels"])
    assert set(found["labels"].tolist()) == {1, 2, 3}


def hollow(name: str) -> dict[str, Tensor]:
    """Return weights of one of torchvision's models, right in name and shape, a byte each."""
    with torch.device("meta"):
        model = getattr(torchvision_detection, name)(weights=None, weights_backbone=None)
    return {n: torch.zeros(t.shape, dtype=torch.int8) for n, t in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fasterrcnn_resnet50_fpn_v2", "Faster or Mask R-CNN v2"),
        ("maskrcnn_resnet50_fpn_v2", "Faster or Mask R-CNN v2"),
        ("retinanet_resnet50_fpn_v2", "RetinaNet v2"),
        ("fasterrcnn_mobilenet_v3_large_fpn", "MobileNetV3"),
        ("fcos_resnet50_fpn", "FCOS"),
        ("ssd300_vgg16", "torchvision's SSD,"),
        ("ssdlite320_mobilenet_v3_large", "SSDlite"),
        ("keypointrcnn_resnet50_fpn", "Keypoint R-CNN"),
    ],
)
def test_detectors_that_are_not_ours_are_refused(tmp_path: Path, name: str, says: str) -> None:
    torch.save(hollow(name), tmp_path / "x.pth")
    with pytest.raises(UserError, match="which ecanet does not support") as error:
        load_detector(tmp_path / "x.pth")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("backbone.bottom_up.res2.0.conv1.weight", "Detectron2"),
        ("roi_head.bbox_head.0.fc_cls.weight", "Cascade"),
        ("bbox_head.conv_centerness.weight", "FCOS"),
        ("module.transformer.encoder.layers.0.self_attn.in_proj_weight", "DETR"),
        ("model.0.conv.weight", "YOLO"),
    ],
)
def test_detectors_of_others_are_known(name: str, says: str) -> None:
    assert says in (foreign_detector({name: torch.zeros(1)}) or "")


@pytest.mark.parametrize("change", ["missing", "surplus", "mismatched"])
def test_a_detector_that_is_not_complete_is_refused(tmp_path: Path, change: str) -> None:
    state = hollow("fasterrcnn_resnet50_fpn")
    head = "roi_heads.box_head.fc7.weight"
    if change == "missing":
        del state[head]
    elif change == "surplus":
        state["roi_heads.box_head.fc8.weight"] = torch.zeros(1)
    else:
        state[head] = torch.zeros(7, 7)
    torch.save(state, tmp_path / "x.pth")
    fits = "does not fit .* faster_rcnn on resnet50: roi_heads.box_h"
    with pytest.raises(UserError, match=fits):
        load_detector(tmp_path / "x.pth")


def test_counters_beside_the_weights_do_no_harm(tmp_path: Path) -> None:
    state = hollow("fasterrcnn_resnet50_fpn")
    state["n_averaged"] = torch.zeros(())
    state["data_preprocessor.mean"] = torch.zeros(3, 1, 1)
    torch.save(state, tmp_path / "x.pth")
    assert load_detector(tmp_path / "x.pth")[1].report.complete
