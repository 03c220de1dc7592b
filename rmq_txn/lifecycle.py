"""The states of a helper: new, starting, running, closing, closed; one process, no event loop."""

from __future__ import annotations

import asyncio
import enum
import os
import queue
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from rmq_txn.errors import LifecycleError

T = TypeVar("T")

AFTER_FORK = (
    "start it after the fork, in the process that uses it (gunicorn: post_worker_init, "
    "Celery: worker_process_init, multiprocessing: in the child; docs/recipes.md)"
)

_ON_A_LOOP = {
    "a statement of a joined session": "await txn.run(function), with txn.session in it",
    "transaction()": "async with atransaction()",
    "send_in_transaction()": "await asend_in_transaction()",
}


class State(enum.Enum):
    """Where in its life a producer or consumer is. It never goes back."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    CLOSING = "closing"
    CLOSED = "closed"


class Lifecycle:
    """
    Guards the states of one helper. Thread-safe.

    Args:
        what: how error messages name the helper.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.RLock()  # a signal handler may close what its thread is starting
        self._pid: int | None = None
        self._changing: int | None = None  # the thread that starts or closes it now
        self._settled = threading.Event()
        self.state = State.NEW

    def start(self, start: Callable[[], None], undo: Callable[[], None]) -> None:
        """
        Go from new to running through `start`; if it raises, `undo` and stay closed.

        Raises:
            LifecycleError: not new, started before a fork, or on an event loop's thread.
        """
        refuse_event_loop(f"{self._what}.start()")
        with self._lock:
            self._refuse_fork()
            if self.state is not State.NEW:
                raise LifecycleError(
                    f"{self._what} is {self.state.value}, it can be started once; make a new one"
                )
            self.state = State.STARTING
            self._pid = os.getpid()
            self._changing = threading.get_ident()
        try:
            start()
            self._settle(State.RUNNING)
        except BaseException:
            self.state = State.CLOSING
            try:
                undo()
            finally:
                self._settle(State.CLOSED)
            raise

    def _settle(self, state: State) -> None:
        with self._lock:
            self.state = state
            self._changing = None
            self._settled.set()

    def require_running(self, call: str, parts: T | None, *, blocks: bool = True) -> T:
        """
        Return what runs of this helper, its `parts`; raise unless it runs, in this process.

        Args:
            blocks: the call is nothing for an event loop's thread.

        Raises:
            LifecycleError: not started, closing or closed; another process; an event loop's thread.
        """
        if self.state is not State.RUNNING or parts is None:
            hint = "; call start() or use it as a context manager" if self.state is State.NEW else ""
            raise LifecycleError(f"{self._what} is {self.state.value}, {call} needs it running{hint}")
        self._refuse_fork()
        if blocks:
            refuse_event_loop(call)
        return parts

    def _refuse_fork(self) -> None:
        if self._pid not in (None, os.getpid()):
            raise LifecycleError(
                f"{self._what} was started in process {self._pid} and can't be used after the fork that "
                f"made process {os.getpid()}; {AFTER_FORK}"
            )

    def close(self, close: Callable[[], None]) -> None:
        """
        Go to closed through `close`, once; a later call, and one on a new helper, does nothing.

        While another thread starts or closes it, wait for that thread first: whoever closes a
        helper may then close what it uses. From within `start` or `close` (a signal handler)
        nothing happens, waiting for itself would never end.
        """
        refuse_event_loop(f"{self._what}.close()")
        while True:
            with self._lock:
                if self.state is State.NEW:
                    self.state = State.CLOSED
                if self.state is State.CLOSED or self._pid != os.getpid():
                    return
                if self.state is State.RUNNING:
                    self.state = State.CLOSING
                    self._changing = threading.get_ident()
                    self._settled.clear()
                    break
                if self._changing == threading.get_ident():
                    return
            self._settled.wait()
        try:
            close()
        finally:
            self._settle(State.CLOSED)


def run_until_signal(start: Callable[[], None], close: Callable[[], None]) -> None:
    """Start, wait for SIGTERM or SIGINT, close; on the main thread. A second signal has its usual effect."""
    # Not an Event: a signal in the middle of its wait() would lock itself out in set().
    stop, stopped = queue.SimpleQueue[int](), 0
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, lambda number, _frame: stop.put(number))
        start()
        while not stopped:
            with suppress(queue.Empty):
                stopped = stop.get(timeout=1.0)  # an endless wait would hold signals up
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        close()


def refuse_event_loop(call: str) -> None:
    """Raise on the thread of a running event loop: our calls block, the loop would stand still."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    instead = _ON_A_LOOP.get(call, "asyncio.to_thread")
    raise LifecycleError(f"{call} blocks and runs on an event loop's thread; use {instead}")
