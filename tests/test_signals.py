"""Signals sent to this process, whose main thread runs the tests."""

# ruff: noqa: PT012 (a block listens from its begin to its end)

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from ecanet import signals
from ecanet.errors import Preempted
from ecanet.signals import deferred_signals, pending, raise_pending


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def test_a_signal_in_a_destructor_is_not_lost() -> None:
    class Ends:
        def __del__(self) -> None:
            send(signal.SIGTERM)

    with pytest.raises(Preempted), deferred_signals():
        Ends()
        assert pending() == signal.SIGTERM
        raise_pending()


def test_a_signal_is_raised_once_and_cleanup_is_not_interrupted() -> None:
    with pytest.raises(Preempted), deferred_signals():
        send(signal.SIGTERM)
        try:
            raise_pending()
        finally:
            send(signal.SIGTERM)
            raise_pending()
            assert not pending()


def test_a_late_signal_is_raised_at_the_end_of_the_outer_block() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), deferred_signals():
        with deferred_signals():
            send(signal.SIGINT)
        reached = True
    assert reached


def test_a_second_ctrl_c_is_raised_at_once_unless_an_echo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signals, "_ECHO_SECONDS", 0.2)
    with pytest.raises(KeyboardInterrupt), deferred_signals():
        send(signal.SIGINT)
        send(signal.SIGINT)
        time.sleep(0.3)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_handlers_are_restored_and_a_new_block_has_nothing_pending() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Preempted), deferred_signals():
        send(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    with deferred_signals():
        assert not pending()


def test_other_threads_are_not_interrupted() -> None:
    """Signals are the main thread's: a thread that waits for its storage must not consume one."""
    with pytest.raises(Preempted), deferred_signals():
        send(signal.SIGTERM)
        thread = threading.Thread(target=raise_pending)
        thread.start()
        thread.join()
        assert pending()
        raise_pending()
