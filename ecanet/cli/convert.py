"""``ecanet convert``."""

from __future__ import annotations

from pathlib import Path

from ecanet.cli.options import OneLineParser
from ecanet.cli.output import show
from ecanet.inputs import check_weights
from ecanet.names import check_names

# The layouts of ecanet.models.weights.convert, repeated here so that --help does not import torch.
LAYOUTS = ("ecanet", "official", "torchvision", "timm", "mmdetection", "hub")


def parser() -> OneLineParser:
    """Return the command's parser."""
    parser = OneLineParser("ecanet convert", description=run.__doc__)
    parser.add_argument(
        "source",
        metavar="IN",
        type=Path,
        help="weights to convert: torch pickle (.pth.tar, .pth, .pt), safetensors, folder from the Hugging "
        "Face Hub, or hf-hub:OWNER/NAME",
    )
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="file to write; for --to hub a folder"
    )
    parser.add_argument(
        "--to",
        choices=LAYOUTS,
        default="ecanet",
        help="layout to write. ecanet: safetensors with a description of the model; official: .pth.tar for "
        "the authors' code; hub: a folder for timm and the Hugging Face Hub (default: ecanet)",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="write the weights that fit even if others are missing, unexpected or of another shape",
    )
    parser.add_argument(
        "-m",
        "--model",
        help="name of the model in timm, or torchvision/NAME; only for models that are not from ecanet",
    )
    return parser


def run(arguments: list[str]) -> int:
    """Convert a weight file between layouts. The file names the model, its kernel sizes and classes."""
    flags = parser().parse_args(arguments)

    check_weights(flags.source)
    check_names(flags.model)

    from ecanet.detection.convert import LAYOUTS as DETECTOR_LAYOUTS
    from ecanet.detection.convert import convert_detector, is_our_detector
    from ecanet.models.weights.convert import convert_weights
    from ecanet.models.weights.files import read_checkpoint

    # The other layouts, --partial and --model are for a detector's backbone alone.
    whole = flags.to in DETECTOR_LAYOUTS and not flags.partial and flags.model is None
    source = read_checkpoint(flags.source)
    if whole and is_our_detector(source):
        show(convert_detector(source, flags.out, flags.to))
    else:
        show(convert_weights(source, flags.out, flags.to, partial=flags.partial, model=flags.model))
    show(flags.out)
    return 0
