"""The processes of a run: one device or several, on one machine or several."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ecanet.data.stream import Loader, ShardedBatchSampler, make_loader
from ecanet.environment import cpu_cores
from ecanet.errors import ProcessLost, UserError, how_it_ended
from ecanet.heap import keep_freed_memory
from ecanet.training.device import (
    LIGHTNING_PRECISION,
    check_device_count,
    check_sharing,
    resolve_device,
    resolve_precision,
)

if TYPE_CHECKING:
    # Imported when a run is launched: with what it brings, it takes longer than torch.
    from lightning_fabric import Fabric

Settings = TypeVar("Settings", bound=Any)

_PROCESSES = 10**6
_EXIT_SECONDS = 2.0  # that a process which has closed its connections has to exit
# The launchers' variables, and the range of each.
_VARIABLES = {
    "WORLD_SIZE": (1, _PROCESSES), "LOCAL_WORLD_SIZE": (1, _PROCESSES), "RANK": (0, _PROCESSES),
    "LOCAL_RANK": (0, _PROCESSES), "GROUP_RANK": (0, _PROCESSES), "NODE_RANK": (0, _PROCESSES),
    "MASTER_PORT": (1, 65535), "SLURM_NTASKS": (1, _PROCESSES), "SLURM_NNODES": (1, _PROCESSES),
    "SLURM_PROCID": (0, _PROCESSES), "SLURM_LOCALID": (0, _PROCESSES),
    "SLURM_NODEID": (0, _PROCESSES),
}  # fmt: skip


def begin(settings: Settings, *, join: bool = True) -> tuple[Fabric, Settings]:
    """Begin a training run: launch its processes, set threads and seed.

    Args:
        settings: with ``device``, ``devices``, ``threads``, ``precision``, ``batch_size``,
            ``sync_batchnorm`` and ``seed``. The caller restores the number of threads (:func:`threads_kept`).
        join: as in :func:`launch`.

    Returns:
        Fabric, launched, and the settings with ``precision`` resolved for its device.

    Raises:
        UserError: as :func:`launch` and :func:`ecanet.training.device.check_sharing`.
    """
    fabric = launch(settings, join=join)
    if fabric.device.type == "cpu":
        keep_freed_memory()
    check_sharing(fabric.world_size, fabric.device, settings.batch_size, settings.sync_batchnorm)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    precision = resolve_precision(settings.precision, fabric.device)
    return fabric, dataclasses.replace(settings, precision=precision)


def launch(settings: Any, *, join: bool = True) -> Fabric:
    """Launch the processes of a run, or join those that a launcher has started.

    torchrun and SLURM start the processes themselves and set their number; otherwise ``settings.devices``
    processes are started on this machine. They communicate by NCCL on GPUs and by gloo on CPUs.

    Args:
        settings: with ``device``, ``devices`` and ``precision``.
        join: False for a run of a study: the processes of torchrun and SLURM are then workers, which
            train a run each, and only those of :func:`ecanet.training.processes.spawn_ranks` are joined.

    Raises:
        UserError: a device is missing, or the processes cannot reach each other.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

    class InputsAsTheyAre(MixedPrecision):
        """Without the cast of all inputs, corners of boxes too, to 8 or 11 bits of precision."""

        def convert_input(self, data: Any) -> Any:
            return data

        def unscale_gradients(self, optimizer: Any) -> None:
            # Fused optimizers too, which Lightning refuses: torch tells them that it was done.
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)

    # Without Fabric's greetings.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    device = resolve_device(settings.device)
    here, nodes = settings.devices, 1
    own: Any = None
    if join:
        here, nodes = _processes_started(here)
    else:
        own = TorchElasticEnvironment() if here > 1 else LightningEnvironment()
    check_device_count(here, device)
    precision = LIGHTNING_PRECISION[resolve_precision(settings.precision, device)]
    one = here * nodes == 1
    mixed = None if precision == "32-true" else InputsAsTheyAre(precision, device.type)
    devices: Any = here
    if one and device.type == "cuda":
        devices = [device.index or 0]
    fabric = Fabric(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=devices,
        num_nodes=nodes,
        strategy="auto" if one else "ddp",
        plugins=[*([mixed] if mixed else []), *([own] if own else [])],
    )
    try:
        fabric.launch()
    except torch.distributed.DistError as error:
        for process in getattr(fabric.strategy.launcher, "procs", []):
            process.terminate()  # it would wait for this one
        reason = str(error).split("\n")[0][:200]
        raise UserError(
            f"the processes cannot reach each other ({reason}): is MASTER_PORT "
            f"{os.environ.get('MASTER_PORT', '')} taken? Choose another"
        ) from None
    if not fabric.is_global_zero:
        logging.getLogger("ecanet").setLevel(logging.WARNING)
    return fabric


