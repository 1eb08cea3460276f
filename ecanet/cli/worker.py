"""``ecanet worker``."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from ecanet.cli.compare import say
from ecanet.cli.options import OneLineParser


def run(arguments: list[str]) -> int:
    """Work on a study's waiting runs until none is left."""
    parser = OneLineParser("ecanet worker", description=run.__doc__)
    parser.add_argument("study", type=Path, help="folder that was --out of a compare")
    parser.add_argument("--index", type=int, default=0, help="which of --jobs this worker is")
    parser.add_argument("--jobs", type=int, default=1, help="workers there are: for the time left")
    parser.add_argument("--parent", type=int, help="process id: end when that process has ended")
    flags = parser.parse_args(arguments)
    if flags.parent:
        threading.Thread(target=_end_with, args=[flags.parent], daemon=True).start()

    from ecanet.experiments.worker import work

    work(flags.study, index=flags.index, jobs=flags.jobs, say=say)
    return 0


def _end_with(parent: int) -> None:
    """A compare that was killed must not leave workers behind that the next one knows nothing of."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(130)
