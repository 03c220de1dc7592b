"""The states of a helper: once through, in one process, never on an event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rmq_txn.errors import LifecycleError, SettingsError
from rmq_txn.lifecycle import Lifecycle, State, refuse_event_loop
from rmq_txn.quantities import closing_seconds

PARTS = object()

CHECKOUT = Path(__file__).resolve().parents[2]


def nothing() -> None:
    """Succeed."""


def never() -> None:
    """Fail the test that gets here."""
    raise AssertionError("must not be called")


@pytest.fixture
def lifecycle() -> Lifecycle:
    """Return the lifecycle of a new helper."""
    return Lifecycle("Helper of group 'g'")


def running() -> Lifecycle:
    """Return the lifecycle of a running helper."""
    lifecycle = Lifecycle("Helper of group 'g'")
    lifecycle.start(nothing, never)
    return lifecycle


def test_a_helper_goes_through_all_five_states(lifecycle: Lifecycle) -> None:
    """And shows the right one at each step."""
    seen = [lifecycle.state]
    lifecycle.start(lambda: seen.append(lifecycle.state), never)
    seen.append(lifecycle.state)
    lifecycle.require_running("send()", PARTS)
    lifecycle.close(lambda: seen.append(lifecycle.state))
    seen.append(lifecycle.state)
    assert seen == [State.NEW, State.STARTING, State.RUNNING, State.CLOSING, State.CLOSED]


def test_a_second_start_is_refused(lifecycle: Lifecycle) -> None:
    """Running, and closed: there is no restart."""
    lifecycle.start(nothing, never)
    with pytest.raises(LifecycleError, match="is running, it can be started once; make a new one"):
        lifecycle.start(never, never)
    lifecycle.close(nothing)
    with pytest.raises(LifecycleError, match="is closed, it can be started once"):
        lifecycle.start(never, never)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_start_that_fails_is_undone_and_stays_closed(
    lifecycle: Lifecycle, error: type[BaseException]
) -> None:
    """The error arrives unchanged; what had been started is closed, Ctrl-C included."""
    undone: list[State] = []
    problem = error("in start")

    def start() -> None:
        raise problem

    with pytest.raises(error) as caught:
        lifecycle.start(start, lambda: undone.append(lifecycle.state))
    assert caught.value is problem
    assert undone == [State.CLOSING]
    assert lifecycle.state is State.CLOSED
    with pytest.raises(LifecycleError, match="is closed"):
        lifecycle.start(never, never)


def test_a_call_before_start_is_told_to_start(lifecycle: Lifecycle) -> None:
    """The error names the helper, the call and the next step."""
    with pytest.raises(LifecycleError) as caught:
        lifecycle.require_running("transaction()", PARTS)
    assert str(caught.value) == (
        "Helper of group 'g' is new, transaction() needs it running; call start() or use it as a context "
        "manager"
    )


def test_a_call_while_starting_closing_or_after_close_is_refused(lifecycle: Lifecycle) -> None:
    """Without the advice to start, which would be wrong then."""
    said: list[str] = []

    def try_a_call() -> None:
        with pytest.raises(LifecycleError) as caught:
            lifecycle.require_running("send()", PARTS)
        said.append(str(caught.value))

    lifecycle.start(try_a_call, never)
    lifecycle.close(try_a_call)
    try_a_call()
    assert said == [
        f"Helper of group 'g' is {state}, send() needs it running"
        for state in ("starting", "closing", "closed")
    ]


def test_closing_twice_closes_once() -> None:
    """A context manager and an atexit hook may both do it."""
    lifecycle = running()
    closed: list[int] = []
    lifecycle.close(lambda: closed.append(1))
    lifecycle.close(never)
    assert closed == [1]


def test_closing_a_new_helper_closes_it_for_good(lifecycle: Lifecycle) -> None:
    """Nothing was opened, so nothing is closed; but it can't be started any more."""
    lifecycle.close(never)
    assert lifecycle.state is State.CLOSED
    with pytest.raises(LifecycleError, match="is closed"):
        lifecycle.start(never, never)


def test_a_close_that_fails_still_ends_closed() -> None:
    """Half closed is not a state."""
    lifecycle = running()

    def close() -> None:
        raise OSError("in close")

    with pytest.raises(OSError, match="in close"):
        lifecycle.close(close)
    assert lifecycle.state is State.CLOSED


