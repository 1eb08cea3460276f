"""The code blocks of README.md and docs/, and what of them cannot run without a GPU or a network."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
# A block after `<!-- not run: REASON -->` is not run; nor is a line of a shell that one of these fits.
_MARK = re.compile(r"<!-- not run: (.+?) -->")
NOT_RUN = {
    r"(uv |uvx |pipx |pip |docker |make |git )": "installs, or runs these tests",
    r"(srun|torchrun|sbatch|scontrol|\[) ?": "needs several processes or a cluster",
    r"optuna-dashboard": "serves until it is stopped",
    r".*(hf-hub:|hf:|--pretrained|torchvision/[A-Z]|wandb|imagenet/)": "needs a download or weeks",
    r"ecanet download (?!--help)": "needs a download",
    r".*postgresql://": "needs a server",
    r".*--devices [2-9]": "needs several devices",
    r".*(--check-claims|sweeps/reproduction2020)": "takes minutes; has a test of its own",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the text behind it, and why it is not run, if it is not."""

    page: str
    line: int
    language: str
    info: str
    text: str
    reason: str | None

    def commands(self) -> Iterator[list[str]]:
        """Yield the words of each command of a shell block."""
        for line in re.sub(r"\\\n\s*", " ", self.text).splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words

    def file(self) -> str | None:
        """Return the name of the file that the block is to be kept in, if it is one."""
        found = re.search(r'title="([^"]+)"', self.info) or re.match(r"# ([\w.]+)\n", self.text)
        return found[1] if found else None

    def runs(self) -> bool:
        """Return whether a test runs it, or at least one of its commands."""
        if self.reason:
            return False
        if self.language != "sh":
            return True
        return any(why_not(words) is None for words in self.commands())


def why_not(words: list[str]) -> str | None:
    """Return why a command is not run, None if it is."""
    line = " ".join(words)
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, line)), None)


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page that are code: Python, shells, and the files that these need."""
    found, reason = [], None
    for token in MarkdownIt("commonmark").parse((ROOT / page).read_text()):
        if token.type == "html_block" and (mark := _MARK.search(token.content)):
            reason = mark[1]
        elif token.type == "fence":
            language, _, info = token.info.partition(" ")
            if language in ("python", "sh", "yaml"):
                line = token.map[0] + 1 if token.map else 0
                found.append(Block(page, line, language, info, token.content, reason))
            reason = None
    # A YAML is a file that a command needs, or an example.
    return [block for block in found if block.language != "yaml" or block.file()]