@contextmanager
def explain_lost_process(fabric: Fabric) -> Iterator[None]:
    """Turn the broken connection to another process of the run into an error that names its cause.

    Raises:
        ProcessLost: another process of the run has ended.
    """
    try:
        yield
    except RuntimeError as error:
        broken = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if fabric.world_size == 1 or not broken:
            raise
        # A process that has closed its connections exits within moments; only children can be waited for.
        for process in getattr(fabric.strategy.launcher, "procs", []):
            with suppress(subprocess.TimeoutExpired):
                if code := process.wait(_EXIT_SECONDS):
                    raise ProcessLost(f"a process of the run {how_it_ended(code)}") from None
        reason = str(error).split("\n")[0][:200]
        raise ProcessLost(f"another process of the run was lost ({reason})") from None


def _processes_started(devices: int) -> tuple[int, int]:
    """Return how many processes a launcher has started here, and on how many machines; or ``devices``, 1."""
    _check_variables()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or devices
    nodes = int(os.environ.get("WORLD_SIZE", here)) // here
    if "SLURM_NNODES" in os.environ and "SLURM_STEP_ID" in os.environ:
        nodes = int(os.environ["SLURM_NNODES"])
    elif nodes > 1 and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"the variable WORLD_SIZE is {os.environ['WORLD_SIZE']}, and MASTER_ADDR, the address of "
            "the first process, is not set: unset WORLD_SIZE, or start with torchrun"
        )
    return here, nodes


def _check_variables() -> None:
    """Refuse values that torchrun and SLURM never set: Lightning and torch would parse them as numbers."""
    found: dict[str, int] = {}
    for name in _VARIABLES.keys() & os.environ.keys():
        (low, high), text = _VARIABLES[name], os.environ[name]
        is_number = text.isascii() and text.isdecimal() and len(text) < 10
        if not is_number or not low <= int(text) <= high:
            raise UserError(
                f"the variable {name} is {text!r}: unset it, or set a whole number from {low} to {high}"
            )
        found[name] = int(text)
    for name, of in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if name in found and of in found and found[name] >= found[of]:
            raise UserError(
                f"the variable {name} is {found[name]} of {of} {found[of]}: ranks count from 0"
            )
    world, here = found.get("WORLD_SIZE", 1), found.get("LOCAL_WORLD_SIZE", 1)
    if world % here:
        raise UserError(
            f"the variable WORLD_SIZE is {world}, not a multiple of LOCAL_WORLD_SIZE {here}"
        )


def leave() -> None:
    """Leave the processes of a run once all of them have come this far.

    As torch advises: one that exits while others still communicate may take their connections with it.
    """
    if world_size() == 1:
        return
    if torch.distributed.get_backend() == "gloo":
        with suppress(RuntimeError):  # another process has failed, and says why
            torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def world_size() -> int:
    """Return the number of processes of the run, this one included."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def is_rank_zero() -> bool:
    """Whether this process is the one that logs and writes files."""
    return world_size() == 1 or torch.distributed.get_rank() == 0


def is_reported(line: str) -> bool:
    """Whether another process of the run has reported this error before; the first call of all reports it."""
    if world_size() == 1:
        return False
    try:
        return torch.distributed.distributed_c10d._get_default_store().add(line, 1) > 1
    except torch.distributed.DistError:
        return True  # rank 0, which has the store, has reported why it ended


def loader_workers(settings: Any) -> int:
    """Return the data loader processes per device: ``settings.workers``, or one per core, at most 16."""
    if settings.workers is not None:
        return settings.workers
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or settings.devices
    return max(1, min(16, cpu_cores() // here))


def reduced(fabric: Fabric, value: Tensor, how: str) -> Tensor:
    """Return the ``sum`` or ``max`` of a tensor over all processes, in each of them."""
    if fabric.world_size == 1:
        return value
    whole = fabric.all_reduce(value, reduce_op=how)
    assert isinstance(whole, Tensor)
    return whole


def sharded_loader(
    fabric: Fabric,
    settings: Any,
    dataset: Dataset[Any],
    count: int,
    *,
    shuffle: bool = False,
    groups: Sequence[int] | None = None,
    balanced: Tensor | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Loader:
    """Return a loader of this process's share of ``count`` images, as ``settings`` have it.

    Args:
        settings: with ``batch_size``, ``seed`` if they are shuffled, and what :func:`loader_workers` needs.
        dataset, collate: as in :func:`ecanet.data.stream.make_loader`.
        shuffle, groups, balanced: as in :class:`ecanet.data.stream.ShardedBatchSampler`.
    """
    order = ShardedBatchSampler(
        count,
        settings.batch_size,
        shuffle=shuffle,
        seed=settings.seed if shuffle else 0,
        process=fabric.global_rank,
        processes=fabric.world_size,
        groups=groups,
        balanced=balanced,
    )
    pin = fabric.device.type == "cuda"
    alone = fabric.world_size == 1
    return make_loader(dataset, order, loader_workers(settings), pin, collate, forks=alone)
