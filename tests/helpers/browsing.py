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
        self.page.set_default_timeout(120_000)  # parsing plotly's 5 MB is slow on a busy machine
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(index.as_uri())
        self.wait_for_charts()

    def wait_for_charts(self) -> None:
        """Wait until the charts are drawn, all but those that are folded away."""
        from playwright.sync_api import expect

        # Not wait_for_function, which evaluates strings: the page's policy forbids that.
        drawn = self.page.locator("svg.main-svg :is(.trace, .hm)")
        undrawn = self.page.locator(".chart:visible").filter(has_not=drawn)
        expect(undrawn).to_have_count(0, timeout=120_000)

    def _listen(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))
