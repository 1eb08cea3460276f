"""What the machine offers, and what its devices need: precision, copies that nobody waits for, threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ecanet.errors import UserError
from ecanet.heap import heap_variables


def resolve_device(name: str) -> torch.device:
    """Return the device that ``name`` (auto, cpu, cuda, cuda:1, mps) stands for.

    Raises:
        UserError: the name is unknown or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "use --device auto or cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this machine has none; use --device auto or cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device {name!r} is not supported: use auto, cpu, cuda, cuda:1 or mps")
    return device


def check_device_count(devices: int, device: torch.device) -> None:
    """Refuse more CUDA devices than there are.

    Raises:
        UserError: there are not so many.
    """
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise UserError(
            f"--devices {devices}: this machine has {torch.cuda.device_count()} CUDA devices"
        )


def check_devices(
    devices: int, device: torch.device, batch_size: int, sync_batchnorm: bool
) -> None:
    """Refuse a number of devices that a run cannot have on this machine.

    Raises:
        UserError: they are not there, or cannot share the batch evenly or the statistics of batch norms.
    """
    check_device_count(devices, device)
    if devices > 1 and device.index is not None:
        raise UserError(f"--device {device} is one device: give --device {device.type}")
    if devices > 1 and device.type == "mps":
        raise UserError(f"--devices {devices}: several need --device cuda or cpu")
    check_sharing(devices, device, batch_size, sync_batchnorm)


def check_sharing(
    devices: int, device: torch.device, batch_size: int, sync_batchnorm: bool
) -> None:
    """Refuse what the processes of a run cannot share.

    Raises:
        UserError: they cannot share the batch evenly or, on CPUs, the statistics of batch norms.
    """
    if batch_size % devices:
        raise UserError(
            f"--batch-size {batch_size} is the batch of all {devices} devices: give a multiple of "
            "their number"
        )
    if sync_batchnorm and devices > 1 and device.type == "cpu":
        raise UserError("--sync-batchnorm: torch supports it only on GPUs, so leave it out")


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware, so that it is faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return False


def resolve_precision(name: str, device: torch.device) -> str:
    """Return float32, bf16 or fp16: ``auto`` is bf16 where the device computes in it.

    Raises:
        UserError: fp16 was requested on a device that has no fast float16.
    """
    if name == "auto":
        return "bf16" if computes_in_bf16(device) else "float32"
    if name == "fp16" and device.type != "cuda":
        raise UserError("--precision fp16 needs a CUDA device: use bf16 or float32")
    return name


class LateRead:
    """Values on a device that the host reads later, without waiting for what was queued in the meantime.

    A copy that is asked for when they are read would stand behind all of that.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.copied: torch.cuda.Event | None = None
        if values.is_cuda:
            self.values = values.to("cpu", non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record(torch.cuda.current_stream(values.device))

    def read(self) -> list[float]:
        """Return the values, once the device has come so far."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.values.tolist()


def host_copy(tree: Any) -> Any:
    """Return a copy of nested containers whose tensors are copied to the host, which waits for none of them.

    Of a GPU's tensors the copies are complete when a later value of it has been read.
    """
    return tree_map_only(
        Tensor, lambda t: t.detach().to("cpu", copy=True, non_blocking=t.is_cuda), tree
    )


# Lightning's names for them.
LIGHTNING_PRECISION: Any = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def autocast_dtype(precision: str) -> torch.dtype | None:
    """Return autocast's dtype for a resolved precision, None for plain float32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute in float32 whatever autocast says, without TF32: what training's evaluations are in.

    In 8 or 11 bits the size of the batch can decide which of two near classes wins.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Let cuDNN time its algorithms for each new shape and keep the fastest, unless asked for the same ones.

    For images of one size: of many sizes, the timing would cost more than it saves.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    deterministic = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    cudnn.benchmark = not deterministic
    try:
        yield
    finally:
        cudnn.benchmark = before


@contextmanager
def threads_kept() -> Iterator[None]:
    """Give the caller back the CPU threads that it had torch work on; may decorate a function."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def worker_variables(threads: int) -> dict[str, str]:
    """Return the environment of a process that trains on so many threads beside others.

    What it sets must stand before the process starts.
    """
    return {
        **os.environ,
        **heap_variables(),
        # PyTorch's idle threads otherwise spin against the other processes. Fewer than these, the sums of
        # a run would have another order.
        "OMP_NUM_THREADS": str(threads),
        "OMP_DYNAMIC": "FALSE",
    }
