"""The names of MMDetection's detectors, 1.x to 3.x, to torchvision's, and back to those of 2.x and 3.x.

Beside the names two things differ. MMDetection 2.0 and later put the background behind the classes and
keep no boxes and masks for it; 1.x and torchvision have it in front, as class 0. And torchvision numbers
the channels of nothing else otherwise: anchors, their deltas (dx, dy, dw, dh, the same scales) and the
order of flattened boxes agree.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ecanet.errors import UserError
from ecanet.models.weights.layouts import to_ours, to_theirs

_NAMES = [
    (r"neck\.lateral_convs\.(\d)\.conv\.", r"backbone.fpn.inner_blocks.\1.0."),
    (r"neck\.fpn_convs\.(\d)\.conv\.", r"backbone.fpn.layer_blocks.\1.0."),
    (r"rpn_head\.rpn_conv\.", r"rpn.head.conv.0.0."),
    (r"rpn_head\.rpn_cls\.", r"rpn.head.cls_logits."),
    (r"rpn_head\.rpn_reg\.", r"rpn.head.bbox_pred."),
    (r"bbox_head\.shared_fcs\.0\.", r"roi_heads.box_head.fc6."),
    (r"bbox_head\.shared_fcs\.1\.", r"roi_heads.box_head.fc7."),
    (r"bbox_head\.fc_cls\.", r"roi_heads.box_predictor.cls_score."),
    (r"bbox_head\.fc_reg\.", r"roi_heads.box_predictor.bbox_pred."),
    (r"mask_head\.convs\.(\d)\.conv\.", r"roi_heads.mask_head.\1.0."),
    (r"mask_head\.upsample\.", r"roi_heads.mask_predictor.conv5_mask."),
    (r"mask_head\.conv_logits\.", r"roi_heads.mask_predictor.mask_fcn_logits."),
    (r"bbox_head\.cls_convs\.(\d)\.conv\.", r"head.classification_head.conv.\1.0."),
    (r"bbox_head\.reg_convs\.(\d)\.conv\.", r"head.regression_head.conv.\1.0."),
    (r"bbox_head\.retina_cls\.", r"head.classification_head.cls_logits."),
    (r"bbox_head\.retina_reg\.", r"head.regression_head.bbox_reg."),
]


def is_mmdetection(tensors: dict[str, Tensor]) -> bool:
    """Whether weights have MMDetection's names of a detector."""
    return any(re.match(r"(module\.)?neck\.lateral_convs\.", name) for name in tensors)


def to_torchvision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring the weights of an MMDetection detector to torchvision's names and order of classes.

    What has no counterpart keeps its name.
    """
    bare = {re.sub(r"^(module\.)?(roi_head\.)?", "", name): t for name, t in tensors.items()}
    backbone = {name: t for name, t in bare.items() if name.startswith("backbone.")}
    levels = sum(bool(re.match(r"neck\.lateral_convs\.\d\.conv\.weight", name)) for name in bare)
    renamed = {f"backbone.body.{name}": t for name, t in to_ours(backbone).tensors.items()}
    for name, tensor in bare.items():
        if name not in backbone:
            renamed[_rename(name, levels)] = tensor
    return _background_first(renamed)


def from_torchvision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring the weights of a detector on a ResNet to the names and order of classes of MMDetection 2.x.

    Raises:
        UserError: MMDetection has no names for such a detector.
    """
    body = "backbone.body."
    backbone = {n.removeprefix(body): t for n, t in tensors.items() if n.startswith(body)}
    if "conv1.weight" not in backbone:
        raise UserError("--to mmdetection is for detectors on ResNets: others can go --to ecanet")
    renamed = {f"backbone.{n}": t for n, t in to_theirs(backbone, "mmdetection").items()}
    levels = sum(bool(re.match(r"backbone\.fpn\.inner_blocks\.\d\.0\.weight", n)) for n in tensors)
    for name, tensor in _background_last(tensors).items():
        if not name.startswith(body):
            renamed[_named_theirs(name, levels)] = tensor
    if to_torchvision(renamed).keys() != tensors.keys():
        raise UserError(
            "MMDetection has no names for norms in the pyramid and the heads: detectors of --norm frozen "
            "can go there, and all of them --to ecanet"
        )
    return renamed


def _named_theirs(name: str, levels: int) -> str:
    extra = re.match(r"backbone\.fpn\.extra_blocks\.p([67])\.", name)
    if extra:
        return f"neck.fpn_convs.{levels + int(extra[1]) - 6}.conv.{name[extra.end() :]}"
    for theirs, ours in _NAMES:
        pattern = re.escape(ours).replace(r"\\1", r"(\d)")
        renamed, count = re.subn(f"^{pattern}", _plain(theirs), name)
        if count:
            return f"roi_head.{renamed}" if name.startswith("roi_heads.") else renamed
    return name


def _plain(pattern: str) -> str:
    """Return the name that a pattern of :data:`_NAMES` stands for, as a template."""
    return pattern.replace(r"(\d)", r"\1").replace(r"\.", ".")


def _rename(name: str, levels: int) -> str:
    extra = re.match(r"neck\.fpn_convs\.(\d)\.conv\.", name)
    if extra and int(extra[1]) >= levels:  # RetinaNet's further levels
        return f"backbone.fpn.extra_blocks.p{6 + int(extra[1]) - levels}.{name[extra.end() :]}"
    for theirs, ours in _NAMES:
        renamed, count = re.subn(f"^{theirs}", ours, name)
        if count:
            return renamed
    return name


def _background_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the background, class 0, in front where MMDetection 2.0 has it behind, or not at all."""
    head = "roi_heads.box_predictor"
    scores, deltas = tensors.get(f"{head}.cls_score.bias"), tensors.get(f"{head}.bbox_pred.bias")
    if scores is None or deltas is None or scores.ndim != 1 or deltas.ndim != 1:
        return tensors
    if len(deltas) != 4 * (len(scores) - 1):
        return tensors
    changed = dict(tensors)
    for part in ("weight", "bias"):
        score = tensors.get(f"{head}.cls_score.{part}")
        if score is None or not score.ndim:
            continue
        changed[f"{head}.cls_score.{part}"] = torch.cat([score[-1:], score[:-1]])
        for name, rows in (
            (f"{head}.bbox_pred.{part}", 4),
            (f"roi_heads.mask_predictor.mask_fcn_logits.{part}", 1),
        ):
            if name in tensors and tensors[name].ndim:
                background = torch.zeros_like(tensors[name][:rows])
                changed[name] = torch.cat([background, tensors[name]])
    return changed


def _background_last(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the background behind the classes, and leave its boxes and masks out."""
    changed = dict(tensors)
    for part in ("weight", "bias"):
        score = f"roi_heads.box_predictor.cls_score.{part}"
        if score in tensors:
            changed[score] = torch.cat([tensors[score][1:], tensors[score][:1]])
        for name, rows in (
            (f"roi_heads.box_predictor.bbox_pred.{part}", 4),
            (f"roi_heads.mask_predictor.mask_fcn_logits.{part}", 1),
        ):
            if name in tensors:
                changed[name] = tensors[name][rows:].clone()
    return changed
