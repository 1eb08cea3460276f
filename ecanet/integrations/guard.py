"""Runs a command, and ends it when the process that started this one has gone: `python guard.py COMMAND ...`.

Two processes must not train in one folder. A first SIGTERM is passed on to the command and all that it has
started, a second one kills them.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

parent = os.getppid()
command = subprocess.Popen(sys.argv[1:], start_new_session=True)
numbers = iter([signal.SIGTERM])


def end(number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(command.pid, number)


def watch() -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    end(signal.SIGKILL)


signal.signal(signal.SIGTERM, lambda *_: end(next(numbers, signal.SIGKILL)))
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's; the parent decides
threading.Thread(target=watch, daemon=True).start()
code = command.wait()
if code < 0:  # as the command was killed
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
