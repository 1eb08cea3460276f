"""Signals sent to this very process: it is the main thread of a pytest worker."""

# ruff: noqa: PT012 (a block listens from its begin to its end)

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from ecanet import signals
from ecanet.errors import Preempted
from ecanet.signals import asked, noted, obey


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def test_a_signal_in_a_destructor_is_not_lost() -> None:
    class Ends:
        def __del__(self) -> None:
            send(signal.SIGTERM)

    with pytest.raises(Preempted), noted():
        Ends()
        assert asked() == signal.SIGTERM
        obey()


def test_obeyed_once_and_the_end_of_the_run_is_left_in_peace() -> None:
    with pytest.raises(Preempted), noted():
        send(signal.SIGTERM)
        try:
            obey()
        finally:
            send(signal.SIGTERM)
            obey()
            assert not asked()


def test_what_comes_too_late_is_obeyed_at_the_end_of_the_outer_block() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), noted():
        with noted():
            send(signal.SIGINT)
        reached = True
    assert reached


def test_a_second_ctrl_c_means_at_once_unless_it_is_an_echo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signals, "_ECHO", 0.2)
    with pytest.raises(KeyboardInterrupt), noted():
        send(signal.SIGINT)
        send(signal.SIGINT)
        time.sleep(0.3)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_handlers_are_given_back_and_another_block_begins_anew() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Preempted), noted():
        send(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    with noted():
        assert not asked()


def test_another_threads_work_goes_on() -> None:
    """The signal is the main thread's; a thread that asks its storage must not run off with it."""
    with pytest.raises(Preempted), noted():
        send(signal.SIGTERM)
        thread = threading.Thread(target=obey)
        thread.start()
        thread.join()
        assert asked()
        obey()
