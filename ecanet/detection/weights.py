"""Weights of detectors: our own files, MMDetection's and torchvision's; and backbones for them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from ecanet.config import DetectorKind, DetectorNorm
from ecanet.detection.detectors import create_detector
from ecanet.detection.mmdetection import (
    from_old_torchvision,
    is_mmdetection,
    to_torchvision,
)
from ecanet.errors import UserError
from ecanet.models.checkpoint_files import Checkpoint, read_checkpoint
from ecanet.models.description import (
    attention_spec,
    checked,
    kernel_sizes,
    largest_size,
    model_name,
    one_of,
    one_or_several,
    optional,
    outline,
    read_json,
    several,
    text,
    whole,
)
from ecanet.models.save import save_weights
from ecanet.models.weights import LoadReport, compare_weights, load_weights, read_weights

# In the metadata of our files: the arguments of create_detector, as JSON.
DETECTOR_KEY = "detector"

_NO_DETECTOR = "{} holds no detector: a backbone's weights are for --backbone-weights"

# What a file may ask for, in pixels and in boxes an image: no weight has these sizes.
_LARGEST_IMAGE, _MOST_BOXES = 8192, 100_000

# The layers whose outputs are classes.
_CLASS_LAYERS = (
    "roi_heads.box_predictor.",
    "roi_heads.mask_predictor.mask_fcn_logits.",
    "head.classification_head.cls_logits.",
)


@dataclass
class DetectorFile:
    """What a weight file says of its detector."""

    layout: str
    """Whose names the file has: ecanet, mmdetection or torchvision."""
    report: LoadReport
    """How the file's weights fit the detector."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Plain values that stood beside the weights: ``epoch``, ``metrics`` ..."""


def save_detector(
    path: Path,
    detector: Any,
    tensors: Mapping[str, Tensor] | None = None,
    further: Mapping[str, str] | None = None,
) -> None:
    """Write a detector's weights to ``path`` atomically, with all that is needed to build it again.

    Args:
        detector: what :func:`create_detector` returned.
        tensors: to write in place of its own weights: a running mean of them.
        further: metadata of the caller's own.

    Raises:
        OSError: the disk is full; a file that was there is intact.
    """
    arguments = detector.arguments
    backbone = arguments["backbone"]
    save_weights(
        path,
        tensors or detector.state_dict(),
        model=backbone,
        attention=arguments["attention"] or ("eca" if backbone.startswith("eca_") else "none"),
        num_classes=arguments["num_classes"],
        further={
            **(further or {}),
            DETECTOR_KEY: json.dumps(arguments),
            "classes": json.dumps(detector.class_names),
            "category_ids": json.dumps(detector.category_ids),
        },
    )


def load_detector(file: str | os.PathLike[str], **overrides: Any) -> tuple[Any, DetectorFile]:
    """Build the detector that a weight file is of, with those weights, in evaluation mode.

    Files of :func:`save_detector` say what they are of. Of MMDetection's (1.x to 3.x) and torchvision's
    the names and shapes tell: the detector, the backbone with its kernels, the classes. 80 classes are
    taken for COCO's.

    Args:
        file: as in :func:`ecanet.load_weights`.
        overrides: arguments of :func:`create_detector` in place of what the file implies.

    Returns:
        The detector, and what the file says; ``report`` in it tells what did not fit.

    Raises:
        UserError: the file cannot be read, is of no detector, or its backbone is not complete.
    """
    checkpoint = read_checkpoint(file)
    if DETECTOR_KEY in checkpoint.metadata:
        arguments = _told_arguments(file, checkpoint)
    else:
        arguments = _implied_arguments(file, _torchvision_names(checkpoint.tensors)[0])
    arguments |= overrides
    outline(file, lambda: create_detector(**arguments), checkpoint.tensors)
    detector = create_detector(**arguments)
    layout, report = _load(detector, file)
    if layout == "ecanet" and not report.complete:
        raise UserError(f"{file} does not fit its detector: {'; '.join(report.problems()[:5])}")
    return detector.eval(), DetectorFile(layout, report, checkpoint.metadata)


def load_into_detector(detector: Any, file: str | os.PathLike[str]) -> LoadReport:
    """Load a detector's weights from a file into another detector, in place, as far as they agree.

    The layers whose outputs are classes are left as they were where the file is of other classes.

    Args:
        detector: what :func:`create_detector` returned.
        file: as in :func:`load_detector`.

    Returns:
        What matched and what did not.

    Raises:
        UserError: the file cannot be read, or its backbone is another one.
    """
    return _load(detector, file)[1]


