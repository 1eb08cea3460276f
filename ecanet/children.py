"""Python processes that ecanet or a library starts must not import from the current folder.

With ``-m`` and ``-c``, Python searches that folder first: a file ``json.py`` beside the images would run in
place of the standard library's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def command(*arguments: str) -> list[str]:
    """Return the command line that runs ``ecanet ARGUMENTS`` with this Python and this copy of ecanet."""
    return [sys.executable, str(Path(__file__).resolve().with_name("__main__.py")), *arguments]


def keep_current_folder_out() -> None:
    """Keep Python processes that this process starts from importing from the current folder."""
    os.environ["PYTHONSAFEPATH"] = "1"
    if sys.version_info < (3, 11):
        import multiprocessing.util

        # The variable is new in 3.11. Processes of multiprocessing get their parent's path once they have
        # started; until then they need the standard library only.
        multiprocessing.util._args_from_interpreter_flags = lambda: ["-I"]  # type: ignore[attr-defined]
