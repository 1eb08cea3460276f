"""The processes of a run: one device or many, on one machine or many."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from ecanet.errors import UserError
from ecanet.training.device import (
    LIGHTNING_PRECISION,
    cpu_cores,
    resolve_device,
    resolve_precision,
)


class _AsTheyAre(MixedPrecision):
    """Fabric's mixed precision, which would cast all inputs, corners of boxes too, to 8 bits or 11."""

    def convert_input(self, data: Any) -> Any:
        return data


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
    device = resolve_device(settings.device)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or settings.devices
    nodes = int(os.environ.get("WORLD_SIZE", here)) // here
    if "SLURM_NNODES" in os.environ and "SLURM_STEP_ID" in os.environ:
        nodes = int(os.environ["SLURM_NNODES"])
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise UserError(
            f"--devices {here}: this machine has {torch.cuda.device_count()} CUDA devices"
        )
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


def loader_workers(settings: Any) -> int:
    """Return how many processes read for each device: ``settings.workers``, or one a core up to 16."""
    if settings.workers is not None:
        return settings.workers
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or settings.devices
    return max(1, min(16, cpu_cores() // here))
