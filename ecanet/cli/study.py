"""``ecanet study``."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecanet.cli.options import OneLineParser, add_study_arguments
from ecanet.cli.output import console, say, show
from ecanet.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ecanet.experiments.study.location import Location
    from ecanet.experiments.study.progress import Progress
    from ecanet.experiments.study.study import Study

# Seconds between looks of watch.
_LEAST, _MOST = 0.2, 3600.0


def run(arguments: list[str]) -> int:
    """See and steer studies, wherever their workers are."""
    parser = OneLineParser("ecanet study", description=run.__doc__)
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=OneLineParser
    )
    listing = actions.add_parser("list", help="studies of a database, or in the folders here")
    listing.add_argument(
        "folder", nargs="?", default=".", help="where to look for studies' folders"
    )
    listing.add_argument("--storage", help="postgresql://… whose studies to list")
    helps = {
        "show": "what a study runs: settings, data, machine",
        "status": "how far it is: runs ended, under way, failed",
        "watch": "the same, again and again until all runs have ended",
        "cancel": "end the runs that wait or are under way; those that have ended stay",
        "retry": "put failed and cancelled runs into the queue again",
    }
    for action, text in helps.items():
        one = actions.add_parser(action, help=text, description=text)
        add_study_arguments(one)
        if action == "watch":
            one.add_argument("--once", action="store_true", help="print it once")
            one.add_argument("--interval", type=float, default=2.0, help="seconds between looks")
        if action == "retry":
            one.add_argument("--run", action="append", help="this run alone; may be given again")
    flags = parser.parse_args(arguments)
    if flags.action == "list":
        return _list(flags)

    from ecanet.experiments.study.location import locate
    from ecanet.experiments.study.study import load_study

    mode: Any = "write" if flags.action in ("cancel", "retry") else "read"
    study = load_study(locate(flags.folder, flags.storage, flags.study), mode)
    return {
        "show": _show, "status": _status, "watch": _watch, "cancel": _cancel, "retry": _retry,
    }[flags.action](study, flags)  # fmt: skip


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
        # Not deeper: a study's folder holds a folder a run.
        files = [
            f"{deep}{name}" for deep in ("", "*/", "*/*/") for name in ("study.db", "study.json")
        ]
        folders = {path.parent for file in files for path in here.glob(file)}
        found = [(str(folder), folder) for folder in sorted(folders)]
    if not found:
        where = without_secrets(flags.storage) if flags.storage else flags.folder
        raise UserError(f"no studies in {where}")
    table = Table("study", "kind", "runs", "under way", "failed", "about", box=None, pad_edge=False)
    for name, place in found:
        try:
            row = _row(place)
        except Exception as error:
            # Whatever is wrong with one study, the others are listed.
            said = str(error) if isinstance(error, UserError) else repr(error)
            row = ["", "", "", "", " ".join(said.split())]
        # As text: in a plain string rich would read [/x] as markup.
        table.add_row(*map(Text, [name, *row]))
    console().print(table)
    return 0


def _row(location: Location | Path) -> list[str]:
    from ecanet.experiments.study.study import load_study

    study = load_study(location, "read")
    plan, counts = study.plan(), study.queue.counts()
    study.queue.engine.dispose()
    return [
        plan.kind,
        f"{counts.complete + counts.pruned}/{counts.total}",
        str(counts.running),
        str(counts.failed),
        plan.title(),
    ]


def _show(study: Study, flags: argparse.Namespace) -> int:
    import yaml

    plan, attributes = study.plan().to_dict(), study.trials.user_attrs
    shown = {
        "study": str(study.location),
        **{key: value for key, value in plan.items() if key != "settings"},
        "settings": plan["settings"],
        "environment": attributes["environment"],
    }
    show(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).rstrip())
    return 0


def _status(study: Study, flags: argparse.Namespace) -> int:
    from ecanet.experiments.study.progress import progress

    console().print(_view(progress(study)))
    return 0


def _watch(study: Study, flags: argparse.Namespace) -> int:
    from rich.live import Live

    from ecanet.experiments.study.progress import progress
    from ecanet.experiments.study.study import load_study

    if not _LEAST <= flags.interval <= _MOST:
        raise UserError(f"--interval {flags.interval}: give seconds from {_LEAST} to {_MOST}")
    screen = console()
    if flags.once or not screen.is_terminal:
        return _status(study, flags)
    with Live(console=screen, auto_refresh=False) as live:
        while True:
            now = progress(study)
            live.update(_view(now, bar=True), refresh=True)
            if not now.counts.open:
                return 0
            time.sleep(flags.interval)
            # Opened anew: what is read of a file that nobody had open shows no change.
            study.queue.engine.dispose()
            study = load_study(study.location, "read")


def _cancel(study: Study, flags: argparse.Namespace) -> int:
    say(
        f"{study.queue.cancel()} runs cancelled; `ecanet study retry` puts them into the queue again"
    )
    return 0


def _retry(study: Study, flags: argparse.Namespace) -> int:
    from ecanet.experiments.study.study import failures

    failed = [attributes["run"] for attributes in failures(study)]
    for name in flags.run or []:
        if name not in failed:
            raise UserError(
                f"no run {name!r} has failed or was cancelled."
                + (did_you_mean(name, failed) if failed else "")
            )
    number = _runs(study.queue.retry(flags.run or failed))
    say(f"{number} put into the queue, for `ecanet worker` to take up")
    return 0


def _runs(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"


def _view(now: Progress, bar: bool = False) -> RenderableType:
    """Return what watch and status show."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from ecanet.experiments.study.worker import duration

    counts = now.counts
    numbers = [f"{counts.complete + counts.pruned} of {counts.total} runs done"]
    for amount, word in (
        (counts.pruned, "of them ended early"),
        (counts.running, "under way"),
        (counts.waiting, "waiting"),
        (counts.failed, "failed"),
    ):
        if amount:
            numbers.append(f"{amount} {word}")
    if now.seconds_left is not None:
        numbers.append(f"about {duration(now.seconds_left)} left")
    parts: list[Any] = [Text(f"{now.title} ({now.kind})", style="bold")]
    if bar:
        line = Table.grid()
        line.add_row(ProgressBar(total=max(1, counts.total), completed=counts.ended, width=60))
        parts.append(line)
    parts.append(Text(", ".join(numbers)))
    if now.best:
        run, value = now.best
        parts.append(Text(f"best: {run}, {now.metric} {value:.4f}"))
    if now.running:
        table = Table(
            "under way", "host", "epochs", now.metric, "for", "heard of", box=None, pad_edge=False
        )
        for one in now.running:
            row = [
                one.run,
                one.host,
                f"{one.epochs}/{now.epochs}",
                "" if one.value is None else f"{one.value:.4f}",
                duration(one.seconds),
                f"{duration(one.silent)} ago",
            ]
            table.add_row(*map(Text, row))
        parts += ["", table]
    if now.failed:
        parts.append("")
        for error in dict.fromkeys(error for _, error in now.failed):
            runs = [run for run, found in now.failed if found == error]
            more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
            parts.append(Text(f"failed: {', '.join(runs[:3])}{more}: {error}", style="red"))
    return Group(*parts)
