"""Converts a detector's weight file from one layout to another."""

from __future__ import annotations

import os
from pathlib import Path

import pooch

from ecanet.detection.mmdetection import from_torchvision
from ecanet.detection.torchvision_names import to_torchvision
from ecanet.detection.weights import (
    DETECTOR_KEY,
    EVALUATION_KEY,
    LAYOUT_KEY,
    describe_detector,
    detector_metadata,
    load_detector,
    save_detector,
)
from ecanet.errors import UserError, disk_is_full
from ecanet.files import write_atomic
from ecanet.models.weights.convert import pickled, write_state_dict
from ecanet.models.weights.files import read_checkpoint, weight_file

# Metadata that is kept.
_KEPT = ("epoch", "metrics", EVALUATION_KEY)
LAYOUTS = ("ecanet", "torchvision", "mmdetection")


def is_our_detector(source: str | os.PathLike[str]) -> bool:
    """Whether a file holds a detector of a kind that ecanet has.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    checkpoint = read_checkpoint(source)
    try:
        describe_detector(checkpoint)
    except UserError:  # a classifier, or an unsupported detector, which may have a backbone of ours
        return DETECTOR_KEY in checkpoint.metadata
    return True


def convert_detector(
    source: str | os.PathLike[str], out: str | os.PathLike[str], to: str = "ecanet"
) -> str:
    """Write the detector of ``source`` to ``out`` in another layout; return a description for people.

    Its detections stay the same to the bit. The classes, their ids, the images' sizes and the anchors
    are kept with the weights.

    Args:
        source: as in :func:`ecanet.detection.load_detector`.
        out: file to write; an existing one is replaced atomically.
        to: ecanet (safetensors), torchvision (safetensors, or a pickle) or mmdetection (a pickle, with the
            names of 2.x and 3.x).

    Raises:
        UserError: the file cannot be read or is incomplete, or the layout has no such detector.
        OSError: the disk is full; an old ``out`` is intact.
    """
    out, file = Path(out).expanduser(), weight_file(source)
    if to not in LAYOUTS:
        raise UserError(
            f"--to {to} is for classifiers: a detector can go --to {', '.join(LAYOUTS)}"
        )
    if out.is_dir() or (out.exists() and out.samefile(file)):
        raise UserError(f"{out} is a folder or the file to convert: give the new one another name")
    ending = {"ecanet": ".safetensors", "mmdetection": ".pth"}.get(to)
    if ending and (out.suffix == ".safetensors") != (to == "ecanet"):
        raise UserError(f"{out}: let the name end in {ending} for --to {to}")
    detector, found = load_detector(source)
    kept = {name: value for name, value in found.metadata.items() if name in _KEPT}
    kept |= {"source_layout": found.layout, "source_sha256": pooch.file_hash(str(file))}
    metadata = kept | detector_metadata(detector)
    kind, backbone = detector.arguments["kind"], detector.arguments["backbone"]
    tensors = {name: tensor.contiguous() for name, tensor in detector.state_dict().items()}
    try:
        if to == "ecanet":
            save_detector(out, detector, metadata=kept)
        elif to == "mmdetection":
            meta = {"CLASSES": tuple(detector.class_names)}
            content = {"meta": meta, "state_dict": from_torchvision(tensors), **metadata}
            write_atomic(out, pickled(content))
        else:
            notes = {LAYOUT_KEY: "torchvision", **metadata}
            write_state_dict(out, to_torchvision(tensors), notes)
    except OSError as error:
        if disk_is_full(error):
            raise
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    return f"{kind} on {backbone}\n{found.report}"
