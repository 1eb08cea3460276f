"""Weight files of detectors, ours, MMDetection's and torchvision's, and backbones for detectors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from ecanet.config import DetectorKind, DetectorNorm
from ecanet.detection.detectors import RETINANET_ANCHORS, create_detector
from ecanet.detection.mmdetection import is_mmdetection, to_torchvision
from ecanet.detection.torchvision_names import foreign_detector, from_torchvision
from ecanet.errors import UserError, first_of
from ecanet.models.weights.description import (
    Check,
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
from ecanet.models.weights.files import Checkpoint, read_checkpoint
from ecanet.models.weights.identify import read_weights
from ecanet.models.weights.load import load_weights
from ecanet.models.weights.match import LoadReport, check_finite, compare_weights
from ecanet.models.weights.save import save_weights

# Metadata of our files: DetectorSpec as JSON; how the detector was evaluated during training, as JSON; and
# whose names the weights have, where they are not ours.
DETECTOR_KEY = "detector"
EVALUATION_KEY = "evaluation"
LAYOUT_KEY = "layout"

_NO_DETECTOR = "{} holds no detector: give a backbone's weights as --backbone-weights"

# Counters and constants that training programs save with the weights, and detectors need not have.
_HARMLESS = re.compile(r"num_batches_tracked$|^n_averaged$|^data_preprocessor\.(mean|std)$")
# Limits of what a file may request, in pixels and boxes per image; no weight's shape bounds them.
_LARGEST_IMAGE, _MOST_BOXES = 8192, 100_000

# Layers with an output per class.
_CLASS_LAYERS = (
    "roi_heads.box_predictor.",
    "roi_heads.mask_predictor.mask_fcn_logits.",
    "head.classification_head.cls_logits.",
)


@dataclass
class DetectorFile:
    """What a weight file holds beside the detector that it is of."""

    layout: str
    """Whose names the file has: ecanet, mmdetection or torchvision."""
    report: LoadReport
    """How the file's weights fit the detector."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Plain values stored with the weights: ``epoch``, ``metrics`` ..."""


