"""Docstrings as Markdown for the API pages: an extension of griffe, which mkdocstrings reads them with."""

import re
from typing import Any

import griffe

# What the docstrings of attention modules state, a line each.
_FACTS = re.compile(r"\n(?=(?:Paper|Shapes|Parameters|Saved for backward|Starts as): )")
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_LITERAL = re.compile(r"::$", re.MULTILINE)
_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*)$", re.MULTILINE)


def _one_each(found: re.Match[str]) -> str:
    return "\n".join(f"{found[1]}{name}: {found[3]}" for name in found[2].split(", "))


class Markdown(griffe.Extension):
    """Sphinx roles become code, facts paragraphs, and arguments described together one line each,
    and a colon introduces an indented block."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            text = _ROLE.sub(r"`\1`", _FACTS.sub("\n\n", obj.docstring.value))
            obj.docstring.value = _LITERAL.sub(":", _SHARED.sub(_one_each, text))
