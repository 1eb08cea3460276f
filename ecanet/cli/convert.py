"""``ecanet convert``."""

from __future__ import annotations

from pathlib import Path

from ecanet.cli.options import OneLineParser
from ecanet.cli.output import show

# What ecanet.models.weights.convert can write, told here so that --help need not import torch.
LAYOUTS = ("ecanet", "official", "torchvision", "timm", "mmdetection", "hub")


def run(arguments: list[str]) -> int:
    """Convert a weight file between layouts; the model, its kernels and classes are read from it."""
    parser = OneLineParser("ecanet convert", description=run.__doc__)
    parser.add_argument(
        "source",
        metavar="IN",
        type=Path,
        help="torch pickle (.pth.tar, .pth, .pt), safetensors, or a Hugging Face Hub folder",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="file to write; hub: folder")
    parser.add_argument(
        "--to",
        choices=LAYOUTS,
        default="ecanet",
        help="ecanet: safetensors that say which model they are of; official: .pth.tar for the "
        "authors' code; hub: a folder that timm and the Hugging Face Hub take (default: ecanet)",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="write what fits where weights are missing, surplus or of another shape",
    )
    parser.add_argument(
        "-m",
        "--model",
        help="only for a model that is not ours: its name in timm, or torchvision/NAME",
    )
    flags = parser.parse_args(arguments)

    from ecanet.detection.convert import LAYOUTS as DETECTOR_LAYOUTS
    from ecanet.detection.convert import convert_detector, is_our_detector
    from ecanet.models.weights.convert import convert_weights

    # The other layouts, and what --partial and --model are for, take its backbone.
    whole = flags.to in DETECTOR_LAYOUTS and not flags.partial and flags.model is None
    if whole and is_our_detector(flags.source):
        show(convert_detector(flags.source, flags.out, flags.to))
        show(flags.out)
        return 0
    show(
        convert_weights(flags.source, flags.out, flags.to, partial=flags.partial, model=flags.model)
    )
    show(flags.out)
    return 0