def save_detector(
    path: Path,
    detector: Any,
    tensors: Mapping[str, Tensor] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a detector's weights to ``path`` atomically, with everything needed to build it again.

    Args:
        detector: what :func:`create_detector` returned.
        tensors: written in place of its own weights, such as their moving average.
        metadata: the caller's own.

    Raises:
        OSError: the disk is full; a file that was there is intact.
    """
    backbone, attention = detector.arguments["backbone"], detector.arguments["attention"]
    save_weights(
        path,
        tensors or detector.state_dict(),
        model=backbone,
        attention=attention or ("eca" if backbone.startswith("eca_") else "none"),
        num_classes=detector.arguments["num_classes"],
        metadata={**(metadata or {}), **detector_metadata(detector)},
    )


def detector_metadata(detector: Any) -> dict[str, str]:
    """Return the metadata from which a detector can be built again."""
    return {
        DETECTOR_KEY: json.dumps(detector.arguments),
        "classes": json.dumps(detector.class_names),
        "category_ids": json.dumps(detector.category_ids),
    }


def load_detector(file: str | os.PathLike[str], **overrides: Any) -> tuple[Any, DetectorFile]:
    """Build the detector of a weight file and load its weights; the detector is in evaluation mode.

    Files of :func:`save_detector` describe their detector. For MMDetection's (1.x to 3.x) and torchvision's
    files, the detector, its backbone with the kernel sizes, and its classes are inferred from names and
    shapes. 80 classes are taken to be COCO's, and so are torchvision's 90. A file that would leave any
    weight random or unused is refused.

    Args:
        file: as in :func:`ecanet.load_weights`.
        overrides: arguments of :func:`create_detector` in place of the file's.

    Returns:
        The detector, and what else the file holds.

    Raises:
        UserError: the file cannot be read, holds no detector or an unsupported one, or is incomplete.
    """
    checkpoint = read_checkpoint(file)
    arguments = describe_detector(checkpoint)[0] | overrides
    outline(checkpoint, lambda: create_detector(**arguments), checkpoint.tensors)
    detector = create_detector(**arguments)
    layout, report = _load(detector, checkpoint)
    if not report.complete:
        raise UserError(
            f"{checkpoint} does not fit the detector that it seems to be, {arguments['kind']} on "
            f"{arguments['backbone']}: {report.first_problems()}"
        )
    return detector.eval(), DetectorFile(layout, report, checkpoint.metadata)


def describe_detector(file: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the arguments of :func:`create_detector` that a weight file states or implies; its metadata.

    Raises:
        UserError: as :func:`load_detector`.
    """
    checkpoint = read_checkpoint(file)
    is_ours = DETECTOR_KEY in checkpoint.metadata
    arguments = (_stored_arguments if is_ours else _implied_arguments)(checkpoint)
    return arguments, checkpoint.metadata


def load_into_detector(detector: Any, file: str | os.PathLike[str]) -> LoadReport:
    """Load a detector's weights from a file into another detector, in place, as far as they match.

    Layers with an output per class keep their values if the file is for other classes.

    Args:
        detector: what :func:`create_detector` returned.
        file: as in :func:`load_detector`.

    Returns:
        What matched and what did not.

    Raises:
        UserError: the file cannot be read, or has another backbone.
    """
    checkpoint = read_checkpoint(file)
    return _load(detector, checkpoint, describe_detector(checkpoint)[0].get("class_names"))[1]


def misfits(report: LoadReport) -> list[str]:
    """Return the weights that do not fit a detector trained from a file for other classes.

    Layers with an output per class and a mask head that only one of the two has may differ.
    """
    names = [*report.mismatched, *report.missing, *report.surplus]
    return [name for name in names if not name.startswith((*_CLASS_LAYERS, "roi_heads.mask_"))]


def load_backbone(detector: Any, file: str | os.PathLike[str]) -> LoadReport:
    """Load a classifier's or detector's backbone into a detector, in place.

    Attention modules that the file lacks keep their initial weights.

    Args:
        detector: what :func:`create_detector` returned.
        file: from `ecanet train`, `ecanet convert`, the official repository, or any other that
            :func:`ecanet.load_weights` reads.

    Returns:
        What matched and what did not.

    Raises:
        UserError: the file cannot be read or holds another backbone.
    """
    body = detector.backbone.body
    return load_weights(getattr(body, "model", body), file, backbone=True)


def _load(
    detector: nn.Module, checkpoint: Checkpoint, names: Sequence[str] | None = None
) -> tuple[str, LoadReport]:
    """Load a file into a detector; its class layers only if its class ``names`` are the detector's."""
    tensors, layout = _torchvision_names(checkpoint)
    left_out: list[str] = []
    if names is not None and names != detector.class_names:
        left_out = [name for name in tensors if name.startswith(_CLASS_LAYERS)]
        tensors = {name: t for name, t in tensors.items() if name not in left_out}
    state = detector.state_dict()
    counters = [name for name in tensors if name not in state and _HARMLESS.search(name)]
    for name in counters:
        del tensors[name]
    report = compare_weights(tensors, state, left_out + counters)
    if not report.matched:
        raise UserError(_NO_DETECTOR.format(checkpoint))
    in_backbone = [p for p in report.problems() if p.startswith("backbone.body.")]
    if in_backbone:
        raise UserError(f"{checkpoint} is for another backbone: {first_of(in_backbone, 3, '; ')}")
    matched = {name: tensors[name] for name in report.matched}
    check_finite(checkpoint, matched)
    detector.load_state_dict(matched, strict=False)
    return layout, report


def _torchvision_names(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], str]:
    """Return a file's tensors under torchvision's names, and whose names they were."""
    if is_mmdetection(checkpoint.tensors):
        return to_torchvision(checkpoint.tensors), "mmdetection"
    bare = {name.removeprefix("module."): t for name, t in checkpoint.tensors.items()}
    if DETECTOR_KEY in checkpoint.metadata and checkpoint.metadata.get(LAYOUT_KEY) != "torchvision":
        return bare, "ecanet"
    return from_torchvision(bare), "torchvision"


