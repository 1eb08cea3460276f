"""One run on several devices of this machine: a process (rank) per device, supervised by the caller's.

The ranks find each other by torchrun's variables, so whatever trains under torchrun trains here. The caller's
process trains nothing: it can pause or end the run at any time. torch.multiprocessing.start_processes would
return a failed rank's traceback as text, not a UserError, and end the other ranks by SIGTERM.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import filelock
import torch.multiprocessing

from ecanet.children import keep_current_folder_out
from ecanet.errors import ProcessLost, UserError, how_it_ended, one_line
from ecanet.signals import deferred_signals, exit_with_parent, pending, raise_pending
from ecanet.training.device import worker_variables

_POLL_SECONDS = 0.1  # between two checks of the ranks, or of the parent
_PARENT_TIMEOUT = 2.0  # s without a check by the parent after which the ranks pause
_SAVE_SECONDS = 30.0  # that ranks have to save and exit once they are interrupted

Train = Callable[[Callable[[Any], None], Callable[[], None]], Any]


class _Rank(NamedTuple):
    process: SpawnProcess
    messages: Connection


def spawn_ranks(
    train: Train,
    devices: int,
    folder: Path,
    *,
    threads: int,
    on_epoch: Callable[[Any], None],
    on_step: Callable[[], None],
) -> Any:
    """Call ``train(on_epoch, on_step)`` in one process per device and return rank 0's result.

    Args:
        train: picklable; reads its rank from torchrun's variables, such as ``LOCAL_RANK``.
        devices: number of processes.
        folder: the run's folder; one set of ranks works there at a time.
        threads: CPU threads per process.
        on_epoch: called in this process with what rank 0 passes to its own ``on_epoch``.
        on_step: called in this process every 0.1 s. Until it returns, the ranks pause after their current
            step; if it raises, they are killed and the exception propagates.

    Raises:
        UserError: raised in a rank.
        ProcessLost: a rank failed or was killed.
        Preempted, KeyboardInterrupt: a signal was received; the ranks have saved what they could.
    """
    from lightning_fabric.plugins.environments.lightning import find_free_network_port

    spawn = torch.multiprocessing.get_context("spawn")
    last_check = spawn.RawValue("d", time.monotonic())
    ranks: list[_Rank] = []
    variables = {
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_network_port()),
        "TORCHELASTIC_RUN_ID": "ecanet",
    }
    with deferred_signals():
        try:
            with patch.dict(os.environ, worker_variables(threads) | variables):
                keep_current_folder_out()
                for rank in range(devices):
                    ours, theirs = spawn.Pipe(duplex=False)
                    arguments = [train, rank, folder, os.getpid(), theirs, last_check]
                    process = spawn.Process(target=_rank_main, args=arguments)
                    process.start()
                    theirs.close()
                    ranks.append(_Rank(process, ours))
            return _watch(ranks, last_check, on_epoch, on_step)
        finally:
            _end([rank.process for rank in ranks])


def _watch(
    ranks: list[_Rank],
    last_check: Any,
    on_epoch: Callable[[Any], None],
    on_step: Callable[[], None],
) -> Any:
    """Forward the ranks' messages until all have ended; return rank 0's result."""
    result: Any = None
    while True:
        raise_pending()
        try:
            on_step()
        except BaseException:
            # The run may be another worker's by now: nothing more may be written.
            for rank in ranks:
                rank.process.kill()
            raise
        last_check.value = time.monotonic()
        alive = any(rank.process.is_alive() for rank in ranks)
        for rank in ranks:
            with suppress(EOFError):
                while rank.messages.poll():
                    kind, value = rank.messages.recv()
                    if kind == "error":
                        raise value
                    if rank is ranks[0]:
                        if kind == "epoch":
                            on_epoch(value)
                        else:
                            result = value
        for rank in ranks:
            if rank.process.exitcode:
                raise ProcessLost(f"a process of the run {how_it_ended(rank.process.exitcode)}")
        if not alive:
            return result
        time.sleep(_POLL_SECONDS)


def _end(processes: list[SpawnProcess]) -> None:
    """Interrupt the ranks that are still running, and kill those that do not exit in time."""
    deadline = time.monotonic() + _SAVE_SECONDS
    for process in processes:
        if process.is_alive() and process.pid:
            # Lightning answers SIGTERM by a broadcast that waits for the others.
            os.kill(process.pid, signal.SIGINT)
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _rank_main(
    train: Train, rank: int, folder: Path, parent: int, messages: Connection, last_check: Any
) -> None:
    """Train as one of the ranks."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    exit_with_parent(parent, signal.SIGINT, _SAVE_SECONDS)

    def send(kind: str, value: Any) -> None:
        try:
            messages.send((kind, value))
        except BrokenPipeError:
            # The parent has ended, which is the cause of whatever failed here.
            os._exit(130)

    def wait_for_parent() -> None:
        while time.monotonic() - last_check.value > _PARENT_TIMEOUT and not pending():
            time.sleep(_POLL_SECONDS)

    try:
        # Ranks of a killed parent may still be running.
        with (
            deferred_signals(),
            filelock.FileLock(folder / f".device{rank}.lock", timeout=2 * _SAVE_SECONDS),
        ):
            send("result", train(functools.partial(send, "epoch"), wait_for_parent))
    except KeyboardInterrupt:
        os._exit(130)
    except UserError as error:
        send("error", error)
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error, 300)}"
        send("error", ProcessLost(f"on device {rank}: {reason}"))
