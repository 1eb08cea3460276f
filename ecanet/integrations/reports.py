"""What somebody else's trainer reports: metrics after each epoch and at the end, checked."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecanet.errors import UserError, listed, shown
from ecanet.files import write_rows
from ecanet.metrics import metric_named
from ecanet.record import Row
from ecanet.signals import raise_pending
from ecanet.training.task import Hooks

EPOCHS = "epochs.csv"
"""Name of the file in a run's folder with a line for each epoch that was reported."""

_OURS = ("epoch", "seconds")


def checked_metrics(metrics: Any, whose: str) -> Row:
    """Return metrics as floats.

    Args:
        metrics: of a run or an epoch: numbers, or tensors and arrays with one element.
        whose: what has reported them.

    Raises:
        UserError: it is no dictionary of numbers, or a share is none of 1.
    """
    if not isinstance(metrics, Mapping):
        raise UserError(
            f'{whose} returned {shown(metrics)}: return a dictionary, such as {{"accuracy": 0.93}}'
        )
    found: Row = {}
    for name, value in metrics.items():
        try:
            if isinstance(value, (str, bytes, bool)):
                raise TypeError
            # A loss may still hold its graph.
            found[str(name)] = float(value.detach() if hasattr(value, "detach") else value)
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"{whose}: {name} is {shown(value)}, not a number") from None
    return found


def check_share(name: str, value: float, whose: str) -> None:
    """Refuse a value of a metric that is shown in percent and is no share of 1.

    Raises:
        UserError: says what to return.
    """
    if metric_named(name).is_share and not (math.isnan(value) or 0 <= value <= 1):
        raise UserError(
            f"{whose}: {name} is {value:g}, and should be a share from 0 to 1: divide percent by 100"
        )


def judged_metric(found: Row, name: str, whose: str) -> float:
    """Return the metric that runs are compared by.

    Raises:
        UserError: it was not returned, or is no share of 1.
    """
    if name not in found:
        known = listed(sorted(found)) or "nothing"
        raise UserError(
            f"{whose} returned no {name} (it returned {known}): return it, or choose another --metric"
        )
    check_share(name, found[name], whose)
    return found[name]


class Report:
    """What a trainer calls after each epoch: ``report(epoch, loss=0.3, accuracy=0.9)``.

    Epochs are numbered from 0. The lines are kept in the run's folder: a trainer that resumes reports the
    epochs that follow, one that starts again all of them.

    Args:
        folder: of the run.
        hooks: of the study; what they raise must end the run.
        judged: metric that runs are compared by.
        whose: what reports.
    """

    def __init__(self, folder: Path, hooks: Hooks, judged: str, whose: str) -> None:
        self.file, self.hooks, self.judged, self.whose = folder / EPOCHS, hooks, judged, whose
        self.rows = read_rows(self.file)
        self.since = time.monotonic()
        self.epoch: int | None = None
        """The last one that was reported by this process."""

    def __call__(self, epoch: int, **metrics: float) -> None:
        """Keep the metrics of an epoch, and the run's lease. Several calls may share an epoch's metrics.

        Raises:
            UserError: a metric is no number.
            Exception: the run is to end; let it pass.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise UserError(
                f"{self.whose} reported epoch {shown(epoch)}: give a whole number from 0"
            )
        found = checked_metrics(metrics, self.whose)
        found = {name: value for name, value in found.items() if name not in _OURS}
        if self.judged in found:
            check_share(self.judged, found[self.judged], self.whose)
        self.stop_if_asked()
        known = next((row for row in self.rows if row["epoch"] == epoch), {})
        before = {name: value for name, value in known.items() if name not in _OURS}
        goes_on, self.epoch = epoch == self.epoch, epoch
        # Of one that was killed after it was reported, the time that it took then is known.
        if known and _holds(before, found):
            return
        adds = bool(known) and (goes_on or _holds(found, before))
        seconds = self.elapsed() if goes_on or not adds else 0.0
        if adds:
            found, seconds = before | found, known["seconds"] + seconds
        row = {"epoch": epoch, **found, "seconds": seconds}
        later = [other for other in self.rows if other["epoch"] > epoch] if adds else []
        self.rows = [other for other in self.rows if other["epoch"] < epoch] + [row] + later
        write_rows(self.file, self.rows)
        self.hooks.on_epoch(row)

    def elapsed(self) -> float:
        """Return the seconds since this was last called, or made."""
        before, self.since = self.since, time.monotonic()
        return self.since - before

    def stop_if_asked(self) -> None:
        """Raise what ends the run: a signal, a lost lease, a study that has gone."""
        raise_pending()
        self.hooks.on_step()


def _holds(row: Row, part: Row) -> bool:
    """Return whether a row has all values of another; NaN is equal to NaN."""
    return all(
        name in row and (row[name] == value or (math.isnan(row[name]) and math.isnan(value)))
        for name, value in part.items()
    )


def read_rows(file: Path, ended: bool = True) -> list[Row]:
    """Return a row for each epoch of a CSV; lines without ``epoch`` are epochs counted from 0.

    Several lines of an epoch, such as one of training and one of validation, are one row: of a column that
    more of them fill the last value counts. What is no number is left out.

    Args:
        file: to read; there may be none.
        ended: the file is complete. A last line without an end is then read; it may still be written.
    """
    try:
        text = file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return []
    lines = (text if ended else text[: text.rfind("\n") + 1]).splitlines()
    rows: dict[int, Row] = {}
    for i, line in enumerate(csv.DictReader(lines)):
        row: Row = {"epoch": i}
        for name, value in line.items():
            try:
                row[name.strip()] = float(value)
            except (TypeError, ValueError, AttributeError):
                continue
        if not row.keys() - {"epoch"}:
            continue
        epoch = int(row["epoch"]) if math.isfinite(row["epoch"]) else i
        rows[epoch] = rows.get(epoch, {}) | row | {"epoch": epoch}
    return list(rows.values())
