"""``ecanet detect``: finds the command below it."""

from __future__ import annotations

import importlib

from ecanet.errors import UserError, did_you_mean

_COMMANDS = {
    "train": "train a detector on a folder in COCO's format, or on drawn shapes",
    "evaluate": "COCO's figures of a detector's weights",
    "predict": "find objects in pictures and draw them",
    "compare": "train detectors with attention modules over several seeds and report which help",
}


def run(arguments: list[str]) -> int:
    """Train, evaluate, use or compare detectors."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    name = arguments[0]
    if name not in _COMMANDS:
        raise UserError(f"unknown command detect {name!r}.{did_you_mean(name, _COMMANDS)}")
    return importlib.import_module(f"ecanet.cli.detect.{name}").run(arguments[1:])


def _help() -> str:
    return "\n".join(
        [
            "usage: ecanet detect COMMAND [options]",
            "",
            *(f"  {name:8}  {summary}" for name, summary in _COMMANDS.items()),
            "",
            "ecanet detect COMMAND --help tells a command's options. A first try, without a download:",
            "  ecanet detect train shapes --recipe smoke/shapes --out shapes",
        ]
    )
