"""glibc's heap, where PyTorch's CPU tensors lie: in huge pages, and kept from step to step.

Elsewhere than on glibc, nothing here has an effect.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

_HUGE_PAGES = "glibc.malloc.hugetlb"


def heap_variables() -> dict[str, str]:
    """Return what the environment of a process must hold from its start on, for a heap in huge pages.

    The kernel clears a page when it is first used: 2 MiB at once cost a fraction of 512 times 4 KiB. Where a
    step maps tensors of 50 MB, training is 1.1 times as fast (results/README.md).
    """
    given = os.environ.get("GLIBC_TUNABLES", "")
    ours = "" if _HUGE_PAGES in given else f":{_HUGE_PAGES}=1"
    return {"GLIBC_TUNABLES": f"{given}{ours}".lstrip(":")}


def restart_with_heap_variables() -> None:
    """Restart this process with :func:`heap_variables` in its environment, unless they are set.

    To be called first of all. Only ``ecanet`` and ``python -m ecanet`` restart: a notebook, a debugger or a
    script that runs the command within itself would be lost. With the added ``-X`` a process is neither of
    the two, so it restarts at most once, even where something removes the variables.
    """
    program = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    variables = heap_variables()
    if (
        not _is_plain_command(program)
        or not sys.executable
        or not _has_glibc()
        or variables.items() <= os.environ.items()
    ):
        return
    # The full path, since a search for the name may find another Python.
    arguments = [sys.executable, "-X", "huge_pages", *sys.orig_argv[1:]]
    with contextlib.suppress(OSError):
        os.execve(sys.executable, arguments, {**os.environ, **variables})


def _is_plain_command(program: list[str]) -> bool:
    """Whether Python runs ``ecanet`` or ``python -m ecanet``, to which torchrun adds ``-u``."""
    if len(program) == 1:
        return os.path.basename(program[0]) == "ecanet" and os.path.isfile(program[0])
    return program in (["-m", "ecanet"], ["-u", "-m", "ecanet"])


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step in place of giving it back to the system.

    It maps large tensors anew each time: a training step of ResNet-20 at batch 128 takes 14,000 page faults
    without this and next to none with it, and 8 % less time (2-core CPU).

    Tensors over 32 MiB, the most that glibc's manual allows, are still mapped where no hole in the heap fits.
    Such holes lose a few bytes to small objects and fit no second time, so that a heap which grew for them
    would become two and three times as large as the tensors that live at one time.
    """
    if _has_glibc():
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 2**25)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def release_freed_memory() -> None:
    """Return freed memory that glibc still holds to the system; call it before forking.

    A fork shares the memory of its parent only until the parent writes into it: an image reader would keep
    a copy of everything that was free when it was forked.
    """
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _has_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, OSError, ValueError):
        return False
