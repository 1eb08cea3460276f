"""Python files of the user's own that register attention modules and models."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from ecanet.errors import UserError


def load_plugins(files: Iterable[str]) -> None:
    """Load them in their order.

    Raises:
        UserError: one cannot be loaded; the line says which and why.
    """
    from ecanet.attention import load_plugin

    for file in files:
        try:
            load_plugin(file)
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from None


def check_trust(
    files: Iterable[str], trusted: Collection[str] | None, whose: str, flag: str = "plugin"
) -> None:
    """Refuse plugins that the user has not named: they are programs, and would be run.

    Args:
        files: plugins that something else names, or trainers (``FILE:FUNCTION``) and commands.
        trusted: those that the user has named; None: all are trusted.
        whose: what names them, for the line: ``the study``.
        flag: by which the user names them.

    Raises:
        UserError: one is not among the trusted.
    """
    if trusted is None:
        return
    known = {Path(file).resolve() for file in trusted}
    for file in files:
        if Path(file).resolve() not in known:
            raise UserError(
                f"{whose} names the {flag} {str(file)!a}, a program that would be run: if you "
                f"trust it, give it by --{flag}, or give --trust-plugins"
            )
