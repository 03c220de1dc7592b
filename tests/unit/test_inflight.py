"""Counting running calls, and waiting for quiet."""

from __future__ import annotations

import threading
import time

import pytest

from rmq_txn.inflight import InFlight


def test_nothing_running_is_quiet_at_once() -> None:
    """No wait where there is nothing to wait for."""
    assert InFlight().wait_until_quiet(0.0, 0.0)


def test_a_running_call_is_waited_for() -> None:
    """The wait ends when the call does, long before its deadline."""
    calls, entered, leave = InFlight(), threading.Event(), threading.Event()

    def call() -> None:
        with calls.one():
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
    with calls.one():
        began = time.monotonic()
        assert not calls.wait_until_quiet(0.0, 0.1)
        assert 0.1 <= time.monotonic() - began < 5


def test_quiet_means_that_nothing_came_or_went_for_a_while() -> None:
    """A call that just ended may be followed by another one natively queued."""
    calls = InFlight()
    with calls.one():
        pass
    ended = time.monotonic()
    assert not calls.wait_until_quiet(30.0, 0.05)
    assert calls.wait_until_quiet(0.2, 10.0)
    assert time.monotonic() - ended >= 0.19


def test_a_call_that_raises_is_no_longer_counted() -> None:
    """Whatever leaves the block, even what is not an Exception."""
    calls = InFlight()
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), calls.one():
            raise error
    assert calls.wait_until_quiet(0.0, 0.0)


def test_calls_that_overlap_are_all_waited_for() -> None:
    """A counter, not a flag; nested ones on one thread included."""
    calls = InFlight()
    with calls.one():
        with calls.one():
            pass
        assert not calls.wait_until_quiet(0.0, 0.0)
    assert calls.wait_until_quiet(0.0, 0.0)
