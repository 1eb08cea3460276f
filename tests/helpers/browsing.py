"""A page of a report in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Visit:
    """An open page, its errors and warnings, and its network requests."""

    def __init__(self, browser: Any, index: Path, width: int, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        self.context.set_offline(True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)  # parsing 5 MB of script is slow on a busy machine
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(index.as_uri())
        self.page.wait_for_function(
            "[...document.querySelectorAll('.plotly-graph-div')]"
            ".every(chart => chart.querySelector('svg.main-svg :is(.trace, .hm)'))"
        )

    def _listen(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))
