"""``ecanet COMMAND``: runs the command, and reports what the user can fix in one line."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from ecanet import __version__
from ecanet.children import keep_current_folder_out
from ecanet.cli.live import shown
from ecanet.cli.output import fail, prepare
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

_COMMANDS = {
    "compare": "train attention modules over several seeds and report which help and what they cost",
    "sweep": "try the settings of a W&B sweep file, and report which are best and what matters",
    "plan": "show how many seeds a comparison needs, and the hours and price they take",
    "report": "write the report of a study, finished or not",
    "worker": "work on a study's runs, alongside workers on this and other machines",
    "study": "list, show, watch, cancel and retry studies and their runs",
    "train": "train a classifier on a folder of images of any size, on one device or many",
    "evaluate": "measure weights on a folder of images, as a whole and for each class",
    "predict": "classify images of your own with trained weights",
    "explain": "show what the attention of a study's or run's networks does, and where they look",
    "fold": "make constants of gates that hardly depend on the image, at no cost",
    "convert": "convert a weight file between ecanet's, official, torchvision, timm and other layouts",
    "export": "write a classifier or detector as ONNX or a program of torch.export, and check it",
    "publish": "write weights with a model card to a folder, or push them to the Hugging Face Hub",
    "download": "download the released ECA weights, COCO or CIFAR-10: verified, resumable",
    "detect": "train, evaluate, use and compare detectors on COCO and data like it",
    "yolo": "train YOLO and RT-DETR with attention by Ultralytics (AGPL-3.0), and compare modules",
    "profile": "measure what models cost, and compare the published figures of ECA-Net with ours",
    "list": "list attention modules, models or recipes",
}
# Faults of a path rather than of ours: no access, a file where a folder should be or vice versa, a name
# that is too long. A missing file may be our fault, and keeps its traceback.
_PATH_ERRORS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
    errno.ELOOP,
}  # fmt: skip
# 75 is EX_TEMPFAIL in sysexits.h: try again. SLURM and other schedulers can requeue on it.
_BAD_INPUT, _PREEMPTED, _INTERRUPTED = 2, 75, 130


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit.

    The exit code is 0 when done, 1 if some runs failed, 2 for bad input, 75 after SIGTERM, 130 after Ctrl-C.
    """
    if argv is None:
        restart_with_heap_variables()
    keep_current_folder_out()
    prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
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
    commands: Mapping[str, str],
    arguments: list[str],
    *,
    package: str = "ecanet.cli",
    title: str = "",
    example: str,
) -> int:
    """Run the command that the first of ``arguments`` names, or print the help; return the exit code.

    Args:
        prog: what precedes the command: ``ecanet detect``.
        commands: a summary for each command.
        package: has a module with a function ``run`` for each command, imported when it is called.
        title: first line of the help.
        example: a command to try first.

    Raises:
        UserError: there is no such command.
    """
    if arguments and arguments[0] not in ("-h", "--help", "help"):
        name = arguments[0]
        if name not in commands:
            what = f"{prog} {name!r}".removeprefix("ecanet ")
            raise UserError(f"unknown command {what}.{did_you_mean(name, commands)}")
        return importlib.import_module(f"{package}.{name}").run(arguments[1:])
    width = max(map(len, commands))
    if title:
        print(f"{title}\n")
    print(f"usage: {prog} COMMAND [options]\n")
    for name, summary in commands.items():
        print(f"  {name:{width}}  {summary}")
    print(f"\n{prog} COMMAND --help lists a command's options. A first try, without a download:")
    print(f"  {example}")
    return 0


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
        _COMMANDS,
        arguments,
        title="ecanet: does an attention module help my CNN, on my data, and what does it cost?",
        example="ecanet compare --recipe smoke/digits --out demo",
    )
