"""What a report's page holds, read without a browser."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

EVIL = "<script>alert(1)</script><b>$x_{&\"' %{x}"
"""A name that would be markup, a formula and a template, were it not escaped."""


class Page(HTMLParser):
    """What a page holds: its tags, and the text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._silent = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())
