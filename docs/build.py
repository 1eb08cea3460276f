"""Build the site of these pages into ``build/site``: ``make docs``.

Zensical renders ``build/docs``, which is these pages, those of the repository that belong to the site
(``_PAGES``), and the reference that the program itself gives: its commands and its recipes. A link to a
file that is not part of the site becomes one to the repository.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from ecanet.cli import main
from ecanet.cli.commands import COMMANDS
from ecanet.recipe_file import recipe_path, recipes

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
_URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
REPOSITORY = _URLS["Repository"]
# Pages of the repository, and where they are on the site.
_PAGES = {
    "results/README.md": "results/README.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# Files in these folders that a page links to are part of the site.
_SERVED = ("docs", "results")
_LINK = re.compile(r'(\]\(|(?:src|href)=")(?![a-z]+:|#)([^)#"\s]+)')
_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)


def pages() -> dict[Path, str]:
    """Return each page that is written by hand, and its path on the site."""
    own = {page: str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    return own | {ROOT / page: place for page, place in _PAGES.items()}


def stage() -> None:
    """Fill ``build/docs`` with all pages and what they link to."""
    shutil.rmtree(BUILD / "docs", ignore_errors=True)
    places = pages()
    for page, place in places.items():
        _write(place, with_links(page, place, places))
    for command, text in commands():
        _write(_page_of(command), text)
    for name in ("site.css", "site.js"):
        shutil.copy(ROOT / "docs" / name, BUILD / "docs")
    _write("reference/cli/index.md", _commands_page())
    _write("reference/recipes.md", _recipes_page())


def with_links(page: Path, place: str, places: dict[Path, str]) -> str:
    """Return the text of a page with its links as they are on the site; copy the files they lead to."""

    def link(found: re.Match[str]) -> str:
        target = (page.parent / found[2]).resolve()
        if target in places:
            new = places[target]
        elif target.is_file() and target.relative_to(ROOT).parts[0] in _SERVED:
            new = str(target.relative_to(ROOT)).removeprefix("docs/")
            copy = BUILD / "docs" / new
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target, copy)
        elif target.exists():
            kind = "tree" if target.is_dir() else "blob"
            return f"{found[1]}{REPOSITORY}/{kind}/main/{target.relative_to(ROOT)}"
        else:  # generated, or broken: Zensical finds it
            return found[0]
        return found[1] + os.path.relpath(new, Path(place).parent)

    parts = _CODE.split(page.read_text())
    return "".join(part if part.startswith("`") else _LINK.sub(link, part) for part in parts)


def commands() -> Iterator[tuple[str, str]]:
    """Yield each command, such as ``detect train``, and its page."""
    for name in _names():
        yield name, f"# ecanet {name}\n\n```text\n{help_of(*name.split())}```\n"


def _page_of(command: str) -> str:
    return f"reference/cli/{command.replace(' ', '-')}.md"


def _names() -> Iterator[str]:
    for name in COMMANDS:
        package = importlib.import_module(f"ecanet.cli.{name}")
        yield name
        yield from (f"{name} {inner}" for inner in getattr(package, "_COMMANDS", {}))


def help_of(*command: str) -> str:
    """Return what ``ecanet COMMAND --help`` prints in a terminal of 80 columns."""
    parsers: list[argparse.ArgumentParser] = []
    printed, print_help = io.StringIO(), argparse.ArgumentParser.print_help

    def remember(parser: argparse.ArgumentParser, *to: Any) -> None:
        parsers.append(parser)
        print_help(parser, *to)

    with (
        mock.patch.dict(os.environ, COLUMNS="80"),
        mock.patch.object(argparse.ArgumentParser, "print_help", remember),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main._run([*command, "--help"])
    actions = [action for parser in parsers for action in parser._actions]
    for action in actions:  # those of `ecanet study`
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                with mock.patch.dict(os.environ, COLUMNS="80"):
                    printed.write(f"\n{inner.format_help()}")
    return printed.getvalue()


def _commands_page() -> str:
    rows = []
    for name, summary in COMMANDS.items():
        rows.append(f"| [`ecanet {name}`]({name}.md) | {summary} |")
        inner = getattr(importlib.import_module(f"ecanet.cli.{name}"), "_COMMANDS", {})
        rows += [f"| [`ecanet {name} {n}`]({name}-{n}.md) | {s} |" for n, s in inner.items()]
    head = "# Commands\n\nWhat each prints with `--help`. How they end: [exit codes](../exit-codes.md).\n"
    return "\n".join([head, "| command | what it does |", "|---|---|", *rows, ""])


def _recipes_page() -> str:
    text = (
        "# Recipes\n\nYAML files of settings that come with ecanet. `ecanet compare --recipe NAME` and other "
        "commands take one by its name, or a file of your own; flags behind it override it.\n"
    )
    for name in recipes():
        text += f"\n## {name}\n\n```yaml\n{Path(recipe_path(name)).read_text()}```\n"
    return text


def _write(place: str, text: str) -> None:
    path = BUILD / "docs" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def build(serve: bool = False) -> int:
    """Build the site, or serve it while it is edited; return the exit code."""
    stage()
    config = BUILD / "zensical.toml"
    text = (ROOT / "zensical.toml").read_text()
    entries = ", ".join(f'{{ "{name}" = "{_page_of(name)}" }}' for name in _names())
    text = text.replace('"{commands}"', entries).replace("{repository}", REPOSITORY)
    config.write_text(text.replace("{root}", str(ROOT)))
    shutil.rmtree(BUILD / "site", ignore_errors=True)
    program = [sys.executable, "-m", "zensical"]
    if serve:
        return subprocess.run([*program, "serve", "--config-file", str(config)]).returncode
    done = subprocess.run(
        [*program, "build", "--strict", "--clean", "--config-file", str(config)],
        stderr=subprocess.PIPE,
        text=True,
    )
    print(done.stderr, end="", file=sys.stderr)
    # A docstring that cannot be read is only logged, even by --strict.
    return done.returncode or int("griffe:" in done.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="serve it, built anew when started")
    sys.exit(build(parser.parse_args().serve))
