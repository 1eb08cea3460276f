"""A worker's lease on its run: renewed by heartbeats; training pauses while they do not arrive."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ecanet.activity import activities
from ecanet.errors import UserError
from ecanet.experiments.study.queue import Claim, LeaseLost
from ecanet.experiments.study.retry import NO_ANSWER, STORAGE_TIMEOUT
from ecanet.experiments.study.study import Study
from ecanet.signals import raise_pending


class Lease:
    """Renews a claim by heartbeats from a thread, and pauses training when they do not arrive.

    Once no heartbeat has reached the storage for half the grace period, training pauses between two steps
    until the storage answers. It then continues if the run is still this worker's, or ends with
    :class:`LeaseLost`. So no worker trains a run that another may already have claimed, and a database that
    is away for a while costs no epoch.
    """

    def __init__(self, study: Study) -> None:
        # Separate connections: the main thread may be waiting on the others.
        self.queue, self.study = study.queue_for_heartbeats(), study
        self.heartbeat, self.max_age = study.heartbeat, study.queue.grace / 2
        self.claim: Claim | None = None
        self.lost: Claim | None = None
        self.renewed = 0.0
        self.answered, self.closed = threading.Event(), threading.Event()

    def __enter__(self) -> Lease:
        threading.Thread(target=self._send_heartbeats, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()

    @contextmanager
    def keep_alive(self, claim: Claim) -> Iterator[None]:
        """Renew ``claim`` for the duration of the block."""
        self.renewed = time.monotonic()
        self.claim = claim
        try:
            yield
        finally:
            self.claim = None

    def check(self) -> None:
        """Return at once if the lease is valid, else wait until it is; to be called between two steps.

        Raises:
            LeaseLost: the run is no longer this worker's.
            UserError: the storage has not answered for ``STORAGE_TIMEOUT``, or the study has gone.
            Preempted, KeyboardInterrupt: a signal was received while waiting.
        """
        self.study.check_not_moved()
        while self.claim is not self.lost and time.monotonic() - self.renewed > self.max_age:
            if time.monotonic() - self.renewed > STORAGE_TIMEOUT:
                raise UserError(NO_ANSWER)
            raise_pending()
            self.answered.wait(1.0)
            self.answered.clear()
        if self.claim is self.lost:
            raise LeaseLost

    def _send_heartbeats(self) -> None:
        pause = self.heartbeat
        while not self.closed.wait(pause):
            claim = self.claim
            pause = self.heartbeat if claim is None or self._renew(claim) else self.heartbeat / 4
        self.queue.engine.dispose()

    def _renew(self, claim: Claim) -> bool:
        """Send a heartbeat; return whether the storage has answered."""
        sent = time.monotonic()
        try:
            self.queue.heartbeat(claim, _how_far())
        except LeaseLost:
            self.lost = claim
        except UserError:
            return False
        else:
            if self.claim is claim:
                self.renewed = sent
        self.answered.set()
        return True


def _how_far() -> dict[str, Any] | None:
    """Return how far the run is that this process trains; None before its first step."""
    for one in activities():
        if one.unit == "epochs" and one.done:
            return {"epochs": one.done, "seconds_left": one.seconds_left()}
    return None
