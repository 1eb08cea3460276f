"""The Hugging Face Hub where there may be no network: its libraries then read their caches at once."""

from __future__ import annotations

import functools
import logging
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from huggingface_hub import constants

_PATIENCE = 10.0
"""Seconds for a connection to be made."""
_VALID = 60
"""Seconds for which no other is tried: a run looks at its weights several times when it starts."""


@contextmanager
def hub_or_cache() -> Iterator[str | None]:
    """Use the caches of the Hub's libraries alone inside ``with``, if no connection to the Hub can be made.

    For a file that is not in its cache, huggingface_hub would try for half a minute, with two lines of
    warnings a try; these are dropped.

    Yields:
        Why there is no connection; None where there is one, and where the environment has chosen the caches
        or a proxy.
    """
    logger = logging.getLogger("huggingface_hub")
    level, offline = logger.level, constants.HF_HUB_OFFLINE
    reason = None if offline else _unreachable(constants.ENDPOINT, int(time.monotonic() // _VALID))
    logger.setLevel(logging.ERROR)
    constants.HF_HUB_OFFLINE = offline or reason is not None
    try:
        yield reason
    finally:
        logger.setLevel(level)
        constants.HF_HUB_OFFLINE = offline


@functools.lru_cache(maxsize=1)
def _unreachable(address: str, _time: int) -> str | None:
    """Return why no connection to an address can be made, or None; once for each ``_time``."""
    parts = urlsplit(address)
    proxies = urllib.request.getproxies()
    if parts.hostname is None or proxies.get(parts.scheme) or proxies.get("all"):
        return None
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname, port), timeout=_PATIENCE).close()
    except OSError as error:
        return f"{parts.hostname}: {error.strerror or error}"
    return None
