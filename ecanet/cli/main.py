"""``ecanet COMMAND``: runs the command, and reports what the user can fix in one line."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from ecanet import __version__
from ecanet.children import keep_current_folder_out
from ecanet.cli.commands import COMMANDS, GROUPS, WITH_JSON
from ecanet.cli.live import shown
from ecanet.cli.output import fail, json_to, prepare
from ecanet.errors import (
    Preempted,
    ProcessLost,
    UserError,
    did_you_mean,
    disk_is_full,
    one_line,
    reader_was_lost,
)
from ecanet.heap import restart_with_heap_variables

# Faults of a path rather than of ours: no access, a file where a folder should be or vice versa, a name
# that is too long. A missing file may be our fault, and keeps its traceback.
_PATH_ERRORS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
    errno.ELOOP,
}  # fmt: skip
# 75 is EX_TEMPFAIL in sysexits.h: try again. SLURM and other schedulers can requeue on it.
_BAD_INPUT, _PREEMPTED, _INTERRUPTED = 2, 75, 130
_LEVELS = {
    **dict.fromkeys(("-q", "--quiet"), logging.WARNING),
    **dict.fromkeys(("-v", "--verbose"), logging.DEBUG),
}
_END = (
    "",
    "With every command, -q or --quiet prints less, and -v or --verbose prints more.",
    "Where a command has figures, --json prints them as JSON; --json FILE.json",
    "writes the JSON to a file and prints text as usual.",
    "Exit codes: 0 success, 1 some runs or images failed, 2 wrong input, 75 saved",
    "after SIGTERM (run the command again to resume), 130 stopped by Ctrl-C.",
)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit.

    The exit code is 0 when done, 1 if some runs failed, 2 for bad input, 75 after SIGTERM, 130 after Ctrl-C.
    """
    if argv is None:
        restart_with_heap_variables()
    keep_current_folder_out()
    arguments = list(sys.argv[1:] if argv is None else argv)
    given = [argument for argument in arguments if argument in _LEVELS]
    prepare(_LEVELS[given[-1]] if given else logging.INFO)
    arguments = [argument for argument in arguments if argument not in _LEVELS]
    try:
        arguments = _without_json(arguments)
        with shown():
            code = _run(arguments)
        _leave()
        sys.exit(code)
    except KeyboardInterrupt:
        fail("stopped; the same command resumes")
        sys.exit(_INTERRUPTED)
    except Preempted:
        fail("received SIGTERM and saved; the same command resumes")
        sys.exit(_PREEMPTED)
    except BrokenPipeError:
        # The reader of our output has exited.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if isinstance(error, UserError):
            if not _is_reported(str(error)):
                fail(str(error))
        elif disk_is_full(error):
            fail("the disk is full: free some space; the same command resumes")
        elif reader_was_lost(error):
            what = f"a process that reads images was lost ({one_line(error, None).rstrip('.')})"
            fail(f"{what}: out of memory? the same command resumes")
        elif isinstance(error, ProcessLost):
            fail(f"{error}; the same command resumes")
        elif isinstance(error, MemoryError):
            fail(f"out of memory: {str(error) or 'the system gave no more'}")
        elif isinstance(error, RuntimeError) and "torchvision::" in str(error):
            from importlib.metadata import version

            versions = " and ".join(f"{name} {version(name)}" for name in ("torch", "torchvision"))
            fail(
                f"{versions} do not fit together: install both from the same place, in one command"
            )
        elif isinstance(error, OSError) and error.errno in _PATH_ERRORS and error.filename:
            fail(f"{os.fsdecode(error.filename2 or error.filename)}: {error.strerror}")
        else:
            raise
        sys.exit(_BAD_INPUT)


def _leave() -> None:
    """Leave the processes of a run, if this is one of several."""
    if "torch" in sys.modules and "MASTER_PORT" in os.environ:
        from ecanet.training.launch import leave

        leave()


def _is_reported(line: str) -> bool:
    """Whether another process of the same run has reported this error."""
    if "MASTER_PORT" not in os.environ:  # without torch, a wrong flag is reported at once
        return False
    from ecanet.training.launch import is_reported

    return is_reported(line)


def dispatch(
    prog: str,
    groups: Mapping[str, Mapping[str, str]],
    arguments: list[str],
    *,
    package: str = "ecanet.cli",
    title: str = "",
    example: str,
    end: Sequence[str] = (),
) -> int:
    """Run the command that the first of ``arguments`` names, or print the help; return the exit code.

    Args:
        prog: what precedes the command: ``ecanet detect``.
        groups: commands under a heading, with a summary of each.
        package: has a module with a function ``run`` for each command, imported when it is called.
        title: first lines of the help.
        example: a command to try first.
        end: last lines of the help.

    Raises:
        UserError: there is no such command.
    """
    commands = {name for group in groups.values() for name in group}
    asked = arguments[:1] in ([], ["-h"], ["--help"], ["help"])
    if asked and arguments[:1] == ["help"] and arguments[1:]:
        arguments, asked = [*arguments[1:], "--help"], False
    if not asked:
        name = arguments[0]
        if name not in commands:
            what = f"{prog} {name!r}".removeprefix("ecanet ")
            raise UserError(f"unknown command {what}.{did_you_mean(name, commands)}")
        return int(importlib.import_module(f"{package}.{name}").run(arguments[1:]))
    from ecanet.cli.help import commands_help

    first = [f"{prog} COMMAND --help lists a command's flags.", "To try it without any download:"]
    print(commands_help(prog, groups, title=title, end=[*first, f"  {example}", *end]))
    return 0


def _without_json(arguments: list[str]) -> list[str]:
    """Take ``--json``, ``--json FILE.json`` and ``--json=FILE`` out of a command's arguments, and act on it.

    Raises:
        UserError: the command has no results for it, or the file cannot be written.
    """
    flags = [argument for argument in arguments if argument.partition("=")[0] == "--json"]
    if not flags:
        return arguments
    if len(flags) > 1:
        raise UserError("--json is given twice: give it once")
    at = arguments.index(flags[0])
    file, rest = flags[0].partition("=")[2] or None, arguments[at + 1 :]
    if "=" not in flags[0] and rest and rest[0].endswith(".json") and not rest[0].startswith("-"):
        file = rest.pop(0)
    command = arguments[:at] + rest
    if command[:1] and command[0] in COMMANDS and command[0] not in WITH_JSON:
        raise UserError(f"--json: ecanet {command[0]} has no figures to write, so leave it out")
    json_to(file)
    return command


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-V", "--version"):
        print(f"ecanet {__version__}")
        return 0
    for argument in arguments:
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            what = f"{argument[:-1]} has no value" if argument else "an argument is empty"
            raise UserError(f"{what}: does a variable of the shell hold nothing?")
    return dispatch(
        "ecanet",
        GROUPS,
        arguments,
        title="ecanet: does an attention module help my CNN, on my data, and what does it cost?",
        example="ecanet compare --recipe smoke/digits --out demo",
        end=_END,
    )
