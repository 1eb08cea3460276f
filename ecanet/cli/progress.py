"""How far a study or a command is, as lines that fit a terminal; or as one line, where there is none."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ecanet.activity import Activity
from ecanet.cli.output import visible
from ecanet.errors import counted, duration, first_of
from ecanet.redaction import redact

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ecanet.experiments.study.progress import RunningRun, StudyProgress

_SILENT = 60.0  # s without a heartbeat from which on a run's row shows it
_NARROWEST = 9  # columns of a terminal that a name keeps
_BAR = 30  # columns of a bar, at most
_LEAST_RUNS = 3  # rows of running runs that a low terminal shows
_LOW = 20  # lines of a view from which on it has room for several errors
_ERRORS = 3  # errors that are shown while others are expected


def study_view(
    now: Sequence[StudyProgress],
    names: Sequence[str] = (),
    *,
    width: int,
    height: int | None = None,
    bar: bool = False,
) -> list[RenderableType]:
    """Return how far a study is, or the cells of a comparison over several: an item for each line.

    Args:
        now: of the study, or of each cell.
        names: of the cells, if it has some.
        width: columns of the terminal.
        height: lines that there are; None: any number. What does not fit is counted.
        bar: whether to draw a bar.
    """
    head = _head(now, names, width, bar)
    low = height is not None and height < _LOW
    failed = _failed(now, names, width, None if height is None else 1 if low else _ERRORS)
    tables = [_cells(now, names) if names else _modules(now[0]), _running(now, names)]
    rows = [len(rows) for _, rows, _ in tables]
    if height is not None:
        room = height - len(head) - len(failed) - sum(2 for count in rows if count)
        runs = min(rows[1], max(_LEAST_RUNS, room // 2, room - rows[0]))
        rows = [max(1, min(rows[0], room - runs)), runs]
    lines = list(head)
    for (heads, body, noun), shown in zip(tables, rows, strict=True):
        if body:
            # The line that counts what is cut takes the place of a row.
            kept = body if len(body) <= shown else body[: max(1, shown - 1)]
            lines += ["", *_table(heads, kept, width)]
            if left := len(body) - len(kept):
                lines.append(_text(f"… and {counted(left, f'more {noun}')}", width, "dim"))
    lines += failed
    if height is not None and len(lines) > height:
        left = len(lines) - height + 1
        lines[height - 1 :] = [_text(f"… and {counted(left, 'more line')}", width, "dim")]
    return lines


def activity_view(stack: Sequence[Activity], width: int) -> list[RenderableType]:
    """Return what a command is doing and how far it is: an item for each line."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    name = max((len(one.what) for one in stack), default=0)
    name = min(name, width // 3)
    lines: list[RenderableType] = []
    for one in stack:
        numbers, text = _amount(one, "/") or duration(one.seconds()), visible(redact(one.detail))
        if (seconds := one.seconds_left()) is not None:
            left = f"about {duration(seconds)} left"
            if name + len(numbers) + len(left) + 4 <= width:
                numbers = f"{numbers}, {left}"
            else:
                text = f"{left}, {text}" if text else left
        rest = width - name - len(numbers) - 4
        bar = min(_BAR, rest)
        if one.total and bar >= 5:
            # Beside the numbers if there is room for both.
            if text and rest - len(text) - 2 >= 8:
                bar, numbers, text = min(bar, rest - len(text) - 2), f"{numbers}, {text}", ""
            row = Table.grid(padding=(0, 2))
            row.add_column(width=name)
            row.add_column(width=bar)
            row.add_row(
                _text(one.what, name, "bold"),
                ProgressBar(total=one.total, completed=min(one.done, one.total), width=bar),
                _text(numbers, width),
            )
            lines.append(row)
        else:
            lines.append(_text(f"{one.what:{name}}  {numbers}", width))
        for line in textwrap.wrap(text, width - name - 2):
            lines.append(_text(f"{'':{name}}  {line}", width, "dim"))
    return lines


def study_line(now: Sequence[StudyProgress]) -> str:
    """Return how far a study is in one line, over all its cells if it has some."""
    counts = [one.counts for one in now]
    done = sum(one.complete + one.pruned for one in counts)
    parts = [f"{done} of {counted(sum(one.total for one in counts), 'run')} done"]
    running = [_run_text(one, run) for one in now for run in one.running]
    if running:
        parts.append(f"{len(running)} running: {first_of(running, 3, '; ')}")
    parts += [f"{n} {state}" for state in ("waiting", "failed") if (n := _sum(now, state))]
    left = [one.seconds_left for one in now if one.seconds_left is not None]
    if left:
        parts.append(f"about {duration(sum(left))} left")
    return "; ".join(parts)


def activity_line(stack: Sequence[Activity]) -> str:
    """Return what a command is doing and how far it is in one line."""
    parts = []
    for one in stack:
        amount = _amount(one, " of ")
        known = ", ".join(filter(None, [amount, one.detail]))
        parts.append(f"{one.what}: {known}" if known else one.what)
        left = one.seconds_left()
        if left is not None:
            parts[-1] += f", about {duration(left)} left"
    return "; ".join(parts)


def _head(
    now: Sequence[StudyProgress], names: Sequence[str], width: int, bar: bool
) -> list[RenderableType]:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    done, total = _sum(now, "complete") + _sum(now, "pruned"), _sum(now, "total")
    title = f"{now[0].title} ({now[0].kind})"
    if names:
        title = f"{counted(len(names), 'network')} and data sets ({now[0].kind})"
    numbers = f"{done} of {counted(total, 'run')} done"
    if (most := sum(one.at_most for one in now)) > total:
        numbers += f", {most} at most"
    lines: list[RenderableType] = [_text(title, width, "bold")]
    states = {
        "of them ended early": "pruned",
        "running": "running",
        "waiting": "waiting",
        "failed": "failed",
    }
    rest = [f"{n} {text}" for text, state in states.items() if (n := _sum(now, state))]
    left = [one.seconds_left for one in now if one.seconds_left is not None]
    if left:
        rest.append(f"about {duration(sum(left))} left")
    if bar:
        row = Table.grid(padding=(0, 2))
        size = max(5, min(2 * _BAR, width - len(numbers) - 2))
        row.add_row(
            ProgressBar(total=max(1, total), completed=_sum(now, "ended"), width=size),
            _text(numbers, width),
        )
        lines.append(row)
    else:
        rest.insert(0, numbers)
    lines += [_text(line, width) for line in textwrap.wrap(", ".join(rest), width)]
    if now[0].best and not names:
        best, value = now[0].best, _value(now[0], now[0].best.value)
        text = f"best: {_metric(now[0])} {value}, {best.run}: {best.title}"
        lines += [_text(line, width) for line in textwrap.wrap(text, width)]
    return lines


def _modules(now: StudyProgress) -> tuple[list[str], list[list[str]], str]:
    rows = []
    for one in now.modules:
        total = one.complete + one.running + one.waiting + one.failed
        mean = "" if one.mean is None else _value(now, one.mean)
        failed = f"{one.failed} failed" if one.failed else ""
        rows.append([one.attention, f"{one.complete}/{total}", mean, failed])
    return ["module", "runs", f"mean {_metric(now)}|mean", ""], rows, "module"


def _cells(
    now: Sequence[StudyProgress], names: Sequence[str]
) -> tuple[list[str], list[list[str]], str]:
    rows = []
    for name, one in zip(names, now, strict=True):
        counts = one.counts
        left = "" if one.seconds_left is None else duration(one.seconds_left)
        failed = f"{counts.failed} failed" if counts.failed else ""
        done = f"{counts.complete + counts.pruned}/{counts.total}"
        rows.append([name, done, str(counts.running or ""), left, failed])
    return ["cell", "runs", "running", "time left|left", ""], rows, "cell"


def _running(
    now: Sequence[StudyProgress], names: Sequence[str]
) -> tuple[list[str], list[list[str]], str]:
    """Return a row for each running run, without the columns that are empty."""
    from ecanet.metrics import metric_named

    every = [(one, run) for one in now for run in one.running]
    cells = (
        [name for name, one in zip(names, now, strict=True) for _ in one.running] if names else []
    )
    hosts = {run.host for _, run in every}
    elsewhere = hosts - {platform.node()}
    columns: dict[str, list[str]] = {
        "running": [run.title if run.attention is None else run.attention for _, run in every],
        "seed": ["" if run.seed is None else str(run.seed) for _, run in every],
        "cell": cells,
        "epochs": [_epochs(one, run) for one, run in every],
        f"{_metric(now[0])}|{metric_named(now[0].metric).title}": [
            "" if run.value is None else _value(one, run.value) for one, run in every
        ],
        "time left|left": [
            "" if run.seconds_left is None else duration(run.seconds_left) for _, run in every
        ],
        "host": [run.host for _, run in every] if elsewhere else [],
        "heartbeat": [
            f"{duration(run.silent)} ago" if run.silent > _SILENT else "" for _, run in every
        ],
    }
    used = [head for head, cells in columns.items() if any(cells) or head == "running"]
    rows = [list(row) for row in zip(*(columns[head] for head in used), strict=True)]
    return used, rows, "run"


def _failed(
    now: Sequence[StudyProgress], names: Sequence[str], width: int, most: int | None
) -> list[RenderableType]:
    """Return each error with the runs that it ended."""
    lines = []
    for i, one in enumerate(now):
        where = f"{names[i]}: " if names else ""
        for error in dict.fromkeys(error for _, error in one.failed):
            runs = first_of([run for run, found in one.failed if found == error], 3)
            lines.append(f"failed: {where}{runs}: {error}")
    if not lines:
        return []
    cut = lines if most is None else lines[:most]
    texts = [_text(line, None if most is None else width, "red") for line in cut]
    if left := len(lines) - len(cut):
        texts.append(_text(f"… and {counted(left, 'more error')}", width, "red"))
    return ["", *texts]


def _table(heads: list[str], rows: list[list[str]], width: int) -> list[RenderableType]:
    """Return the lines of a table: the first column gives way first, then the last ones are left out."""
    rows = [[visible(redact(cell)) for cell in row] for row in rows]
    used = [column for column in zip(heads, *rows, strict=True) if column[0] or any(column[1:])]
    widths = [
        max(_cells_of(column[0].split("|")[0]), *map(_cells_of, column[1:])) for column in used
    ]

    def too_wide() -> bool:
        return min(widths[0], _NARROWEST) + sum(w + 2 for w in widths[1:]) > width

    if too_wide():
        # Headings give way before columns do.
        shortest = [_cells_of(column[0].split("|")[-1]) for column in used]
        widths[1:] = [
            max(size, *map(_cells_of, column[1:]))
            for size, column in zip(shortest[1:], used[1:], strict=True)
        ]
    while len(used) > 2 and too_wide():
        used.pop()
        widths.pop()
    widths[0] = max(1, min(widths[0], width - sum(w + 2 for w in widths[1:])))
    lines = []
    for number, cells in enumerate(zip(*used, strict=True)):
        if number == 0:
            cells = tuple(_heading(cell, size) for cell, size in zip(cells, widths, strict=True))
        first = _shortened(cells[0], widths[0])
        text = first + " " * (widths[0] - _cells_of(first))
        for cell, size in zip(cells[1:], widths[1:], strict=True):
            cell = _shortened(cell, size)
            text += "  " + " " * (size - _cells_of(cell)) + cell
        lines.append(_text(text.rstrip(), width, "bold" if number == 0 else ""))
    return list(lines)


def _heading(text: str, width: int) -> str:
    """Return a heading, or what stands behind its | where it is too wide."""
    long, _, short = text.partition("|")
    return short if short and _cells_of(long) > width else long


def _text(line: str, width: int | None, style: str = "") -> RenderableType:
    """Return a line, cut to ``width``; what steers a terminal is written out."""
    from rich.text import Text

    text = Text(visible(redact(line)), style=style, no_wrap=width is not None)
    if width is not None:
        text.truncate(width, overflow="ellipsis")
    return text


def _shortened(name: str, width: int) -> str:
    """Return a name of at most ``width`` columns: names that are alike differ at their ends."""
    if _cells_of(name) <= width:
        return name
    head, tail = name[: width // 2], name[-((width - 1) // 2) :] if width > 2 else ""
    while head and _cells_of(head + tail) > width - 1:
        head, tail = (head[:-1], tail) if _cells_of(head) >= _cells_of(tail) else (head, tail[1:])
    return f"{head}…{tail}"


def _cells_of(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _amount(one: Activity, of: str) -> str:
    if one.unit == "bytes":
        done = f"{one.done / 1e6:.1f}"
        return f"{done}{of}{one.total / 1e6:.1f} MB" if one.total else f"{done} MB"
    done = f"{int(one.done):,}"
    if one.total is None:
        return f"{done} {one.unit}" if one.done else ""
    return f"{done}{of}{int(one.total):,} {one.unit}"


def _run_text(now: StudyProgress, run: RunningRun) -> str:
    value = "" if run.value is None else f", {_metric(now)} {_value(now, run.value)}"
    return f"{run.title}, {_epochs(now, run)} epochs{value}"


def _epochs(now: StudyProgress, run: RunningRun) -> str:
    """Return how many epochs are done, with a part of one where they are few and long."""
    part = run.epochs % 1 and not (now.epochs and now.epochs >= 100)
    done = f"{run.epochs:.1f}" if part else f"{int(run.epochs)}"
    return f"{done}/{now.epochs}" if now.epochs else done


def _metric(now: StudyProgress) -> str:
    from ecanet.experiments.analysis.compare import column_name

    return column_name(now.metric)


def _value(now: StudyProgress, value: float) -> str:
    from ecanet.metrics import format_metric

    return format_metric(now.metric, value)


def _sum(now: Sequence[StudyProgress], state: str) -> int:
    return sum(getattr(one.counts, state) for one in now)
