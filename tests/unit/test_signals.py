"""Signals that come during a native call: none is lost, none is told inside it, all are put back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from rmq_txn.transport.signals import HeldSignals

HELD = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2]


class Told:
    """Handlers that note what they are told."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def note(self, number: int, _frame: FrameType | None) -> None:
        self.signals.append(number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Put back after each test what the process had before it."""
    before = {number: signal.getsignal(number) for number in HELD}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", HELD)
def test_a_signal_during_the_call_is_told_after_it_once(number: int) -> None:
    told, signals = Told(), HeldSignals()
    signal.signal(number, told.note)
    handler = signal.getsignal(number)
    signals.hold()
    signal.raise_signal(number)
    assert told.signals == []
    signals.tell()
    assert told.signals == [number]
    assert signal.getsignal(number) == handler


def test_a_signal_that_came_before_the_callback_is_told_inside_it_and_a_later_one_after_the_call() -> None:
    told, signals = Told(), HeldSignals()
    signal.signal(signal.SIGTERM, told.note)
    signals.hold()
    signal.raise_signal(signal.SIGTERM)
    signals.tell()  # our callback
    assert len(told.signals) == 1
    signals.hold()
    signal.raise_signal(signal.SIGTERM)
    assert len(told.signals) == 1
    signals.tell()
    assert len(told.signals) == 2


def test_a_handler_that_was_set_between_two_calls_or_inside_a_callback_is_the_one_that_counts() -> None:
    """What to hold is not decided once a process: a program may set its handlers at any moment."""
    first, second = Told(), Told()
    signals = HeldSignals()
    signal.signal(signal.SIGUSR1, first.note)
    signals.hold()
    signals.tell()
    signal.signal(signal.SIGUSR1, second.note)  # in the callback
    signals.hold()
    signal.raise_signal(signal.SIGUSR1)
    assert second.signals == []
    signals.tell()
    assert (first.signals, second.signals) == ([], [signal.SIGUSR1])
    assert signal.getsignal(signal.SIGUSR1) == second.note


@pytest.mark.parametrize("disposition", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_is_ignored_or_the_systems_own_is_left_alone(disposition: signal.Handlers) -> None:
    signals = HeldSignals()
    signal.signal(signal.SIGUSR2, disposition)
    signals.hold()
    assert signal.getsignal(signal.SIGUSR2) is disposition
    signals.tell()
    assert signal.getsignal(signal.SIGUSR2) is disposition


def test_a_handler_that_raises_keeps_none_of_the_others_from_theirs() -> None:
    """Its exception arrives; the rest is told, and put back."""
    told, signals = Told(), HeldSignals()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, told.note)
    signals.hold()
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signals.tell()
    assert told.signals == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == told.note


def test_off_the_main_thread_nothing_is_held() -> None:
    """Python lets no other thread set a handler, and runs none there."""
    before = signal.getsignal(signal.SIGINT)
    failed: list[BaseException] = []

    def call() -> None:
        signals = HeldSignals()
        try:
            signals.hold()
            assert signal.getsignal(signal.SIGINT) is before
            signals.tell()
        except BaseException as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(10)
    assert failed == []


def test_the_main_thread_of_a_forked_process_is_the_one_that_forked() -> None:
    """A worker that a thread forked: there signals are held, though its parent's main thread was another."""
    statuses: list[int] = []

    def held() -> bool:
        signals = HeldSignals()
        handler = signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
        signals.hold()
        swapped = signal.getsignal(signal.SIGUSR1) != handler
        signals.tell()
        return swapped and signals._numbers != ()  # it is not taken for another thread

    def fork() -> None:
        statuses.append(_in_a_fork(held))

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join(20)
    assert statuses == [0]


def _in_a_fork(check: Callable[[], bool]) -> int:
    """Run a check in a forked process; return its status, 0 if the check holds."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
