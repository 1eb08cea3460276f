"""glibc's heap: a command restarts once, with huge pages enabled in its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ecanet.heap import heap_variables

glibc = pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
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


# Prints its process id, arguments and tunables at each start, and a last line if it does not restart.
PROGRAM = """
import os, sys
from ecanet.heap import restart_with_heap_variables
print(os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), flush=True)
restart_with_heap_variables()
print("continues")
"""


def lines_of(command: list[str], stdin: str | None = None, **variables: str) -> list[str]:
    """Return the lines that a command prints when it starts without GLIBC_TUNABLES."""
    bare = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    run = subprocess.run(command, env=bare | variables, input=stdin, capture_output=True, text=True)
    return run.stdout.splitlines()


def program(tmp_path: Path, name: str = "ecanet", before: str = "") -> str:
    path = tmp_path / name
    path.write_text(before + PROGRAM)
    return str(path)


@glibc
def test_a_command_restarts_once_with_all_its_arguments(tmp_path: Path) -> None:
    first, second, last = lines_of([sys.executable, program(tmp_path), "a b", "--flag", ""])
    assert first.endswith("['a b', '--flag', ''] None")
    assert second == first.removesuffix("None") + OURS
    assert last == "continues"


@glibc
def test_what_takes_the_variable_away_makes_no_loop(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nos.environ.pop('GLIBC_TUNABLES', None)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    lines = lines_of([sys.executable, program(tmp_path)], PYTHONPATH=path)
    assert [line.endswith("[] None") for line in lines] == [True, True, False]


@glibc
@pytest.mark.parametrize("how", ["script", "stdin", "option", "debugger", "no executable"])
def test_nothing_restarts_but_a_plain_command(tmp_path: Path, how: str) -> None:
    """Another program would run twice or be lost, and one read from a pipe cannot be read again."""
    stdin = None
    if how == "script":
        command = [program(tmp_path, "mine.py")]
    elif how == "stdin":
        command, stdin = ["-"], PROGRAM
    elif how == "option":
        command = ["-B", program(tmp_path)]
    elif how == "debugger":
        command = ["-m", "trace", "--count", "--summary", "-C", str(tmp_path), program(tmp_path)]
    else:
        command = [program(tmp_path, before="import sys\nsys.executable = ''\n")]
    lines = lines_of([sys.executable, *command], stdin)
    assert lines[0].endswith("[] None")
    assert lines[1] == "continues"


@pytest.mark.slow
@glibc
def test_the_command_line_runs_in_it(tmp_path: Path) -> None:
    plugin = tmp_path / "shows.py"
    plugin.write_text("import os\nprint('tunables', os.environ['GLIBC_TUNABLES'])\n")
    command = [sys.executable, "-m", "ecanet", "train", "digits", "--model", "nosuch"]
    assert f"tunables {OURS}" in lines_of([*command, "--plugin", str(plugin)])
