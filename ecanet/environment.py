"""The machine: its processor, cores and memory, and what a record notes of it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import torch


def available_memory() -> int:
    """Return the bytes this process may still take."""
    limits = [psutil.virtual_memory().available]
    cgroup = Path("/sys/fs/cgroup")
    for limit, usage in (  # a container's own limit: cgroup v2, then v1
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int((cgroup / limit).read_text()) - int((cgroup / usage).read_text()))
    return max(0, min(limits))


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step in place of giving it back to the system.

    PyTorch's CPU tensors come from malloc, which maps large ones anew each time: a training step of
    ResNet-20 at batch 128 takes 14,000 page faults without this and next to none with it, and 8 %
    less time (2-core CPU). Elsewhere than on glibc, nothing happens.

    Tensors over 32 MiB, the most that glibc's manual allows, are still mapped where no hole in the heap fits.
    Such holes lose a few bytes to small objects and fit no second time, so that a heap which grew for them
    would become two and three times as large as the tensors that live at one time.
    """
    if os.name != "posix":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 2**25)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def release_freed_memory() -> None:
    """Return freed memory that glibc still holds to the system; call it before forking.

    A fork shares the memory of its parent only until the parent writes into it: an image reader would keep
    a copy of everything that was free when it was forked.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def device_name(device: torch.device) -> str:
    """Return the processor's name as its maker gives it, with the number of cores of a CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {cpu_cores()} cores"


def environment(device: torch.device) -> dict[str, Any]:
    """Describe where and when a run happens: versions, commit, device, platform, date (UTC)."""
    import torch

    packages = ("ecanet", "torch", "torchvision", "timm", "lightning-fabric", "optuna")
    return {
        "versions": {"python": platform.python_version()}
        | {package: _version(package) for package in packages}
        # torch.__version__ includes the CUDA build.
        | {"torch": torch.__version__},
        "commit": _commit(),
        "device": device_name(device),
        "platform": platform.platform(),
        "host": platform.node(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def _commit() -> str | None:
    """The commit of ecanet's own checkout; None for an installed package."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
