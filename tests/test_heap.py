"""glibc's heap: a command starts anew, once, in the environment that gives it huge pages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ecanet.heap import heap_variables

OURS = "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, OURS),
        ("glibc.malloc.check=3", f"glibc.malloc.check=3:{OURS}"),
        ("glibc.malloc.hugetlb=2", "glibc.malloc.hugetlb=2"),
    ],
)
def test_the_users_own_values_stay(
    monkeypatch: pytest.MonkeyPatch, given: str | None, wanted: str
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if given is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    assert heap_variables() == {"GLIBC_TUNABLES": wanted}
    monkeypatch.setenv("GLIBC_TUNABLES", wanted)
    assert heap_variables() == {"GLIBC_TUNABLES": wanted}


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_a_command_restarts_once_with_all_its_arguments(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from ecanet.heap import restart_with_heap_variables\n"
        "tunables = os.environ.get('GLIBC_TUNABLES')\n"
        "print(os.getpid(), sys.argv[1:], sys.flags.dont_write_bytecode, tunables, flush=True)\n"
        "restart_with_heap_variables()\n"
        "print('goes on')\n"
    )
    bare = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    run = subprocess.run(
        [sys.executable, "-B", str(program), "a b", "--flag", ""],
        env=bare,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second, last = run.stdout.splitlines()
    assert first.endswith("['a b', '--flag', ''] 1 None")
    assert second == first.removesuffix("None") + OURS
    assert last == "goes on"


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_the_command_line_runs_in_it(tmp_path: Path) -> None:
    plugin = tmp_path / "shows.py"
    plugin.write_text("import os\nprint('tunables', os.environ['GLIBC_TUNABLES'])\n")
    bare = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "ecanet",
            "train",
            "digits",
            "--model",
            "nosuch",
            "--plugin",
            str(plugin),
        ],
        env=bare,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert f"tunables {OURS}" in run.stdout
