"""Counting running calls, and waiting for quiet."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rmq_txn.inflight import InFlight


@contextmanager
def one_of(calls: InFlight) -> Iterator[None]:
    """Count a call for a block, as those who call do."""
    call = object()
    calls.add(call)
    try:
        yield
    finally:
        calls.remove(call)


def test_nothing_running_is_quiet_at_once() -> None:
    """No wait where there is nothing to wait for."""
    assert InFlight().wait_until_quiet(0.0, 0.0)


def test_a_running_call_is_waited_for() -> None:
    """The wait ends when the call does, long before its deadline."""
    calls, entered, leave = InFlight(), threading.Event(), threading.Event()

    def call() -> None:
        with one_of(calls):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=call)
    thread.start()
    assert entered.wait(10)
    assert not calls.wait_until_quiet(0.0, 0.05)
    threading.Timer(0.05, leave.set).start()
    began = time.monotonic()
    assert calls.wait_until_quiet(0.0, 10.0)
    assert time.monotonic() - began < 5
    thread.join(10)


def test_the_deadline_holds_while_a_call_runs() -> None:
    """It says so, and does not wait longer."""
    calls = InFlight()
    with one_of(calls):
        began = time.monotonic()
        assert not calls.wait_until_quiet(0.0, 0.1)
        assert 0.1 <= time.monotonic() - began < 5


def test_quiet_means_that_nothing_came_or_went_for_a_while() -> None:
    """A call that just ended may be followed by another one natively queued."""
    calls = InFlight()
    with one_of(calls):
        pass
    ended = time.monotonic()
    assert not calls.wait_until_quiet(30.0, 0.05)
    assert calls.wait_until_quiet(0.2, 10.0)
    assert time.monotonic() - ended >= 0.19


def test_a_call_that_raises_is_no_longer_counted() -> None:
    """Whatever leaves the block, even what is not an Exception."""
    calls = InFlight()
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), one_of(calls):
            raise error
    assert calls.wait_until_quiet(0.0, 0.0)


def test_calls_that_overlap_are_all_waited_for() -> None:
    """A counter, not a flag; nested ones on one thread included."""
    calls = InFlight()
    with one_of(calls):
        with one_of(calls):
            pass
        assert not calls.wait_until_quiet(0.0, 0.0)
    assert calls.wait_until_quiet(0.0, 0.0)


def test_a_call_removed_twice_counts_once() -> None:
    """Ctrl-C may keep a `finally` from its first try; the second one changes nothing."""
    calls, call = InFlight(), object()
    calls.add(call)
    calls.remove(call)
    calls.remove(call)
    with one_of(calls):
        calls.remove(call)
        assert not calls.wait_until_quiet(0.0, 0.0)
    assert calls.wait_until_quiet(0.0, 0.0)


def test_a_signal_handler_may_wait_while_its_own_thread_counts() -> None:
    """It may close what the thread is about to use: the lock is its own already then."""
    calls = InFlight()
    with calls._lock:  # where the signal comes
        assert calls.wait_until_quiet(0.0, 0.0)


def test_one_who_waits_is_told_by_whoever_leaves_last() -> None:
    """Many calls at once, and two that wait: nobody waits until its deadline."""
    calls, go, ended = InFlight(), threading.Barrier(9), list[bool]()

    def work() -> None:
        call = object()
        calls.add(call)
        go.wait(10)
        for _ in range(200):
            with one_of(calls):
                pass
        calls.remove(call)

    def wait() -> None:
        go.wait(10)
        ended.append(calls.wait_until_quiet(0.0, 60.0))

    threads = [threading.Thread(target=target) for target in (work,) * 6 + (wait,) * 2]
    for thread in threads:
        thread.start()
    go.wait(10)
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert ended == [True, True]