def race(call: Callable[[], None], threads: int = 16) -> list[BaseException | None]:
    """Run `call` on several threads at once; return what each raised."""
    barrier = threading.Barrier(threads)
    results: list[BaseException | None] = []

    def one() -> None:
        barrier.wait(10)
        try:
            call()
        except LifecycleError as error:
            results.append(error)
        else:
            results.append(None)

    workers = [threading.Thread(target=one) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(10)
    return results


def test_of_many_threads_that_start_at_once_one_does(lifecycle: Lifecycle) -> None:
    """The others are told."""
    started: list[int] = []
    results = race(lambda: lifecycle.start(lambda: started.append(1), never))
    assert started == [1]
    assert len(results) == 16
    assert results.count(None) == 1


def test_of_many_threads_that_close_at_once_one_does() -> None:
    """The others return."""
    lifecycle = running()
    closed: list[int] = []
    assert race(lambda: lifecycle.close(lambda: closed.append(1))) == [None] * 16
    assert closed == [1]


@pytest.mark.parametrize("change", ["start", "a failing start", "close"])
def test_close_waits_for_the_thread_that_starts_or_closes(lifecycle: Lifecycle, change: str) -> None:
    """When it returns the helper is closed, so that what the helper uses may be closed next."""
    inside, go_on, closed = threading.Event(), threading.Event(), list[int]()

    def slow() -> None:
        inside.set()
        assert go_on.wait(30)
        if change == "a failing start":
            raise OSError("in start")

    def changes() -> None:
        if change == "close":
            lifecycle.start(nothing, never)
            lifecycle.close(slow)
        else:
            with suppress(OSError):
                lifecycle.start(slow, nothing)

    states: list[State] = []

    def closes() -> None:
        lifecycle.close(lambda: closed.append(1))
        states.append(lifecycle.state)

    changer, closer = threading.Thread(target=changes), threading.Thread(target=closes)
    changer.start()
    assert inside.wait(30)
    closer.start()
    closer.join(0.2)
    assert closer.is_alive(), "it did not wait"
    go_on.set()
    for thread in (changer, closer):
        thread.join(30)
    assert states == [State.CLOSED]
    assert closed == ([1] if change == "start" else [])


def test_closing_from_within_start_or_close_does_not_wait_for_itself(lifecycle: Lifecycle) -> None:
    """A signal handler may do that; it would wait for ever."""
    lifecycle.start(lambda: lifecycle.close(never), never)
    assert lifecycle.state is State.RUNNING
    lifecycle.close(lambda: lifecycle.close(never))
    assert lifecycle.state is State.CLOSED


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), 1e9, True, "5", None])
def test_a_time_to_wait_at_close_that_is_none_is_refused(value: Any) -> None:
    """With its name and what is allowed."""
    with pytest.raises(SettingsError, match=r"drain_seconds is .*, allowed is 0 to 86400"):
        closing_seconds("drain_seconds", value)
    assert [closing_seconds("drain_seconds", good) for good in (0, 2.5)] == [0, 2.5]


def test_every_blocking_call_is_refused_on_an_event_loop(lifecycle: Lifecycle) -> None:
    """It would stand still; the error names the way out."""
    started = running()

    async def on_the_loop() -> None:
        for call in (
            lambda: lifecycle.start(never, never),
            lambda: started.require_running("send()", PARTS),
            lambda: started.close(never),
            lambda: refuse_event_loop("run()"),
        ):
            with pytest.raises(LifecycleError, match=r"event loop's thread; use asyncio\.to_thread"):
                call()

    asyncio.run(on_the_loop())
    assert lifecycle.state is State.NEW
    assert started.state is State.RUNNING


def test_to_thread_is_the_way_out(lifecycle: Lifecycle) -> None:
    """What the error advises works."""

    async def use() -> None:
        await asyncio.to_thread(lifecycle.start, nothing, never)
        await asyncio.to_thread(lifecycle.require_running, "send()", PARTS)
        await asyncio.to_thread(lifecycle.close, nothing)

    asyncio.run(use())
    assert lifecycle.state is State.CLOSED


def test_a_forked_child_can_neither_use_nor_close_its_parents_helper() -> None:
    """The client's threads are missing in the child; using it would hang, closing it would crash."""
    program = textwrap.dedent("""
        import os
        from rmq_txn.errors import LifecycleError
        from rmq_txn.lifecycle import Lifecycle

        lifecycle = Lifecycle("Helper")
        lifecycle.start(lambda: None, lambda: None)
        parent, again = os.getpid(), ""
        child = os.fork()
        if child == 0:
            closed = []
            try:
                lifecycle.require_running("send()", lifecycle)
            except LifecycleError as error:
                said = str(error)
            else:
                os._exit(3)
            try:
                lifecycle.start(lambda: None, lambda: None)  # a hook after the fork, a start before it
            except LifecycleError as error:
                again = str(error)
            lifecycle.close(lambda: closed.append(1))
            right = f"started in process {parent}" in said and f"process {os.getpid()}" in said
            right = right and again == said and "post_worker_init" in said
            os._exit(0 if right and not closed else 4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        lifecycle.require_running("send()", lifecycle)
        lifecycle.close(lambda: print("closed by the parent"))
    """)
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, timeout=30, check=False
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "closed by the parent"), ran.stderr
