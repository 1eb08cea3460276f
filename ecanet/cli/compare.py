"""``ecanet compare``, and ``ecanet detect compare``."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecanet.cli.options import SettingsParser, StudyCommand, pick
from ecanet.cli.output import result, say, show, wants_json, warn
from ecanet.config import (
    ClassificationSettings,
    DetectionSettings,
    OutsideSettings,
    StudySettings,
    TrainerSettings,
    YoloSettings,
)
from ecanet.errors import UserError
from ecanet.inputs import check_coco, check_images, check_weights, check_yolo

if TYPE_CHECKING:
    from ecanet.experiments.dryrun import DryRun


def parser(prog: str = "ecanet compare", cls: type[Any] = ClassificationSettings) -> SettingsParser:
    """Return the parser for a comparison of runs with these settings."""
    outside = issubclass(cls, OutsideSettings)
    description = (
        "Train a network with each attention module over several seeds. Report which modules help, how "
        "certain that is, and what they cost."
    )
    if not outside:
        description += (
            " --model and --data may name several: then modules are compared in every network on every "
            "data set, with a verdict over all of them."
        )
    if cls is ClassificationSettings:
        description += (
            " --trainer FILE:FUNCTION or --command compares runs of your own training code, with fewer "
            "settings: see ecanet compare --trainer mine.py:train --help."
        )
    if issubclass(cls, YoloSettings):
        description += f" {YoloSettings.license}"
    return SettingsParser(
        prog,
        description,
        StudyCommand,
        StudySettings,
        cls if outside else _several(cls),
        positional=None if cls is TrainerSettings else "data",
        skip={"seed", "keep_weights"} if outside else {"seed"},
    )


def run(
    arguments: list[str], prog: str = "ecanet compare", cls: type[Any] = ClassificationSettings
) -> int:
    """Compare attention modules; print the path of the report."""
    if cls is ClassificationSettings and any(
        re.match(r"--(trainer|command)\b", a) for a in arguments
    ):
        cls = TrainerSettings
    outside = issubclass(cls, OutsideSettings)
    flags = parser(prog, cls).parse(arguments)
    command = pick(StudyCommand, flags)
    models, data = [flags.get("model")], [flags.get("data")]
    if outside:
        settings = pick(cls, flags, attention=None, seed=0)
        study = pick(StudySettings, flags, keep_weights=None)
    else:
        models, data = split_names(flags.model), split_names(flags.data, of_files=True)
        settings = pick(cls, flags, attention=None, seed=0, model=models[0], data=data[0])
        study = pick(StudySettings, flags)
    for name in data:
        check_inputs(cls, name, flags)

    from ecanet.experiments.cells import compare_cells
    from ecanet.experiments.compare import compare
    from ecanet.experiments.study.cells import has_cells

    arguments_of_both: dict[str, Any] = {
        "storage": command.database,
        "name": command.study,
        "jobs": command.jobs,
        "trust_plugins": flags.trust_plugins,
        "progress": False,
    }
    summary: Any
    several = len(models) * len(data) > 1
    if command.dry_run:
        if several:
            raise UserError("--dry-run: name one --model and one --data at a time")
        return _dry_run(command, settings, study)
    if not outside and (several or has_cells(command.out)):
        summary = compare_cells(
            command.out, settings, study, models=models, data=data, **arguments_of_both
        )
    else:
        summary = compare(command.out, settings, study, **arguments_of_both)
    # Over several networks and data sets, each cell has its own.
    for line in getattr(summary, "table", list)():
        say(line)
    for failure in summary.failed:
        where = f"{failure['cell']}: " if "cell" in failure else ""
        warn(f"failed: {where}{failure['attention']} seed {failure['seed']}: {failure['error']}")
    show_report(command.out)
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
    result(found.to_dict())


def show_report(study: str) -> None:
    """Print the path of a study's report, or with ``--json`` its figures."""
    from ecanet.experiments.report.page import REPORT
    from ecanet.files import read_json

    page = Path(study, "report", "index.html")
    show(page)
    if wants_json():
        result({"report": page} | (read_json(page.with_name(REPORT)) or {}))


def check_inputs(cls: type[Any], data: str | None, flags: Any) -> None:
    """Refuse data and weights that are not there, of runs with these settings.

    Raises:
        UserError: there is no such file or folder.
    """
    for name in ("weights", "backbone_weights"):
        check_weights(flags.get(name))
    if issubclass(cls, DetectionSettings):
        check_coco(data or "shapes")
    elif issubclass(cls, ClassificationSettings):
        check_images(data or "digits")
    elif issubclass(cls, YoloSettings):
        check_yolo(data)


def _several(cls: type[Any]) -> type[Any]:
    """Return settings of which ``model`` and ``data`` may be lists."""
    defaults = {one.name: one.default for one in dataclasses.fields(cls)}
    return dataclasses.make_dataclass(
        cls.__name__,
        [
            ("model", "list[str] | str | None", defaults["model"]),
            ("data", "list[str] | str", defaults["data"]),
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
