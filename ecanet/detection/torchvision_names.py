"""torchvision's detector files: old names, the background class, and unsupported detectors.

In all of torchvision's detectors class 0 is the background. Faster and Mask R-CNN need it here too.
RetinaNet never predicts it: here its outputs start with class 1.
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
# Where ecanet.insert_attention inserts a module into torchvision's ResNets.
_INSERTED = re.compile(r"^(backbone\.body\.layer\d+\.\d+)\.bn\d\.attention\.")
_OURS = re.compile(r"^(backbone\.body\.layer\d+\.\d+)\.attention\.")
_OLD_MASK_HEAD = re.compile(r"roi_heads\.mask_head\.mask_fcn(\d)\.")
# Each convolution was followed by a numbered activation.
_OLD_RETINANET_HEAD = re.compile(r"head\.(classification|regression)_head\.conv\.([0246])\.(?!\d)")
# The logit of an output that never fires, also in half precision.
_NEVER = -1e4
_RETINANET_CLASSES = "head.classification_head.cls_logits."

# Unsupported detectors by names of their weights; the first match counts.
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
    """Convert the weights of a torchvision detector to our names and outputs.

    The published files have the names from before torchvision 0.12.
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
    """Convert the weights of our detector to torchvision's names and outputs."""
    norm = "bn3" if "backbone.body.layer1.0.conv3.weight" in tensors else "bn2"
    renamed = {_OURS.sub(rf"\1.{norm}.attention.", name): t for name, t in tensors.items()}
    return _with_background(renamed)


def _without_background(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop RetinaNet's outputs for the background, class 0 of each anchor."""
    changed = dict(tensors)
    for name, tensor in tensors.items():
        has_anchors = tensor.ndim and tensor.numel() and len(tensor) % RETINANET_ANCHORS == 0
        if name.startswith(_RETINANET_CLASSES) and has_anchors:
            outputs = tensor.unflatten(0, (RETINANET_ANCHORS, -1))[:, 1:]
            changed[name] = outputs.flatten(0, 1).contiguous()
    return changed


def _with_background(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add RetinaNet's outputs for the background, which never win."""
    changed = dict(tensors)
    for part, value in (("weight", 0.0), ("bias", _NEVER)):
        name = f"{_RETINANET_CLASSES}{part}"
        if name in tensors:
            outputs = tensors[name].unflatten(0, (RETINANET_ANCHORS, -1))
            background = torch.full_like(outputs[:, :1], value)
            changed[name] = torch.cat([background, outputs], dim=1).flatten(0, 1)
    return changed


def foreign_detector(tensors: dict[str, Tensor]) -> str | None:
    """Return the name of the detector of these weights if it is known and not supported."""
    for pattern, what in _OTHERS:
        if any(re.match(rf"(module\.)?({pattern})", name) for name in tensors):
            return what
    return None
