"""The processes of a run: one device or many, on one machine or many."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from ecanet.data.memory import keep_freed_memory
from ecanet.errors import ProcessLost, UserError, how_it_ended
from ecanet.plugins import load_plugins
from ecanet.training.device import (
    LIGHTNING_PRECISION,
    check_device_count,
    cpu_cores,
    resolve_device,
    resolve_precision,
)

Settings = TypeVar("Settings", bound=Any)


_PROCESSES = 10**6
# Seconds that a process has to end after it has closed its connections.
_TO_END = 2.0
# The variables by which processes find their place, and what they may hold.
_VARIABLES = {
    "WORLD_SIZE": (1, _PROCESSES), "LOCAL_WORLD_SIZE": (1, _PROCESSES), "RANK": (0, _PROCESSES),
    "LOCAL_RANK": (0, _PROCESSES), "GROUP_RANK": (0, _PROCESSES), "NODE_RANK": (0, _PROCESSES),
    "MASTER_PORT": (1, 65535), "SLURM_NTASKS": (1, _PROCESSES), "SLURM_NNODES": (1, _PROCESSES),
    "SLURM_PROCID": (0, _PROCESSES), "SLURM_LOCALID": (0, _PROCESSES),
    "SLURM_NODEID": (0, _PROCESSES),
}  # fmt: skip


class _AsTheyAre(MixedPrecision):
    """Fabric's mixed precision, which would cast all inputs, corners of boxes too, to 8 bits or 11."""

    def convert_input(self, data: Any) -> Any:
        return data


def begin(settings: Settings) -> tuple[Fabric, Settings]:
    """Begin a training run: its plugins, its processes, its threads, its seed.

    Args:
        settings: with ``plugin``, ``device``, ``devices``, ``threads``, ``precision``, ``batch_size`` and
            ``seed``. The threads are the caller's to set back (:func:`threads_kept`).

    Returns:
        Fabric, launched, and the settings with the precision that ``auto`` stands for there.

    Raises:
        UserError: a plugin cannot be loaded, the processes cannot share the batch evenly, or as
            :func:`launch` does.
    """
    load_plugins(settings.plugin)
    fabric = launch(settings)
    if fabric.device.type == "cpu":
        keep_freed_memory()
    if settings.batch_size % fabric.world_size:
        raise UserError(
            f"--batch_size {settings.batch_size} is the batch of all {fabric.world_size} processes: "
            "give a multiple of their number"
        )
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    precision = resolve_precision(settings.precision, fabric.device)
    return fabric, dataclasses.replace(settings, precision=precision)


def launch(settings: Any) -> Fabric:
    """Start, or join, the processes that ``settings`` and the surroundings ask for.

    torchrun and SLURM have started them already and say how many; else ``settings.devices`` are
    started on this machine, over NCCL on GPUs and gloo on CPUs.

    Raises:
        UserError: a device is missing, or the processes cannot reach each other.
    """
    # Its greetings, which go through the other package's logger where that is imported too.
    for name in ("lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    _check_variables()
    device = resolve_device(settings.device)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or settings.devices
    nodes = int(os.environ.get("WORLD_SIZE", here)) // here
    if "SLURM_NNODES" in os.environ and "SLURM_STEP_ID" in os.environ:
        nodes = int(os.environ["SLURM_NNODES"])
    elif nodes > 1 and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"the variable WORLD_SIZE is {os.environ['WORLD_SIZE']}, and MASTER_ADDR does not say where "
            "the first process is: unset it, or start with torchrun"
        )
    check_device_count(here, device)
    precision = LIGHTNING_PRECISION[resolve_precision(settings.precision, device)]
    one = here * nodes == 1
    devices: Any = here
    if one and device.type == "cuda":
        devices = [device.index or 0]
    fabric = Fabric(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=devices,
        num_nodes=nodes,
        strategy="auto" if one else "ddp",
        plugins=[_AsTheyAre(precision, device.type)] if precision != "32-true" else None,
    )
    try:
        fabric.launch()
    except torch.distributed.DistError as error:
        for process in getattr(fabric.strategy.launcher, "procs", []):
            process.terminate()  # they would wait for us
        reason = str(error).split("\n")[0][:200]
        raise UserError(
            f"the processes cannot reach each other ({reason}): is MASTER_PORT "
            f"{os.environ.get('MASTER_PORT', '')} taken? Choose another"
        ) from None
    return fabric


@contextmanager
def losses_named(fabric: Fabric) -> Iterator[None]:
    """Name the process that was lost, where this one learns of it by a broken connection.

    Raises:
        ProcessLost: another process of the run has ended.
    """
    try:
        yield
    except RuntimeError as error:
        broken = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if fabric.world_size == 1 or not broken:
            raise
        # Of those that this process has started, one that closes its connections ends in a moment.
        for process in getattr(fabric.strategy.launcher, "procs", []):
            with suppress(subprocess.TimeoutExpired):
                if code := process.wait(_TO_END):
                    raise ProcessLost(f"a process of the run {how_it_ended(code)}") from None
        reason = str(error).split("\n")[0][:200]
        raise ProcessLost(f"another process of the run was lost ({reason})") from None


def _check_variables() -> None:
    """Refuse what torchrun and SLURM would not have set: Lightning and torch read it as numbers.

    Raises:
        UserError: a variable is no whole number, or a process has a place beyond the number of processes.
    """
    found: dict[str, int] = {}
    for name, (low, high) in _VARIABLES.items():
        text = os.environ.get(name)
        if text is None:
            continue
        if not (
            text.isascii() and text.isdecimal() and len(text) < 10 and low <= int(text) <= high
        ):
            raise UserError(
                f"the variable {name} is {text!r}: unset it, or set a whole number from {low} to {high}"
            )
        found[name] = int(text)
    for name, of in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if name in found and of in found and found[name] >= found[of]:
            raise UserError(
                f"the variable {name} is {found[name]} of {of} {found[of]}: count from 0"
            )
    world, here = found.get("WORLD_SIZE", 1), found.get("LOCAL_WORLD_SIZE", 1)
    if world % here:
        raise UserError(
            f"the variable WORLD_SIZE is {world}, no multiple of LOCAL_WORLD_SIZE {here}"
        )


def processes() -> int:
    """Return how many processes work together, this one among them."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def is_first_process() -> bool:
    """Whether this process is the one that tells the user and writes files."""
    return processes() == 1 or torch.distributed.get_rank() == 0


def first_says(fabric: Fabric, say: Callable[[str], None]) -> Callable[[str], None]:
    """Return ``say`` in the first process, and what says nothing in the others."""
    return say if fabric.is_global_zero else lambda line: None


def loader_workers(settings: Any) -> int:
    """Return how many processes read for each device: ``settings.workers``, or one a core up to 16."""
    if settings.workers is not None:
        return settings.workers
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or settings.devices
    return max(1, min(16, cpu_cores() // here))
