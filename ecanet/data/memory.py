"""Memory of this process: does it fit, asked before the machine starts to swap, and how it is kept."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

from ecanet.errors import UserError


def available_memory() -> int | None:
    """Return the bytes this process may still take, or None where the system does not tell."""
    limits = []
    with contextlib.suppress(OSError, KeyError, ValueError):
        meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(int(meminfo["MemAvailable"].split()[0]) * 1024)
    for limit, usage in (  # a container's own limit: cgroup v2, then v1
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(Path(limit).read_text()) - int(Path(usage).read_text()))
    if not limits:  # macOS: all there is is the best to be had without a library
        try:
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (AttributeError, OSError, ValueError):
            return None
    return max(0, min(limits))


def check_fits(count: int, channels: int, size: int) -> None:
    """Refuse images that would take more than half of the available memory.

    Half, because the splits are copied once when validation is held out.

    Raises:
        UserError: they would; the message says how much they need.
    """
    needed = count * channels * size**2
    available = available_memory()
    if available is not None and needed > available / 2:
        raise UserError(
            f"{count:,} images of {size}x{size} pixels take {needed / 1e9:.1f} GB, more than half of the "
            f"{available / 1e9:.1f} GB of memory available: use a smaller --image-size."
        )


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step in place of giving it back to the system.

    PyTorch's CPU tensors come from malloc, which maps large ones anew each time: a training step of
    ResNet-20 at batch 128 takes 14,000 page faults without this and next to none with it, and 8 %
    less time (2-core CPU). Elsewhere than on glibc, nothing happens.
    """
    if os.name != "posix":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
