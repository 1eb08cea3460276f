"""A run on several devices of this machine, from inside a program that does more than this run.

The processes find each other by the variables that torchrun sets: what trains under torchrun trains
here. The caller's own process trains nothing; it watches, and can hold the run or end it at any moment.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import torch.multiprocessing
from lightning_fabric.plugins.environments.lightning import find_free_network_port

from ecanet.children import keep_current_folder_out
from ecanet.errors import ProcessLost, UserError, how_it_ended
from ecanet.signals import asked, noted, obey, stop_without
from ecanet.training.device import worker_variables

# Seconds between looks at the processes; after which they hold, not having been looked at; and that
# they have to save what they can when told to stop.
_LOOK, _SILENCE, _TO_SAVE = 0.1, 2.0, 30.0


Train = Callable[[Callable[[Any], None], Callable[[], None]], Any]


def train_on_devices(
    train: Train,
    devices: int,
    folder: Path,
    *,
    threads: int,
    on_epoch: Callable[[Any], None],
    on_step: Callable[[], None],
) -> Any:
    """Call ``train(on_epoch, on_step)`` in a process for each device, and return what the first returns.

    Args:
        train: can be pickled; learns its place from torchrun's variables, such as ``LOCAL_RANK``.
        devices: how many processes.
        folder: of the run; one set of processes at a time works there.
        threads: CPU threads of each process.
        on_epoch: gets here what the first process gives its own.
        on_step: called here every few moments. As long as it does not return, the processes hold at
            the end of their step; what it raises is raised, and they are killed.

    Raises:
        UserError: as raised in a process.
        ProcessLost: a process failed, or was killed.
        Preempted, KeyboardInterrupt: a signal came; the processes have saved what they could.
    """
    spawn = torch.multiprocessing.get_context("spawn")
    port = find_free_network_port()
    looked = spawn.RawValue("d", time.monotonic())
    pipes: list[Any] = []
    processes: list[Any] = []
    with noted():
        try:
            with _variables(worker_variables(threads)):
                keep_current_folder_out()
                for rank in range(devices):
                    ours, theirs = spawn.Pipe(duplex=False)
                    process = spawn.Process(
                        target=_take_part,
                        args=[train, rank, devices, port, folder, os.getpid(), theirs, looked],
                    )
                    process.start()
                    theirs.close()
                    pipes.append(ours)
                    processes.append(process)
            return _watch(processes, pipes, looked, on_epoch, on_step)
        finally:
            _end(processes)


@contextmanager
def _variables(variables: dict[str, str]) -> Iterator[None]:
    """Give processes that start in the block these environment variables."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def process_rank(devices: int) -> int:
    """Return which of a run's processes this one is, as torchrun's variables tell."""
    return int(os.environ["LOCAL_RANK"]) if devices > 1 else 0


def _watch(
    processes: list[Any],
    pipes: list[Any],
    looked: Any,
    on_epoch: Callable[[Any], None],
    on_step: Callable[[], None],
) -> Any:
    """Pass on what the processes say until all have ended; return the first one's result."""
    results: list[Any] = []
    while True:
        obey()
        try:
            on_step()
        except BaseException:
            # The run may be another's by now: nothing more is to be written.
            for process in processes:
                process.kill()
            raise
        looked.value = time.monotonic()
        alive = any(process.is_alive() for process in processes)
        for rank, pipe in enumerate(pipes):
            try:
                while pipe.poll():
                    kind, value = pipe.recv()
                    if kind == "error":
                        raise value
                    if rank == 0:
                        on_epoch(value) if kind == "epoch" else results.append(value)
            except EOFError:
                pass
        for process in processes:
            if process.exitcode:
                raise ProcessLost(f"a process of the run {how_it_ended(process.exitcode)}")
        if not alive:
            return results[0]
        time.sleep(_LOOK)


def _end(processes: list[Any]) -> None:
    """Tell those that are left to stop, and kill those that do not."""
    deadline = time.monotonic() + _TO_SAVE
    for process in processes:
        if process.is_alive():
            # Lightning answers SIGTERM by a broadcast that waits for the others.
            os.kill(process.pid, signal.SIGINT)
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _take_part(
    train: Train,
    rank: int,
    devices: int,
    port: int,
    folder: Path,
    parent: int,
    messages: Any,
    looked: Any,
) -> None:
    """Be one of the processes."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE=str(devices),
        LOCAL_WORLD_SIZE=str(devices),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="ecanet",
    )
    stop_without(parent, signal.SIGINT, _TO_SAVE)

    def tell(kind: str, value: Any) -> None:
        try:
            messages.send((kind, value))
        except BrokenPipeError:
            # The parent has gone, and whatever went wrong went wrong for that.
            os._exit(130)

    def hold() -> None:
        while time.monotonic() - looked.value > _SILENCE and not asked():
            time.sleep(_LOOK)

    try:
        # Those whose parent was killed may not have noticed yet.
        with noted(), filelock.FileLock(folder / f".device{rank}.lock", timeout=2 * _TO_SAVE):
            tell("result", train(functools.partial(tell, "epoch"), hold))
    except KeyboardInterrupt:
        os._exit(130)
    except UserError as error:
        tell("error", error)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        tell("error", ProcessLost(f"on device {rank}: {type(error).__name__}: {text}"))
