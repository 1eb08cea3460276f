"""How far a study is, on a terminal: once, and live while it is worked on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ecanet.errors import UserError, counted, first_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ecanet.experiments.study.progress import StudyProgress
    from ecanet.experiments.study.study import Study

_INTERVAL = 2.0  # s between two updates


def progress_view(now: StudyProgress, bar: bool = False) -> RenderableType:
    """Return a study's progress as something that rich prints."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from ecanet.experiments.analysis.compare import column_name
    from ecanet.experiments.study.worker import duration
    from ecanet.metrics import format_metric

    counts, metric = now.counts, column_name(now.metric)
    numbers = [f"{counts.complete + counts.pruned} of {counts.total} runs done"]
    states = {
        "of them ended early": counts.pruned, "running": counts.running,
        "waiting": counts.waiting, "failed": counts.failed,
    }  # fmt: skip
    numbers += [f"{amount} {state}" for state, amount in states.items() if amount]
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
        parts.append(Text(f"best: {run}, {metric} {format_metric(now.metric, value)}"))
    if now.modules:
        table = Table("module", "runs", f"mean {metric}", "", box=None, pad_edge=False)
        for module in now.modules:
            mean = "" if module.mean is None else format_metric(now.metric, module.mean)
            others = [
                f"{amount} {state}"
                for state in ("running", "waiting", "failed")
                if (amount := getattr(module, state))
            ]
            table.add_row(
                *map(Text, [module.attention, str(module.complete), mean, ", ".join(others)])
            )
        parts += ["", table]
    if now.running:
        table = Table(
            "running", "host", "epochs", metric, "for", "heartbeat", box=None, pad_edge=False
        )
        for one in now.running:
            reached = "" if one.value is None else format_metric(now.metric, one.value)
            epochs = f"{one.epochs}/{now.epochs}" if now.epochs else str(one.epochs)
            row = [one.run, one.host, epochs, reached, duration(one.seconds)]
            table.add_row(*map(Text, [*row, f"{duration(one.silent)} ago"]))
        parts += ["", table]
    if now.failed:
        parts.append("")
        for error in dict.fromkeys(error for _, error in now.failed):
            runs = [run for run, found in now.failed if found == error]
            parts.append(Text(f"failed: {first_of(runs, 3)}: {error}", style="red"))
    return Group(*parts)


def cells_view(names: list[str], now: list[StudyProgress], bar: bool = False) -> RenderableType:
    """Return the progress of a comparison over several networks and data sets, a row for each cell."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from ecanet.experiments.study.worker import duration

    table = Table("cell", "done", "running", "waiting", "failed", "left", box=None, pad_edge=False)
    for name, one in zip(names, now, strict=True):
        counts = one.counts
        left = "" if one.seconds_left is None else f"about {duration(one.seconds_left)}"
        done = f"{counts.complete + counts.pruned}/{counts.total}"
        amounts = [str(n or "") for n in (counts.running, counts.waiting, counts.failed)]
        table.add_row(*map(Text, [name, done, *amounts, left]))
    ended, total = (sum(getattr(p.counts, what) for p in now) for what in ("ended", "total"))
    parts: list[Any] = [Text(f"{counted(ended, 'run')} of {total} ended", style="bold")]
    if bar:
        line = Table.grid()
        line.add_row(ProgressBar(total=max(1, total), completed=ended, width=60))
        parts.append(line)
    parts += [table]
    for name, one in zip(names, now, strict=True):
        for error in dict.fromkeys(error for _, error in one.failed):
            runs = [run for run, found in one.failed if found == error]
            parts.append(Text(f"failed: {name}: {first_of(runs, 3)}: {error}", style="red"))
    return Group(*parts)


@contextmanager
def live_progress(study: Study) -> Iterator[None]:
    """Show a study's progress at the foot of the terminal, below the lines of news, while the body runs."""
    from rich.console import Console
    from rich.live import Live

    from ecanet.experiments.study.progress import progress
    from ecanet.experiments.study.study import load_study

    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_INTERVAL):
            try:
                # Opened for reading by itself: connections are not shared by threads.
                seen = load_study(study.location, "read")
                live.update(progress_view(progress(seen), bar=True), refresh=True)
                seen.queue.engine.dispose()
            except UserError:
                # The study is busy or was moved: who works on it says so.
                continue

    screen = Console(stderr=True, highlight=False, markup=False, emoji=False)
    thread = threading.Thread(target=watch, daemon=True)
    with Live(console=screen, auto_refresh=False, transient=True, redirect_stdout=False) as live:
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
