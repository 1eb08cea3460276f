"""torchvision's files of detectors: their old names, their background, and those that are of others.

torchvision counts the background among the classes of all its detectors, as class 0. Faster and Mask
R-CNN need it, and have it here too. RetinaNet never predicts it: here its outputs begin with class 1.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ecanet.detection.detectors import RETINANET_ANCHORS

_OLD_NAMES = [
    (
        r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)",
        r"backbone.fpn.\1_blocks.\2.0.\3",
    ),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
]
# Where ecanet.insert_attention puts a module into a ResNet of torchvision's.
_INSERTED = re.compile(r"^(backbone\.body\.layer\d+\.\d+)\.bn\d\.attention\.")
_OURS = re.compile(r"^(backbone\.body\.layer\d+\.\d+)\.attention\.")
_OLD_MASK_HEAD = re.compile(r"roi_heads\.mask_head\.mask_fcn(\d)\.")
# An activation stood behind each convolution, under a number of its own.
_OLD_RETINANET_HEAD = re.compile(r"head\.(classification|regression)_head\.conv\.([0246])\.(?!\d)")
# The logit of an output that never fires, also in half precision.
_NEVER = -1e4
_RETINANET_CLASSES = "head.classification_head.cls_logits."

# Detectors of others by names that ours do not have; the first that is found tells.
_OTHERS = [
    (r"roi_heads\.keypoint_predictor\.", "torchvision's Keypoint R-CNN"),
    (r"head\.regression_head\.bbox_ctrness\.", "torchvision's FCOS"),
    (r"backbone\.features\.0\.0\.0\.", "torchvision's SSDlite"),
    (r"head\.classification_head\.module_list\.", "torchvision's SSD"),
    (r"backbone\.body\.0\.0\.", "a detector of torchvision's on MobileNetV3"),
    (r"roi_heads\.box_head\.0\.0\.", "torchvision's Faster or Mask R-CNN v2"),
    (r"head\.classification_head\.conv\.0\.1\.", "torchvision's RetinaNet v2"),
    (r"backbone\.bottom_up\.", "a detector of Detectron2's"),
    (r"(roi_head\.)?bbox_head\.0\.", "MMDetection's Cascade R-CNN or one like it"),
    (r"bbox_head\.(conv_centerness|atss_|gfl_)", "MMDetection's FCOS, ATSS or GFL"),
    (r"(model\.)?(transformer|encoder|decoder)\..*attn", "a DETR or one like it"),
    (r"(model\.)+\d+\.(conv|cv\d|m)\.", "a YOLO of Ultralytics'"),
]


def from_torchvision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring the weights of a detector of torchvision's to our names and outputs.

    Its published files have the names that its detectors had before 0.12.
    """
    renamed = {}
    has_old_head = "head.classification_head.conv.6.weight" in tensors
    for name, tensor in tensors.items():
        for old, new in _OLD_NAMES:
            name = re.sub(f"^{old}$", new, name)
        name = _OLD_MASK_HEAD.sub(lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.", name)
        if has_old_head:
            name = _OLD_RETINANET_HEAD.sub(
                lambda m: f"head.{m[1]}_head.conv.{int(m[2]) // 2}.0.", name
            )
        renamed[_INSERTED.sub(r"\1.attention.", name)] = tensor
    return _without_background(renamed)


def to_torchvision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring the weights of our detector to torchvision's names and outputs."""
    norm = "bn3" if "backbone.body.layer1.0.conv3.weight" in tensors else "bn2"
    renamed = {_OURS.sub(rf"\1.{norm}.attention.", name): t for name, t in tensors.items()}
    return _with_background(renamed)


def _without_background(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out RetinaNet's outputs for the background, class 0 of each anchor."""
    return {
        name: tensor.unflatten(0, (RETINANET_ANCHORS, -1))[:, 1:].flatten(0, 1).contiguous()
        if name.startswith(_RETINANET_CLASSES)
        and tensor.numel()
        and tensor.ndim
        and len(tensor) % RETINANET_ANCHORS == 0
        else tensor
        for name, tensor in tensors.items()
    }


def _with_background(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give RetinaNet outputs for the background, which never win."""
    changed = dict(tensors)
    for part, value in (("weight", 0.0), ("bias", _NEVER)):
        name = f"{_RETINANET_CLASSES}{part}"
        if name in tensors:
            outputs = tensors[name].unflatten(0, (RETINANET_ANCHORS, -1))
            background = torch.full_like(outputs[:, :1], value)
            changed[name] = torch.cat([background, outputs], dim=1).flatten(0, 1)
    return changed


def foreign_detector(tensors: dict[str, Tensor]) -> str | None:
    """Return what weights are of, in words, if it is a detector that is known but not ours."""
    for pattern, what in _OTHERS:
        if any(re.match(rf"(module\.)?({pattern})", name) for name in tensors):
            return what
    return None
