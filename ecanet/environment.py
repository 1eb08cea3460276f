"""The machine: its processor, cores and memory, and what a record notes of it."""

from __future__ import annotations

import contextlib
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
