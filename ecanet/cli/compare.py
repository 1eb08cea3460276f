"""``ecanet compare``, and ``ecanet detect compare``."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import TYPE_CHECKING, Any

from ecanet.cli.options import SettingsParser, StudyCommand, pick
from ecanet.cli.output import say, show
from ecanet.config import (
    ClassificationSettings,
    OutsideSettings,
    StudySettings,
    TrainerSettings,
)
from ecanet.errors import UserError

if TYPE_CHECKING:
    from ecanet.experiments.dryrun import DryRun


def run(
    arguments: list[str], prog: str = "ecanet compare", cls: type[Any] = ClassificationSettings
) -> int:
    """Compare attention modules; print the path of the report."""
    if cls is ClassificationSettings and any(
        re.match(r"--(trainer|command)\b", a) for a in arguments
    ):
        cls = TrainerSettings
    outside = issubclass(cls, OutsideSettings)
    parser = SettingsParser(
        prog,
        "Train a network with each attention module over several seeds, and report which modules help, "
        "with what certainty, and what they cost. --model and --data may name several, as in a,b: then "
        "every network is compared on every data set, and the verdict is over all. --trainer FILE:FUNCTION "
        "or --command compares runs of your own training code, which takes fewer of these settings: "
        "ecanet compare --trainer mine.py:train --help.",
        StudyCommand,
        StudySettings,
        cls if outside else _several(cls),
        positional=None if cls is TrainerSettings else "data",
        skip={"seed", "keep_weights"} if outside else {"seed"},
    )
    flags = parser.parse(arguments)
    command = pick(StudyCommand, flags)

    from ecanet.experiments.compare import compare

    arguments_of_both: dict[str, Any] = {
        "storage": command.database,
        "name": command.study,
        "jobs": command.jobs,
        "trust_plugins": flags.trust_plugins,
        "progress": False,
    }
    summary: Any
    if outside:
        settings = pick(cls, flags, attention=None, seed=0)
        study = pick(StudySettings, flags, keep_weights=None)
        if command.dry_run:
            return _dry_run(command, settings, study)
        summary = compare(command.out, settings, study, **arguments_of_both)
    elif command.dry_run:
        models, data = split_names(flags.model), split_names(flags.data, of_files=True)
        if len(models) * len(data) > 1:
            raise UserError("--dry-run: name one --model and one --data at a time")
        settings = pick(cls, flags, attention=None, seed=0, model=models[0], data=data[0])
        return _dry_run(command, settings, pick(StudySettings, flags))
    else:
        summary = _compare_own(command.out, flags, cls, arguments_of_both)
    # Over several networks and data sets, each cell has its own.
    for line in getattr(summary, "table", list)():
        say(line)
    for failure in summary.failed:
        where = f"{failure['cell']}: " if "cell" in failure else ""
        say(f"failed: {where}{failure['attention']} seed {failure['seed']}: {failure['error']}")
    show(os.path.join(command.out, "report", "index.html"))
    return 1 if summary.failed else 0


def _dry_run(command: StudyCommand, settings: Any, study: StudySettings) -> int:
    from ecanet.experiments.dryrun import dry_run_comparison

    where: dict[str, Any] = {"storage": command.database, "name": command.study}
    show_dry_run(dry_run_comparison(command.out, settings, study, jobs=command.jobs, **where))
    return 0


def show_dry_run(found: DryRun) -> None:
    """Print what a command would do."""
    for line in found.lines():
        show(line)


def _compare_own(out: str, flags: Any, cls: type[Any], arguments: dict[str, Any]) -> Any:
    """Compare networks that ecanet trains, one or several; return the summary."""
    from ecanet.experiments.cells import compare_cells
    from ecanet.experiments.compare import compare
    from ecanet.experiments.study.cells import has_cells

    models, data = split_names(flags.model), split_names(flags.data, of_files=True)
    settings = pick(cls, flags, attention=None, seed=0, model=models[0], data=data[0])
    study = pick(StudySettings, flags)
    if len(models) * len(data) > 1 or has_cells(out):
        arguments.pop("progress")
        return compare_cells(out, settings, study, models=models, data=data, **arguments)
    return compare(out, settings, study, **arguments)


def _several(cls: type[Any]) -> type[Any]:
    """Return settings of which ``model`` and ``data`` may be lists."""
    defaults = {one.name: one.default for one in dataclasses.fields(cls)}
    return dataclasses.make_dataclass(
        cls.__name__,
        [
            ("model", "str | list[str] | None", defaults["model"]),
            ("data", "str | list[str]", defaults["data"]),
        ],
        bases=(cls,),
        namespace={"__doc__": cls.__doc__},
    )


def split_names(value: str | list[str] | None, of_files: bool = False) -> list[Any]:
    """Return the names in a value: those of a list, or of a text with commas.

    Args:
        value: of a flag or a recipe.
        of_files: whether a name may be a path: one that exists is one name, with its commas.

    Raises:
        UserError: it names nothing.
    """
    if value is None:
        return [None]
    if isinstance(value, list):
        names = value
    elif of_files and os.path.exists(os.path.expanduser(value)):
        names = [value]
    else:
        names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        flag = "--data" if of_files else "--model"
        raise UserError(f"{flag} is empty: leave it out, or give a value")
    return names
