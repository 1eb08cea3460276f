"""``ecanet train``."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecanet import aliases
from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import say, show
from ecanet.config import RunSettings, TrainSettings
from ecanet.errors import UserError

# The flags of the 2020 scripts, of W&B's agents, of torchvision's and timm's, where they mean the same.
SHORT = {
    **{f"--{name}": setting for name, setting in aliases.SETTINGS.items()},
    "-m": "model", "-a": "model", "-b": "batch_size", "-j": "workers", "--ksize": "kernel_sizes",
}  # fmt: skip
# Settings that only runs on data held in memory have: a recipe with one of them is of compare or sweep.
_IN_MEMORY = {"validation", "select", "skip_corrupt"}


@dataclass
class _Command:
    """Where a run goes."""

    out: str | None = None
    """Folder of the run; by default run, and run/ID for a run of a W&B agent. The same command again goes
    on where it stopped."""
    resume: bool = False
    """Go on only: refuse to begin a new run."""
    accept_changes: bool = False
    """Go on although settings differ from those the run began with."""


@dataclass
class _OnFolder:
    """What to train on."""

    data: str | None = None
    """Folder with train/ and val/, and in each a folder per class; may stand without its flag. digits,
    cifar10, cifar100 and a folder with train/ and test/ train in memory: see `ecanet train digits --help`."""


@dataclass
class _InMemory:
    """What the settings of a run in memory leave open."""

    attention: str | list[str] | None = None
    """Attention module, with arguments if wanted: eca:kernel_size=9. By default that of the model's name."""
    seed: int = 0
    """Of the weights, the order and the augmentation."""
    plugin: list[str] = field(default_factory=list)
    """Python files that register attention modules or models of your own."""


def run(arguments: list[str]) -> int:
    """Train a classifier; print the path of its best weights."""
    on_folder = SettingsParser(
        "ecanet train",
        "Train a CNN with attention on a folder of images. Spelled as in the 2020 scripts work too: "
        "-a -m -b -j --lr --momentum --wd --ksize --att.",
        _OnFolder,
        _Command,
        TrainSettings,
        positional="data",
        short=SHORT,
    )
    if _fits_memory(on_folder.spelled_out(arguments)):
        return _train_in_memory(arguments)
    flags = on_folder.parse(arguments)
    data = flags.data
    if data is None:
        raise UserError(
            "which images? ecanet train DATA, a folder with train/ and val/ in it, or "
            f"{', '.join(aliases.SOURCES)}"
        )
    settings = pick(TrainSettings, flags)
    if settings.attention is not None:
        settings.attention = aliases.attention_spec(settings.attention)

    from ecanet.training.classification import train_classifier

    command = pick(_Command, flags)
    out = _folder(command)
    train_classifier(
        Path(data),
        out,
        _for_agent(settings),
        accept_changes=command.accept_changes,
        progress=sys.stderr.isatty(),
        say=say,
    )
    show(out / "best.safetensors")
    return 0


def _train_in_memory(arguments: list[str]) -> int:
    parser = SettingsParser(
        "ecanet train",
        "Train a CNN with attention on a small data set, held in memory.",
        _InMemory,
        _Command,
        RunSettings,
        positional="data",
        short=SHORT,
    )
    flags = parser.parse(arguments)
    chosen, command = pick(_InMemory, flags), pick(_Command, flags)
    by_name = "eca" if str(flags.model).startswith("eca_") else "none"
    asked = chosen.attention or by_name
    modules = [asked] if isinstance(asked, str) else asked
    if len(modules) != 1:
        raise UserError(
            f"train takes one attention module, got {', '.join(modules)}: choose by --attention"
        )

    from ecanet.experiments.single import train_one

    out = _folder(command)
    record = train_one(
        out,
        _for_agent(pick(RunSettings, flags)),
        aliases.attention_spec(modules[0]),
        chosen.seed,
        plugin=chosen.plugin,
        accept_changes=command.accept_changes,
        progress=sys.stderr.isatty(),
        say=say,
    )
    assert record.final is not None
    say(f"test accuracy {100 * record.final.test_accuracy:.2f} %")
    show(out / "best.safetensors")
    return 0


def _fits_memory(arguments: list[str]) -> bool:
    """Whether the data are small by name or layout, or the recipe is one of compare or sweep."""
    given = dict(a[2:].split("=", 1) for a in arguments if a.startswith("--") and "=" in a)
    recipe: dict[str, Any] = {}
    if "recipe" in given:
        from ecanet.yaml_file import read_yaml

        recipe = read_yaml(given["recipe"])
        recipe = recipe if isinstance(recipe, dict) else {}
    data = str(given.get("data") or recipe.get("data") or "")
    if data in aliases.SOURCES or _IN_MEMORY & recipe.keys():
        return True
    has = {name: (Path(data) / name).is_dir() for name in ("train", "val", "test")}
    return bool(data) and has["train"] and has["test"] and not has["val"]


def _folder(command: _Command) -> Path:
    """Return the run's folder, which each run of a W&B agent has for itself."""
    run_id = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
    out = Path(command.out or (f"run/{run_id}" if run_id else "run"))
    if command.resume and not (out / "settings.json").exists():
        raise UserError(f"{out} holds no run to go on with: leave --resume out to begin one")
    return out


def _for_agent(settings: Any) -> Any:
    """Turn the W&B logger on where a W&B agent waits for its metric."""
    if "WANDB_SWEEP_ID" not in os.environ or "wandb" in settings.loggers:
        return settings
    return dataclasses.replace(settings, loggers=[*settings.loggers, "wandb"])
