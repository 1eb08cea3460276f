"""Passwords and keys are taken out of whatever is shown or kept."""

from __future__ import annotations

import os
import re

_HIDDEN = "***"
_NAMES = r"password|passwd|passphrase|secret|token|api_?key|access_?key|signature"
# Shorter values would be found in ordinary words.
_SHORTEST = 6
# As a path an address has one slash left.
_SCHEME = re.compile(r"[\w.+-]+:/{1,2}")
# A password may hold spaces and slashes.
_ADDRESS = re.compile(r"[\w.+-]+:/{1,2}(?:[^\s/@:]*:[^@\n]*@\S*|\S+)")


def without_secrets(address: str) -> str:
    """Return an address as it may be shown: without password, token, or parameters that hold one.

    Whatever stands before the last ``@`` counts as password, whether or not it is written as it should be.
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
    """Return ``text`` without the passwords of addresses, ``password=…``, and the keys in our environment."""
    text = _ADDRESS.sub(lambda found: without_secrets(found[0]), text)
    text = re.sub(rf"(?i)(\w*(?:{_NAMES})\s*=\s*)('[^']*'|[^\s&,;)]+)", rf"\1{_HIDDEN}", text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and re.search(rf"(?i)(?:{_NAMES})$", name):
            text = text.replace(value, _HIDDEN)
    return text