def load_backbone(detector: Any, file: str | os.PathLike[str]) -> LoadReport:
    """Load a classifier's or detector's backbone into a detector, in place.

    Attention modules that the file does not have keep their fresh weights.

    Args:
        detector: what :func:`create_detector` returned.
        file: of `ecanet train`, `ecanet convert`, the official repository, or any other that
            :func:`ecanet.load_weights` reads.

    Returns:
        What matched and what did not.

    Raises:
        UserError: the file cannot be read or is of another backbone.
    """
    body = detector.backbone.body
    return load_weights(getattr(body, "model", body), file, backbone=True)


def _load(detector: nn.Module, file: str | os.PathLike[str]) -> tuple[str, LoadReport]:
    checkpoint = read_checkpoint(file)
    tensors, layout = _torchvision_names(checkpoint.tensors)
    if DETECTOR_KEY in checkpoint.metadata:
        layout = "ecanet"
    names = read_json(file, "classes", checkpoint.metadata.get("classes", "null"))
    left_out: list[str] = []
    if names is not None and names != detector.class_names:
        left_out = [name for name in tensors if name.startswith(_CLASS_LAYERS)]
        tensors = {name: t for name, t in tensors.items() if name not in left_out}
    report = compare_weights(tensors, detector.state_dict(), left_out)
    if not report.matched:
        raise UserError(_NO_DETECTOR.format(file))
    in_backbone = [p for p in report.problems() if p.startswith("backbone.body.")]
    if in_backbone:
        raise UserError(f"{file} is of another backbone: {'; '.join(in_backbone[:3])}")
    detector.load_state_dict({name: tensors[name] for name in report.matched}, strict=False)
    return layout, report


def _torchvision_names(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    if is_mmdetection(tensors):
        return to_torchvision(tensors), "mmdetection"
    bare = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return from_old_torchvision(bare), "torchvision"


def _told_arguments(file: str | os.PathLike[str], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the arguments of create_detector that our own file tells, each checked."""
    largest, metadata = largest_size(checkpoint.tensors), checkpoint.metadata
    told = read_json(file, DETECTOR_KEY, metadata[DETECTOR_KEY])
    arguments = checked(
        file,
        DETECTOR_KEY,
        told,
        {
            "kind": one_of(*get_args(DetectorKind)),
            "backbone": model_name,
            "num_classes": whole(1, largest),
            "attention": optional(attention_spec(largest)),
            "kernel_sizes": optional(kernel_sizes(largest)),
            "norm": one_of(*get_args(DetectorNorm)),
            "frozen_stages": whole(0, 4),
            "min_size": one_or_several(whole(1, _LARGEST_IMAGE), 1000),
            "max_size": whole(1, _LARGEST_IMAGE),
            "width": whole(1, largest),
            "anchor_size": whole(1, _LARGEST_IMAGE),
            "proposals": optional(whole(1, _MOST_BOXES)),
            "box_samples": optional(whole(1, _MOST_BOXES)),
        },
    )
    lacking = {"kind", "backbone", "num_classes"} - arguments.keys()
    if lacking:
        raise UserError(f"{file} does not tell its detector's {', '.join(sorted(lacking))}")
    lists = {
        "classes": several(text(1000), largest),
        "category_ids": several(whole(-(2**53), 2**53), largest),
    }
    said = {name: read_json(file, name, metadata.get(name, "null")) for name in lists}
    found = checked(file, "metadata", said, lists)
    return arguments | {
        "class_names": found["classes"],
        "category_ids": found["category_ids"],
    }


def _implied_arguments(file: str | os.PathLike[str], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of create_detector that weights under torchvision's names imply."""
    boxes = tensors.get("roi_heads.box_predictor.cls_score.weight")
    anchors = tensors.get("head.classification_head.cls_logits.weight")
    if boxes is None and anchors is None:
        raise UserError(_NO_DETECTOR.format(file))
    if boxes is not None:
        has_masks = "roi_heads.mask_predictor.conv5_mask.weight" in tensors
        kind, num_classes = "mask_rcnn" if has_masks else "faster_rcnn", len(boxes) - 1
    else:
        assert anchors is not None
        kind, num_classes = "retinanet", len(anchors) // 9
    backbone = read_weights(file)
    arguments: dict[str, Any] = {
        "kind": kind,
        "backbone": backbone.model,
        "num_classes": num_classes,
        "kernel_sizes": backbone.kernel_sizes,
        "norm": "frozen",
        "frozen_stages": 1,
    }
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    numbered = [(number, name) for number, name in enumerate(names) if number and name != "N/A"]
    if num_classes == len(names) - 1:  # torchvision's own files
        numbered = list(enumerate(names))[1:]
    if num_classes == len(numbered):
        arguments["category_ids"] = [number for number, _ in numbered]
        arguments["class_names"] = [name for _, name in numbered]
    return arguments
