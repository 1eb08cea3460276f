"""Two minutes of the fuzz run; ``make fuzz`` is the long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_broken_file_does_harm(tmp_path: Path) -> None:
    """No traceback, crash, request, program, file elsewhere, gigabyte or hanging, whatever a file holds."""
    seconds = os.environ.get("ECANET_FUZZ_SECONDS", "120")
    out = Path(os.environ.get("ECANET_FUZZ_OUT", tmp_path / "fuzz"))
    run = subprocess.run(
        [
            sys.executable, str(Path(__file__).with_name("fuzzing.py")),
            "--seconds", seconds, "--jobs", "1", "--out", str(out),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, (
        f"{run.stdout}{run.stderr}\nagain: tests/fuzzing.py --replay {out}/failures/…"
    )
    # Not one kind left out, and most of them more than a batch.
    assert run.stdout.count("\n") >= 10, run.stdout
