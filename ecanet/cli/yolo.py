"""``ecanet yolo COMMAND``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecanet.cli import compare
from ecanet.cli.main import dispatch
from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import result, say, show
from ecanet.config import LibreYoloSettings, YoloSettings
from ecanet.errors import UserError
from ecanet.recipe_file import recipe_path
from ecanet.yaml_file import read_yaml

_COMMANDS = {
    "train": "train a network with an attention module",
    "compare": "train networks with attention modules over several seeds; report which help",
}


@dataclass
class TrainCommand:
    """Where the run is written."""

    out: str = "run"
    """Folder of the run. Running the same command again resumes it."""
    accept_changes: bool = False
    """Resume even if settings differ from those of the run."""


def run(arguments: list[str]) -> int:
    """Train or compare networks of Ultralytics or LibreYOLO, depending on the model's name."""
    cls = _settings_of(arguments)
    if arguments and arguments[0] == "compare":
        return compare.run(arguments[1:], "ecanet yolo compare", cls)
    if arguments and arguments[0] == "train":
        return _train(arguments[1:], cls)
    return dispatch(
        "ecanet yolo",
        {"commands": _COMMANDS},
        arguments,
        title="ecanet yolo: attention modules in YOLO and RT-DETR, trained by Ultralytics, or by LibreYOLO "
        f"if the model's name begins with libreyolo/. {YoloSettings.license}",
        example="ecanet yolo compare --data my.yaml --model yolo11n.yaml --attention none,eca",
    )


def _settings_of(arguments: list[str]) -> type[YoloSettings]:
    """Return the settings of the library that trains the model, which the arguments or their recipe name."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--model", "--recipe"):
        parser.add_argument(flag, nargs="?")
    flags, _ = parser.parse_known_args(arguments)
    model = flags.model
    if model is None and flags.recipe:
        recipe = read_yaml(Path(recipe_path(flags.recipe)))
        model = recipe.get("model") if isinstance(recipe, dict) else None
    return LibreYoloSettings if str(model).startswith("libreyolo/") else YoloSettings


def parsers() -> Iterator[SettingsParser]:
    """Yield the parser of each command."""
    yield _train_parser(YoloSettings)
    yield compare.parser("ecanet yolo compare", YoloSettings)


def _train_parser(cls: type[YoloSettings]) -> SettingsParser:
    return SettingsParser(
        "ecanet yolo train",
        "Train a YOLO or RT-DETR with an attention module, using Ultralytics. YOLO(FILE) of Ultralytics "
        f"loads the weights if ecanet is installed. {YoloSettings.license} "
        "With --model libreyolo/yolo9-t and the like, LibreYOLO (MIT) trains, and "
        "ecanet.integrations.libreyolo.load_model(FILE) loads the weights.",
        TrainCommand,
        cls,
        positional="data",
    )


def _train(arguments: list[str], cls: type[YoloSettings]) -> int:
    flags = _train_parser(cls).parse(arguments)
    command = pick(TrainCommand, flags)
    settings = pick(cls, flags)
    if settings.attention is None:
        raise UserError("which attention module? give it, as in --attention eca, or none")
    compare.check_inputs(cls, settings.data, flags)
    record = _trained(settings, Path(command.out), command.accept_changes)
    from ecanet.metrics import format_metric, metric_named

    value = format_metric(settings.best, record.final[settings.best])
    say(f"{metric_named(settings.best).title} {value}")
    weights = Path(command.out) / "weights" / "last.pt"
    show(weights)
    result({"weights": weights, **record.final})
    return 0


def _trained(settings: YoloSettings, out: Path, accept: bool) -> Any:
    """Train one run by itself in a folder, or resume it; return its record."""
    from ecanet.plugins import load_plugins
    from ecanet.signals import deferred_signals, raise_pending
    from ecanet.training.run_folder import check_out, claim_folder
    from ecanet.training.task import Hooks
    from ecanet.training.train import task_of, train_in_study

    check_out(out)
    load_plugins(settings.plugin)
    task = task_of(settings)
    data = task.read(settings, alone=True)
    settings = task.resolve(settings, data, alone=True)
    task.check(settings, data)
    for line in task.notices(settings, data):
        say(line)
    with deferred_signals(), claim_folder(out, settings, accept=accept):
        return train_in_study(settings, out, data, hooks=Hooks(on_step=raise_pending))
