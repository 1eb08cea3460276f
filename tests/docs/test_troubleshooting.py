"""The messages that the docs explain are those of the source."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_quoted_message_is_in_the_source() -> None:
    texts = {
        node.value
        for file in (ROOT / "ecanet").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    page = (ROOT / "docs/troubleshooting.md").read_text()
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(messages) >= 25
    for message in messages:
        for part in filter(None, message.replace("...", "…").split("…")):
            assert any(part.strip() in text for text in texts), part
