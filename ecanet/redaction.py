"""Removal of passwords and keys from what is shown or stored."""

from __future__ import annotations

import os
import re

_HIDDEN = "***"
_NAMES = r"password|passwd|passphrase|secret|token|api_?key|access_?key|signature"
_SHORTEST = 6  # characters of a secret in the environment: shorter values occur in ordinary words
# An address that was treated as a path has one slash left.
_SCHEME = re.compile(r"[\w.+-]+:/{1,2}")
# A password may contain spaces and slashes.
_ADDRESS = re.compile(r"[\w.+-]+:/{1,2}(?:[^\s/@:]*:[^@\n]*@\S*|\S+)")


def without_secrets(address: str) -> str:
    """Return an address that can be shown: without password, token, or parameters that contain one.

    Everything before the last ``@`` counts as user and password, even if it is not escaped correctly.
    """
    scheme = (_SCHEME.match(address) or [""])[0]
    rest = address[len(scheme) :]
    before, at, host = rest.rpartition("@")
    user, colon, _ = before.partition(":")
    if at and (colon or "/" not in before):
        plain = re.fullmatch(r"[\w.%+-]*", user) and (colon or scheme.startswith("postgres"))
        rest = (f"{user}@" if plain else f"{_HIDDEN}@") + host
    rest = re.sub(rf"(?i)([?&][^=&]*(?:{_NAMES})[^=&]*=)[^&]*", rf"\1{_HIDDEN}", rest)
    return scheme + rest


def redact(text: str) -> str:
    """Return ``text`` without passwords of addresses, ``password=…``, or secrets of the environment."""
    text = _ADDRESS.sub(lambda found: without_secrets(found[0]), text)
    text = re.sub(rf"(?i)(\w*(?:{_NAMES})\s*=\s*)('[^']*'|[^\s&,;)]+)", rf"\1{_HIDDEN}", text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and re.search(rf"(?i)(?:{_NAMES})$", name):
            text = text.replace(value, _HIDDEN)
    return text
