"""``ecanet COMMAND``: finds the command, and turns what the user can fix into one line."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ecanet import __version__
from ecanet.children import keep_current_folder_out
from ecanet.cli.output import fail, prepare
from ecanet.errors import (
    Preempted,
    ProcessLost,
    UserError,
    did_you_mean,
    disk_is_full,
    reader_was_lost,
)

_COMMANDS = {
    "compare": "train attention modules over several seeds and report which help and what they cost",
    "sweep": "try the settings of a W&B sweep file, and report which are best and what matters",
    "report": "make the report of a study, finished or not",
    "worker": "work on a study's runs, beside other workers on this machine and others",
    "study": "list, show, watch, cancel and retry studies and their runs",
    "train": "train a classifier on a folder of images of any size, on one device or many",
    "evaluate": "measure top-1 and top-5 of weights on a folder of images",
    "convert": "convert a weight file between ecanet's, official, torchvision, timm and other layouts",
    "export": "write a classifier or detector as ONNX or a program of torch.export, and check it",
    "download": "download the released ECA weights, COCO or CIFAR-10, checked and resumed",
    "detect": "train, evaluate, use and compare detectors on COCO and data like it",
    "profile": "tell what models cost, and hold the published figures of ECA-Net against ours",
    "list": "list attention modules, models or recipes",
}
# What is wrong with a path rather than with us: no access, a file where a folder should be or the other
# way round, a name that is too long. A file that is missing may be our fault, and keeps its traceback.
_OF_PATHS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
# 75 is EX_TEMPFAIL of sysexits.h: try again. SLURM and other schedulers can requeue on it.
_BAD_INPUT, _PREEMPTED, _INTERRUPTED = 2, 75, 130


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit.

    0 done, 1 some runs failed, 2 bad input, 75 told to stop by SIGTERM, 130 by Ctrl-C.
    """
    keep_current_folder_out()
    prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        sys.exit(_run(arguments))
    except UserError as error:
        fail(str(error))
        sys.exit(_BAD_INPUT)
    except KeyboardInterrupt:
        fail("stopped; the same command goes on")
        sys.exit(_INTERRUPTED)
    except Preempted:
        fail("told to stop, and saved; the same command goes on")
        sys.exit(_PREEMPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if disk_is_full(error):
            fail("the disk is full: free some space; the same command goes on where it stopped")
        elif reader_was_lost(error):
            what = " ".join(str(error).split()).rstrip(".")
            fail(
                f"a process that reads images was lost ({what}): out of memory? the same command resumes"
            )
        elif isinstance(error, ProcessLost):
            fail(f"{error}; the same command resumes")
        elif isinstance(error, MemoryError):
            fail(f"out of memory: {str(error) or 'the system gave no more'}")
        elif isinstance(error, OSError) and error.errno in _OF_PATHS and error.filename:
            fail(f"{os.fsdecode(error.filename2 or error.filename)}: {error.strerror}")
        else:
            raise
        sys.exit(_BAD_INPUT)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"ecanet {__version__}")
        return 0
    for argument in arguments:
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            what = f"{argument[:-1]} has no value" if argument else "an argument is empty"
            raise UserError(f"{what}: does a variable of the shell hold nothing?")
    name = arguments[0]
    if name not in _COMMANDS:
        raise UserError(f"unknown command {name!r}.{did_you_mean(name, _COMMANDS)}")
    return importlib.import_module(f"ecanet.cli.{name}").run(arguments[1:])


def _help() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, summary in _COMMANDS.items()]
    return "\n".join(
        [
            "ecanet: does an attention module help my CNN, on my data, and what does it cost?",
            "",
            "usage: ecanet COMMAND [options]",
            "",
            *lines,
            "",
            "ecanet COMMAND --help tells a command's options. A first try, without a download:",
            "  ecanet compare --recipe smoke/digits --out demo",
        ]
    )
