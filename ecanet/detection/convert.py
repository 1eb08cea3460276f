"""A whole detector's weight file from one layout to another."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pooch
import safetensors.torch

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
from ecanet.models.weights.convert import pickled
from ecanet.models.weights.files import NOTES_KEY, read_checkpoint, weight_file

# What else our files tell.
_TRAVELS = ("epoch", "metrics", EVALUATION_KEY)
LAYOUTS = ("ecanet", "torchvision", "mmdetection")


def is_our_detector(source: str | os.PathLike[str]) -> bool:
    """Whether a file holds a detector of a kind that ecanet has.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    if DETECTOR_KEY in read_checkpoint(source).metadata:
        return True
    try:
        describe_detector(source)
    except UserError:  # of a classifier, or of another detector, which may hold a backbone of ours
        return False
    return True


def convert_detector(
    source: str | os.PathLike[str], out: str | os.PathLike[str], to: str = "ecanet"
) -> str:
    """Write the detector of ``source`` to ``out`` in another layout; return what was done, for people.

    What it finds stays the same to the bit. The classes, their ids, the images' sizes and the anchors
    travel with the weights.

    Args:
        source: as in :func:`ecanet.detection.load_detector`.
        out: file to write. One that is there is replaced at once by the whole new one.
        to: ecanet (safetensors), torchvision (safetensors, or a pickle) or mmdetection (a pickle, with the
            names of 2.x and 3.x).

    Raises:
        UserError: the file cannot be read or is not complete, or the layout has no such detector.
        OSError: the disk is full; an old ``out`` is intact.
    """
    out, file = Path(out).expanduser(), weight_file(source)
    if to not in LAYOUTS:
        raise UserError(
            f"--to {to} is for classifiers: a detector can go --to {', '.join(LAYOUTS)}"
        )
    if out.is_dir() or (out.exists() and out.samefile(file)):
        raise UserError(f"{out} is a folder or the file to convert: give the new one another name")
    is_safe = out.suffix == ".safetensors"
    if is_safe != (to == "ecanet") and to != "torchvision":
        ending = ".safetensors" if to == "ecanet" else ".pth"
        raise UserError(f"{out}: let the name end in {ending} for --to {to}")
    detector, found = load_detector(source)
    kept = {name: value for name, value in found.metadata.items() if name in _TRAVELS}
    kept |= {"source_layout": found.layout, "source_sha256": pooch.file_hash(str(file))}
    told = kept | detector_metadata(detector)
    kind, backbone = detector.arguments["kind"], detector.arguments["backbone"]
    tensors = {name: tensor.contiguous() for name, tensor in detector.state_dict().items()}
    try:
        if to == "ecanet":
            save_detector(out, detector, further=kept)
        elif to == "mmdetection":
            meta = {"CLASSES": tuple(detector.class_names)}
            content = {"meta": meta, "state_dict": from_torchvision(tensors), **told}
            write_atomic(out, pickled(content))
        elif is_safe:
            metadata = {"format": "pt", LAYOUT_KEY: "torchvision", **told}
            write_atomic(out, safetensors.torch.save(to_torchvision(tensors), metadata))
        else:
            state: Any = OrderedDict(to_torchvision(tensors))
            # Beside the versions of modules: no key of its own, so that load_state_dict takes it.
            state._metadata = {NOTES_KEY: {LAYOUT_KEY: "torchvision", **told}}
            write_atomic(out, pickled(state))
    except OSError as error:
        if disk_is_full(error):
            raise
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    return f"{kind} on {backbone}\n{found.report}"
