"""``ecanet study``."""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecanet.cli.options import OneLineParser, add_study_arguments
from ecanet.cli.output import console, result, say, show, wants_json
from ecanet.cli.progress import study_view
from ecanet.errors import UserError, counted, did_you_mean, one_line
from ecanet.inputs import check_study

if TYPE_CHECKING:
    from ecanet.experiments.study.location import Location
    from ecanet.experiments.study.progress import StudyProgress
    from ecanet.experiments.study.study import Study

_MIN_INTERVAL = 0.2  # s between two updates of watch
_MAX_INTERVAL = 3600.0  # s
_ACTIONS = {
    "show": "print the plan of a study: its settings, data and machine",
    "status": "print the progress of a study: runs completed, running, failed",
    "watch": "show the progress of a study until all runs have ended",
    "cancel": "cancel all queued and running runs; those that have ended are kept",
    "retry": "queue failed and cancelled runs again",
}


def parser() -> OneLineParser:
    """Return the command's parser."""
    parser = OneLineParser("ecanet study", description=run.__doc__)
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=OneLineParser
    )
    listing = actions.add_parser("list", help="list the studies in a database or a folder")
    listing.add_argument(
        "folder",
        nargs="?",
        default=".",
        help="folder to search for studies; by default the current one",
    )
    listing.add_argument(
        "--storage", metavar="URL", help="database to list the studies of, postgresql://…"
    )
    for action, text in _ACTIONS.items():
        one = actions.add_parser(action, help=text, description=f"{text.capitalize()}.")
        add_study_arguments(one)
        if action == "status":
            one.set_defaults(once=True, interval=_MAX_INTERVAL)
        if action == "watch":
            one.add_argument("--once", action="store_true", help="print it once and exit")
            one.add_argument(
                "--interval",
                type=float,
                default=2.0,
                metavar="X",
                help="seconds between updates (default: 2)",
            )
        if action == "retry":
            one.add_argument(
                "--run",
                action="append",
                metavar="NAME",
                help="queue only this run; may be repeated",
            )
    return parser


def run(arguments: list[str]) -> int:
    """List, show, watch, cancel and retry studies, wherever their workers run."""
    flags = parser().parse_args(arguments)
    if flags.action == "list":
        return _list(flags)

    mode: Any = "write" if flags.action in ("cancel", "retry") else "read"
    handlers = {"show": _show, "cancel": _cancel, "retry": _retry}
    return handlers.get(flags.action, _watch)(_open(flags, mode), flags)


def _open(flags: argparse.Namespace, mode: Any) -> list[Study]:
    """Open the study that is meant, or those of the cells of a comparison over several."""
    check_study(flags.folder, flags.storage)

    from ecanet.experiments.study.cells import open_studies

    return open_studies(flags.folder, flags.storage, flags.study, mode)


def _list(flags: argparse.Namespace) -> int:
    from rich.table import Table
    from rich.text import Text

    from ecanet.experiments.study.location import locate
    from ecanet.experiments.study.storage import study_names
    from ecanet.redaction import without_secrets

    found: list[tuple[str, Location | Path]]
    if flags.storage:
        database = locate("study", flags.storage, "study")
        names = study_names(database)
        found = [(name, replace(database, folder=Path(name), name=name)) for name in names]
    else:
        here = Path(flags.folder)
        # Not deeper: a study's folder contains one folder per run.
        files = itertools.product(("", "*/", "*/*/"), ("study.db", "study.json"))
        folders = {path.parent for deep, name in files for path in here.glob(deep + name)}
        found = [(str(folder), folder) for folder in sorted(folders)]
    if not found:
        where = without_secrets(flags.storage) if flags.storage else flags.folder
        raise UserError(f"no studies in {where}")
    heads = ("study", "kind", "runs", "running", "failed", "about")
    table, rows = Table(*heads, box=None, pad_edge=False), []
    for name, location in found:
        try:
            row = _row(location)
        except Exception as error:
            # Whatever is wrong with one study, the others are listed.
            message = one_line(error if isinstance(error, UserError) else repr(error), None)
            row = ["", "", "", "", message]
        # As Text: in a plain string, rich would interpret [/x] as markup.
        table.add_row(*map(Text, [name, *row]))
        rows.append(dict(zip(heads, [name, *row], strict=True)))
    console().print(table)
    result(rows)
    return 0


def _row(location: Location | Path) -> list[str]:
    from ecanet.experiments.study.study import load_study

    study = load_study(location, "read")
    plan, counts = study.plan(), study.queue.counts()
    study.queue.engine.dispose()
    done = f"{counts.complete + counts.pruned}/{counts.total}"
    return [plan.kind, done, str(counts.running), str(counts.failed), plan.settings.title()]


def _show(studies: list[Study], flags: argparse.Namespace) -> int:
    import yaml

    found = []
    for study in studies:
        plan, environment = study.plan().to_dict(), study.trials.user_attrs["environment"]
        found.append({"study": str(study.location), **plan})
        found[-1] |= {"settings": found[-1].pop("settings"), "environment": environment}
    show(yaml.safe_dump_all(found, sort_keys=False, allow_unicode=True).rstrip())
    result(found)
    return 0


def _watch(studies: list[Study], flags: argparse.Namespace) -> int:
    from rich.console import Group
    from rich.live import Live

    from ecanet.experiments.study.cells import has_cells
    from ecanet.experiments.study.progress import progress

    if not _MIN_INTERVAL <= flags.interval <= _MAX_INTERVAL:
        raise UserError(
            f"--interval {flags.interval}: give seconds from {_MIN_INTERVAL} to {_MAX_INTERVAL}"
        )
    screen, several = console(), has_cells(flags.folder)

    def view(now: list[StudyProgress], height: int | None = None, bar: bool = False) -> Group:
        names = [study.folder.name for study in studies] if several else []
        return Group(*study_view(now, names, width=screen.width, height=height, bar=bar))

    if flags.once or wants_json() or not screen.is_terminal:
        now = [progress(study) for study in studies]
        screen.print(view(now))
        result([asdict(one) for one in now])
        return 0
    with Live(console=screen, auto_refresh=False) as live:
        while True:
            now = [progress(study) for study in studies]
            live.update(view(now, screen.height - 1, bar=True), refresh=True)
            if not any(one.counts.open for one in now):
                return 0
            time.sleep(flags.interval)
            # Opened again: a file that no worker had open was read as immutable.
            for study in studies:
                study.queue.engine.dispose()
            studies = _open(flags, "read")


def _cancel(studies: list[Study], flags: argparse.Namespace) -> int:
    cancelled = sum(study.queue.cancel() for study in studies)
    say(f"{counted(cancelled, 'run')} cancelled; `ecanet study retry` queues them again")
    return 0


def _retry(studies: list[Study], flags: argparse.Namespace) -> int:
    from ecanet.experiments.study.queue import Run

    failed = [[attributes["run"] for attributes in study.failed_runs()] for study in studies]
    known = {name for names in failed for name in names}
    for name in flags.run or []:
        if name not in known:
            others = did_you_mean(name, known) if known else ""
            raise UserError(f"no run {name!r} has failed or was cancelled.{others}")
    queued = sum(
        study.queue.enqueue([Run(name) for name in names if name in (flags.run or names)])
        for study, names in zip(studies, failed, strict=True)
    )
    say(f"{counted(queued, 'run')} queued again; `ecanet worker` trains them")
    return 0
