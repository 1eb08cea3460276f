"""Python processes that ecanet starts, itself or through a library: none imports from the current folder.

For ``-m`` and ``-c`` Python looks there before anywhere else, so that a file ``json.py`` lying beside
somebody's images would run in place of the library's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def command(*arguments: str) -> list[str]:
    """Return the command line that runs ``ecanet ARGUMENTS`` with this Python and this very ecanet."""
    return [sys.executable, str(Path(__file__).resolve().with_name("__main__.py")), *arguments]


def keep_current_folder_out() -> None:
    """Set that for all Python processes which this one starts from now on, by whatever library."""
    os.environ["PYTHONSAFEPATH"] = "1"
    if sys.version_info < (3, 11):
        import multiprocessing.util

        # That variable is younger. What multiprocessing starts gets its parent's path once it is up; until
        # then it needs no more than the standard library.
        multiprocessing.util._args_from_interpreter_flags = lambda: ["-I"]  # type: ignore[attr-defined]
