"""A page of a report in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Visit:
    """An open page, with what it complained of and what it asked the network for."""

    def __init__(self, browser: Any, index: Path, width: int, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        self.context.set_offline(True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)  # a busy machine takes its time over 5 MB of script
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(index.as_uri())
        self.page.wait_for_function(
            "[...document.querySelectorAll('.plotly-graph-div')]"
            ".every(chart => chart.querySelector('svg.main-svg .trace'))"
        )

    def _listen(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))
