"""Runs commands as the shell does, and checks that bad input is refused as it should be."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ecanet.cli.main import main

# The types of the fixtures ``run`` and ``refuse``, which have ``capsys`` in them.
Run = Callable[..., tuple[int, str, str]]
Refuse = Callable[..., None]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run ``ecanet ARGUMENTS``; return the exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return (int(end.value.code or 0), *capsys.readouterr())


def assert_refused(
    capsys: pytest.CaptureFixture[str], says: str, *arguments: object, after_logs: bool = False
) -> None:
    """Check that ``ecanet ARGUMENTS`` ends with code 2 and one line that contains ``says``.

    Args:
        capsys: of the test.
        says: part of the line.
        arguments: of the command, turned into strings.
        after_logs: lines of the log may precede it.
    """
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, ""), err
    *logs, line = err.splitlines()
    assert line.startswith("ecanet: "), err
    assert says in line
    assert "Traceback" not in err
    assert not [log for log in logs if not after_logs or log.startswith("ecanet: ")], err
