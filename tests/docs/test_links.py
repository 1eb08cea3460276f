"""Links of all pages lead somewhere: files, pictures and anchors, as GitHub and the site make them."""

import functools
import itertools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import ecanet

ROOT = Path(__file__).parents[2]
# Pages that the site's build makes: docs/build.py.
MADE = ("docs/reference/cli/", "docs/reference/recipes.md")


def _pages() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return listed.stdout.split() or [str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md")]


@functools.cache
def _tokens(page: Path) -> list:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def links(page: Path) -> Iterator[str]:
    """Yield what links and pictures of a page lead to, those of HTML in it too."""
    for token in _tokens(page):
        for inner in [token, *(token.children or [])]:
            if inner.type in ("link_open", "image"):
                yield str(inner.attrs.get("href") or inner.attrs.get("src"))
            elif inner.type in ("html_inline", "html_block"):
                yield from re.findall(r'(?:href|src)="([^"]+)"', inner.content)


@functools.cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, by GitHub's rule."""
    found: set[str] = set()
    tokens = _tokens(page)
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            text = "".join(t.content for t in inline.children or [])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            number = sum(slug == re.sub(r"-\d+$", "", other) for other in found)
            found.add(f"{slug}-{number}" if slug in found else slug)
    return found


@pytest.mark.parametrize("page", _pages())
def test_links_lead_somewhere(page: str) -> None:
    for link in links(ROOT / page):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        if str(path.relative_to(ROOT)).startswith(MADE):
            continue
        assert path.exists(), link
        if anchor and not path.is_relative_to(ROOT / "docs/reference/api"):
            assert anchor in anchors(path), link


def test_every_page_of_the_docs_is_in_the_navigation() -> None:
    navigation = set(re.findall(r'[=[] ?"([\w/-]+\.md)"', (ROOT / "zensical.toml").read_text()))
    own = {page.removeprefix("docs/") for page in _pages() if page.startswith("docs/")}
    made = {"reference/cli/index.md", "reference/recipes.md"}
    elsewhere = {"results/README.md", "contributing.md", "changelog.md"}
    assert navigation == own | made | elsewhere


def test_every_public_name_is_in_the_reference() -> None:
    listed = (ROOT / "docs/reference/api/index.md").read_text()
    assert [name for name in ecanet.__all__ if f"{name}`]" not in listed] == []
