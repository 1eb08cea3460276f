"""Converts names of MMDetection's detectors, 1.x to 3.x, to torchvision's, and back to those of 2.x and 3.x.

The background differs too: MMDetection 2.0 and later have it behind the classes, without boxes and masks;
1.x and torchvision have it as class 0. The order of all other channels agrees: anchors, their deltas (dx,
dy, dw, dh with the same scales) and flattened boxes.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ecanet.errors import UserError
from ecanet.models.weights.layouts import from_ecanet, to_ecanet

# MMDetection's prefixes and torchvision's; {} is a digit.
_NAMES = [
    ("neck.lateral_convs.{}.conv.", "backbone.fpn.inner_blocks.{}.0."),
    ("neck.fpn_convs.{}.conv.", "backbone.fpn.layer_blocks.{}.0."),
    ("rpn_head.rpn_conv.", "rpn.head.conv.0.0."),
    ("rpn_head.rpn_cls.", "rpn.head.cls_logits."),
    ("rpn_head.rpn_reg.", "rpn.head.bbox_pred."),
    ("bbox_head.shared_fcs.0.", "roi_heads.box_head.fc6."),
    ("bbox_head.shared_fcs.1.", "roi_heads.box_head.fc7."),
    ("bbox_head.fc_cls.", "roi_heads.box_predictor.cls_score."),
    ("bbox_head.fc_reg.", "roi_heads.box_predictor.bbox_pred."),
    ("mask_head.convs.{}.conv.", "roi_heads.mask_head.{}.0."),
    ("mask_head.upsample.", "roi_heads.mask_predictor.conv5_mask."),
    ("mask_head.conv_logits.", "roi_heads.mask_predictor.mask_fcn_logits."),
    ("bbox_head.cls_convs.{}.conv.", "head.classification_head.conv.{}.0."),
    ("bbox_head.reg_convs.{}.conv.", "head.regression_head.conv.{}.0."),
    ("bbox_head.retina_cls.", "head.classification_head.cls_logits."),
    ("bbox_head.retina_reg.", "head.regression_head.bbox_reg."),
]

_SCORES = "roi_heads.box_predictor.cls_score"
# Layers without outputs for the background since MMDetection 2.0, and their outputs per class.
_ROWS = {"roi_heads.box_predictor.bbox_pred": 4, "roi_heads.mask_predictor.mask_fcn_logits": 1}


def is_mmdetection(tensors: dict[str, Tensor]) -> bool:
    """Whether these are the weights of an MMDetection detector."""
    return any(re.match(r"(module\.)?neck\.lateral_convs\.", name) for name in tensors)


def to_torchvision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the weights of an MMDetection detector to torchvision's names and order of classes.

    Unknown names are kept.
    """
    bare = {re.sub(r"^(module\.)?(roi_head\.)?", "", name): t for name, t in tensors.items()}
    backbone = {name: t for name, t in bare.items() if name.startswith("backbone.")}
    levels = sum(bool(re.match(r"neck\.lateral_convs\.\d\.conv\.weight", name)) for name in bare)
    renamed = {f"backbone.body.{name}": t for name, t in to_ecanet(backbone).tensors.items()}
    for name, tensor in bare.items():
        if name not in backbone:
            renamed[_from_mmdetection(name, levels)] = tensor
    return _background_first(renamed)


def from_torchvision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the weights of a detector on a ResNet to the names and order of classes of MMDetection 2.x.

    Raises:
        UserError: MMDetection has no names for such a detector.
    """
    body = "backbone.body."
    backbone = {n.removeprefix(body): t for n, t in tensors.items() if n.startswith(body)}
    if "conv1.weight" not in backbone:
        raise UserError("--to mmdetection is for detectors on ResNets: others can go --to ecanet")
    renamed = {f"backbone.{n}": t for n, t in from_ecanet(backbone, "mmdetection").items()}
    levels = sum(bool(re.match(r"backbone\.fpn\.inner_blocks\.\d\.0\.weight", n)) for n in tensors)
    for name, tensor in _background_last(tensors).items():
        if not name.startswith(body):
            renamed[_to_mmdetection(name, levels)] = tensor
    if to_torchvision(renamed).keys() != tensors.keys():
        raise UserError(
            "MMDetection has no names for norms in the pyramid and the heads: only detectors of "
            "--norm frozen can be converted; --to ecanet works for all"
        )
    return renamed


def _to_mmdetection(name: str, levels: int) -> str:
    extra = re.match(r"backbone\.fpn\.extra_blocks\.p([67])\.", name)
    if extra:
        return f"neck.fpn_convs.{levels + int(extra[1]) - 6}.conv.{name[extra.end() :]}"
    renamed = _rename(name, [(ours, theirs) for theirs, ours in _NAMES])
    return f"roi_head.{renamed}" if name.startswith("roi_heads.") else renamed


def _from_mmdetection(name: str, levels: int) -> str:
    extra = re.match(r"neck\.fpn_convs\.(\d)\.conv\.", name)
    if extra and int(extra[1]) >= levels:  # RetinaNet's further levels
        return f"backbone.fpn.extra_blocks.p{6 + int(extra[1]) - levels}.{name[extra.end() :]}"
    return _rename(name, _NAMES)


def _rename(name: str, prefixes: list[tuple[str, str]]) -> str:
    """Replace the first of the old prefixes that ``name`` has by the new one."""
    for old, new in prefixes:
        pattern = re.escape(old).replace(r"\{\}", r"(\d)")
        renamed, count = re.subn(f"^{pattern}", new.replace("{}", r"\1"), name)
        if count:
            return renamed
    return name


def _background_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move the background to class 0 where MMDetection 2.0 has it last, or has no outputs for it."""
    deltas = "roi_heads.box_predictor.bbox_pred"
    biases = tensors.get(f"{_SCORES}.bias"), tensors.get(f"{deltas}.bias")
    lengths = [0 if bias is None or bias.ndim != 1 else len(bias) for bias in biases]
    if not all(lengths) or lengths[1] != 4 * (lengths[0] - 1):
        return tensors
    changed = dict(tensors)
    for part in ("weight", "bias"):
        score = tensors.get(f"{_SCORES}.{part}")
        if score is None or not score.ndim:
            continue
        changed[f"{_SCORES}.{part}"] = score.roll(1, 0)
        for layer, rows in _ROWS.items():
            tensor = tensors.get(f"{layer}.{part}")
            if tensor is not None and tensor.ndim:
                changed[f"{layer}.{part}"] = torch.cat([torch.zeros_like(tensor[:rows]), tensor])
    return changed


def _background_last(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move the background behind the classes, and drop its boxes and masks."""
    changed = dict(tensors)
    for part in ("weight", "bias"):
        if f"{_SCORES}.{part}" in tensors:
            changed[f"{_SCORES}.{part}"] = tensors[f"{_SCORES}.{part}"].roll(-1, 0)
        for layer, rows in _ROWS.items():
            if f"{layer}.{part}" in tensors:
                changed[f"{layer}.{part}"] = tensors[f"{layer}.{part}"][rows:].clone()
    return changed
