"""How a study is shown while it runs, to a caller from Python."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ecanet.errors import UserError, duration
from ecanet.experiments.analysis.compare import column_name
from ecanet.experiments.report.page import page_templates
from ecanet.experiments.study.progress import progress as read_progress
from ecanet.experiments.study.study import Study, load_study
from ecanet.metrics import format_metric
from ecanet.notebook import in_notebook, live_html, shown_lines

Watch = Callable[[Study], AbstractContextManager[None]]
"""Enters something that shows a study's progress."""

_INTERVAL = 1.0  # s between two updates
_STARTING = "<em>Reading the data and measuring what each module costs …</em>"


@contextmanager
def shown(progress: bool = True) -> Iterator[Watch | None]:
    """Show what a study does while the body runs, and yield what is to be entered while its runs train.

    Args:
        progress: in a notebook, show a table that is updated in place, and elsewhere a line for each event.
    """
    if not progress:
        yield None
    elif in_notebook():
        update = live_html(_STARTING)
        try:
            yield functools.partial(_table, update)
        except BaseException:
            update("")
            raise
    else:
        with shown_lines():
            yield None


@contextmanager
def _table(update: Callable[[str], None], study: Study) -> Iterator[None]:
    """Keep a notebook's table of a study up to date while the body runs."""
    ended, began = threading.Event(), time.monotonic()

    def follow() -> None:
        # Connections are not shared by threads.
        seen: Study | None = None
        while not ended.wait(_INTERVAL):
            try:
                seen = seen or load_study(study.location, "read")
                update(_html(seen))
            except UserError:
                # The study is busy or was moved: whoever works on it reports that.
                seen = None
        if seen:
            seen.queue.engine.dispose()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    counts = study.queue.counts()
    failed = f", {counts.failed} failed" if counts.failed else ""
    seconds = duration(time.monotonic() - began)
    update(f"{counts.complete + counts.pruned} of {counts.total} runs done{failed}, in {seconds}")


def _html(study: Study) -> str:
    now = read_progress(study)

    def value(number: float | None) -> str:
        return "" if number is None else format_metric(now.metric, number)

    template: Any = page_templates().get_template("live.html.j2")
    html: str = template.render(
        now=now, value=value, duration=duration, metric=column_name(now.metric)
    )
    return html
