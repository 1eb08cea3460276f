"""The names of MMDetection's detectors, 1.x to 3.x, to torchvision's.

Beside the names two things differ. MMDetection 2.0 and later put the background behind the classes and
keep no boxes and masks for it; 1.x and torchvision have it in front, as class 0. And torchvision numbers
the channels of nothing else otherwise: anchors, their deltas (dx, dy, dw, dh, the same scales) and the
order of flattened boxes agree.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ecanet.models.checkpoint_layouts import to_ours

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
_OLD_TORCHVISION = [
    (
        r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)",
        r"backbone.fpn.\1_blocks.\2.0.\3",
    ),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
]
_OLD_MASK_HEAD = re.compile(r"roi_heads\.mask_head\.mask_fcn(\d)\.")


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


def from_old_torchvision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring the names that torchvision's detectors had before 0.12, as its files still do, to today's."""
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in _OLD_TORCHVISION:
            name = re.sub(f"^{old}$", new, name)
        name = _OLD_MASK_HEAD.sub(lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.", name)
        renamed[name] = tensor
    return renamed


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