def _stored_arguments(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the arguments of create_detector stored in a file of ours, each checked."""
    largest, metadata = largest_size(checkpoint.tensors), checkpoint.metadata
    stored = read_json(checkpoint, DETECTOR_KEY, metadata[DETECTOR_KEY])
    arguments = checked(checkpoint, DETECTOR_KEY, stored, _spec_checks(largest))
    missing = {"kind", "backbone", "num_classes"} - arguments.keys()
    if missing:
        raise UserError(f"{checkpoint} does not state its detector's {', '.join(sorted(missing))}")
    list_checks = {
        "classes": several(text(1000), largest),
        "category_ids": several(whole(-(2**53), 2**53), largest),
    }
    lists = {name: read_json(checkpoint, name, metadata.get(name, "null")) for name in list_checks}
    lists = checked(checkpoint, "metadata", lists, list_checks)
    return {**arguments, "class_names": lists["classes"], "category_ids": lists["category_ids"]}


def _spec_checks(largest: int) -> dict[str, Check]:
    """Return a check for each field of DetectorSpec; nothing else in a file is accepted."""
    return {
        "kind": one_of(*get_args(DetectorKind)),
        "backbone": model_name,
        "num_classes": whole(1, largest),
        "attention": optional(attention_spec(largest)),
        "kernel_sizes": optional(kernel_sizes(largest)),
        "replace_attention": one_of(True, False),
        "norm": one_of(*get_args(DetectorNorm)),
        "frozen_stages": whole(0, 4),
        "min_size": one_or_several(whole(1, _LARGEST_IMAGE), 1000),
        "max_size": whole(1, _LARGEST_IMAGE),
        "width": whole(1, largest),
        "anchor_size": whole(1, _LARGEST_IMAGE),
        "proposals": optional(whole(1, _MOST_BOXES)),
        "box_samples": optional(whole(1, _MOST_BOXES)),
        "p6_from": optional(one_of("c5", "p5")),
    }


def _implied_arguments(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the arguments of create_detector that the names and shapes of weights imply."""
    foreign = foreign_detector(checkpoint.tensors)
    if foreign is not None:
        raise UserError(
            f"{checkpoint} is for {foreign}, which ecanet does not support: it supports Faster "
            f"R-CNN, Mask R-CNN and RetinaNet as published, on ResNets and other CNNs"
        )
    tensors, _ = _torchvision_names(checkpoint)
    boxes = tensors.get("roi_heads.box_predictor.cls_score.weight")
    anchors = tensors.get("head.classification_head.cls_logits.weight")
    if boxes is not None and boxes.ndim > 1:
        has_masks = "roi_heads.mask_predictor.conv5_mask.weight" in tensors
        kind, num_classes = "mask_rcnn" if has_masks else "faster_rcnn", len(boxes) - 1
    elif anchors is not None and anchors.ndim > 1:
        kind, num_classes = "retinanet", len(anchors) // RETINANET_ANCHORS
    else:
        raise UserError(_NO_DETECTOR.format(checkpoint))
    backbone = read_weights(checkpoint)
    # The pyramid's first layer, whose outputs are its width, and RetinaNet's first level above it.
    inner = tensors.get("backbone.fpn.inner_blocks.0.0.weight")
    p6 = tensors.get("backbone.fpn.extra_blocks.p6.weight")
    if inner is None or inner.ndim != 4:
        raise UserError(_NO_DETECTOR.format(checkpoint))
    norm = "group" if "backbone.fpn.inner_blocks.0.1.weight" in tensors else "frozen"
    if "backbone.fpn.inner_blocks.0.1.running_mean" in tensors:
        norm = "batch"
    arguments: dict[str, Any] = {
        "kind": kind,
        "backbone": backbone.model,
        "num_classes": num_classes,
        "kernel_sizes": backbone.kernel_sizes,
        "norm": norm,
        "frozen_stages": 1,
        "width": len(inner),
    }
    if p6 is not None and p6.ndim == 4 and p6.shape[1] == len(inner):
        arguments["p6_from"] = "p5"
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    numbered = [(number, name) for number, name in enumerate(names) if number and name != "N/A"]
    if num_classes == len(names) - 1:  # torchvision's own files
        numbered = list(enumerate(names))[1:]
    if num_classes == len(numbered):
        arguments["category_ids"] = [number for number, _ in numbered]
        arguments["class_names"] = [name for _, name in numbered]
    return arguments
