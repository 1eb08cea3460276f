"""Weights of detectors: our own files, MMDetection's and torchvision's; and backbones for them."""

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
from ecanet.errors import UserError
from ecanet.models.weights.description import (
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
from ecanet.models.weights.load import LoadReport, compare_weights, load_weights, read_weights
from ecanet.models.weights.save import save_weights

# In the metadata of our files: the arguments of create_detector, as JSON.
DETECTOR_KEY = "detector"
# How the detector was evaluated while it was trained, as JSON.
EVALUATION_KEY = "evaluation"
# Whose names the file has, where they are not ours.
LAYOUT_KEY = "layout"

_NO_DETECTOR = "{} holds no detector: a backbone's weights are for --backbone-weights"

# The pyramid's first layer, which tells its width, and RetinaNet's first level above it.
_PYRAMID = ("inner_blocks.0.0", "extra_blocks.p6")
# What training programs count and keep beside the weights, and detectors need not have.
_HARMLESS = re.compile(r"num_batches_tracked$|^n_averaged$|^data_preprocessor\.(mean|std)$")
_SHOWN = 5
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
        further={**(further or {}), **detector_metadata(detector)},
    )


def detector_metadata(detector: Any) -> dict[str, str]:
    """Return what stands beside a detector's weights, so that it can be built again."""
    return {
        DETECTOR_KEY: json.dumps(detector.arguments),
        "classes": json.dumps(detector.class_names),
        "category_ids": json.dumps(detector.category_ids),
    }


def load_detector(file: str | os.PathLike[str], **overrides: Any) -> tuple[Any, DetectorFile]:
    """Build the detector that a weight file is of, with those weights, in evaluation mode.

    Files of :func:`save_detector` say what they are of. Of MMDetection's (1.x to 3.x) and torchvision's
    the names and shapes tell: the detector, the backbone with its kernels, the classes. 80 classes are
    taken for COCO's, and so are torchvision's 90. Anything that would be left with random weights, or out,
    is a reason to refuse the file.

    Args:
        file: as in :func:`ecanet.load_weights`.
        overrides: arguments of :func:`create_detector` in place of what the file implies.

    Returns:
        The detector, and what the file says.

    Raises:
        UserError: the file cannot be read, is of no detector or of one that is not ours, or is not
            complete.
    """
    checkpoint = read_checkpoint(file)
    arguments = _arguments(file, checkpoint) | overrides
    outline(file, lambda: create_detector(**arguments), checkpoint.tensors)
    detector = create_detector(**arguments)
    layout, report = _load(detector, file, checkpoint)
    if not report.complete:
        raise UserError(
            f"{file} does not fit the detector that it seems to be, {arguments['kind']} on "
            f"{arguments['backbone']}: {_first(report.problems())}"
        )
    return detector.eval(), DetectorFile(layout, report, checkpoint.metadata)


def describe_detector(file: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the arguments of :func:`create_detector` that a weight file tells or implies; its metadata.

    Raises:
        UserError: as :func:`load_detector`.
    """
    checkpoint = read_checkpoint(file)
    return _arguments(file, checkpoint), checkpoint.metadata


def _arguments(file: str | os.PathLike[str], checkpoint: Checkpoint) -> dict[str, Any]:
    if DETECTOR_KEY in checkpoint.metadata:
        return _told_arguments(file, checkpoint)
    return _implied_arguments(file, checkpoint)


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
    checkpoint = read_checkpoint(file)
    return _load(detector, file, checkpoint, _arguments(file, checkpoint).get("class_names"))[1]


def misfits(report: LoadReport) -> list[str]:
    """Return the names that contradict a detector which begins with a file of other classes.

    Not among them are the layers whose outputs are classes, and a mask head that only one of both has.
    """
    names = [*report.mismatched, *report.missing, *report.surplus]
    return [name for name in names if not name.startswith((*_CLASS_LAYERS, "roi_heads.mask_"))]


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


def _load(
    detector: nn.Module,
    file: str | os.PathLike[str],
    checkpoint: Checkpoint,
    names: Sequence[str] | None = None,
) -> tuple[str, LoadReport]:
    """Load a file into a detector; its class layers only if ``names``, of its classes, are the same."""
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
        raise UserError(_NO_DETECTOR.format(file))
    in_backbone = [p for p in report.problems() if p.startswith("backbone.body.")]
    if in_backbone:
        raise UserError(f"{file} is of another backbone: {'; '.join(in_backbone[:3])}")
    detector.load_state_dict({name: tensors[name] for name in report.matched}, strict=False)
    return layout, report


def _torchvision_names(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], str]:
    """Return a file's tensors under torchvision's names, and whose names they were."""
    if is_mmdetection(checkpoint.tensors):
        return to_torchvision(checkpoint.tensors), "mmdetection"
    bare = {name.removeprefix("module."): t for name, t in checkpoint.tensors.items()}
    if DETECTOR_KEY in checkpoint.metadata and checkpoint.metadata.get(LAYOUT_KEY) != "torchvision":
        return bare, "ecanet"
    return from_torchvision(bare), "torchvision"


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


def _implied_arguments(file: str | os.PathLike[str], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the arguments of create_detector that names and shapes of weights imply."""
    foreign = foreign_detector(checkpoint.tensors)
    if foreign is not None:
        raise UserError(
            f"{file} is of {foreign}, which ecanet does not have: it has Faster R-CNN, Mask R-CNN and "
            "RetinaNet as they were published, on ResNets and other CNNs"
        )
    tensors, _ = _torchvision_names(checkpoint)
    heads = ("roi_heads.box_predictor.cls_score", "head.classification_head.cls_logits")
    found = (tensors.get(f"{head}.weight") for head in heads)
    boxes, anchors = (None if t is None or t.ndim < 2 else t for t in found)
    if boxes is None and anchors is None:
        raise UserError(_NO_DETECTOR.format(file))
    if boxes is not None:
        has_masks = "roi_heads.mask_predictor.conv5_mask.weight" in tensors
        kind, num_classes = "mask_rcnn" if has_masks else "faster_rcnn", len(boxes) - 1
    else:
        assert anchors is not None
        kind, num_classes = "retinanet", len(anchors) // RETINANET_ANCHORS
    backbone = read_weights(file)
    inner, p6 = (tensors.get(f"backbone.fpn.{name}.weight") for name in _PYRAMID)
    if inner is None or inner.ndim != 4:
        raise UserError(_NO_DETECTOR.format(file))
    arguments: dict[str, Any] = {
        "kind": kind,
        "backbone": backbone.model,
        "num_classes": num_classes,
        "kernel_sizes": backbone.kernel_sizes,
        "norm": _implied_norm(tensors),
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


def _implied_norm(tensors: dict[str, Tensor]) -> str:
    """Return which norms a detector has, by those of its pyramid."""
    if "backbone.fpn.inner_blocks.0.1.running_mean" in tensors:
        return "batch"
    return "group" if "backbone.fpn.inner_blocks.0.1.weight" in tensors else "frozen"


def _first(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more
