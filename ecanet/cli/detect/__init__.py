"""``ecanet detect COMMAND``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from ecanet.cli import compare, sweep, train
from ecanet.cli.detect import evaluate, predict
from ecanet.cli.main import dispatch
from ecanet.cli.options import SettingsParser
from ecanet.config import DetectionSettings

_COMMANDS = {
    "train": "train a detector on a folder in COCO's format, or on generated shapes",
    "evaluate": "evaluate a trained detector with COCO's metrics",
    "predict": "find objects in images and draw them",
    "compare": "train detectors with attention modules over several seeds; report which help",
    "sweep": "run a W&B sweep file; report the best settings and what matters",
}


def parsers() -> Iterator[SettingsParser]:
    """Yield the parser of each command."""
    for command in (train, compare, sweep):
        name = command.__name__.rpartition(".")[2]
        yield command.parser(f"ecanet detect {name}", DetectionSettings)
    yield evaluate.parser()
    yield predict.parser()


def run(arguments: list[str]) -> int:
    """Train, evaluate, use or compare detectors."""
    if arguments and arguments[0] in ("train", "compare", "sweep"):
        # The same commands as for classifiers, with a detector's settings.
        command = importlib.import_module(f"ecanet.cli.{arguments[0]}")
        return int(command.run(arguments[1:], f"ecanet detect {arguments[0]}", DetectionSettings))
    return dispatch(
        "ecanet detect",
        {"commands": _COMMANDS},
        arguments,
        package=__name__,
        example="ecanet detect train shapes --recipe smoke/shapes --out shapes",
    )
