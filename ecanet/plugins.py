"""Python files of the user's own that register attention modules and models."""

from __future__ import annotations

from collections.abc import Iterable

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
