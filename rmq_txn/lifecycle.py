"""The states of a helper: new, starting, running, closing, closed; one process, no event loop."""

from __future__ import annotations

import asyncio
import enum
import os
import threading
from collections.abc import Callable

from rmq_txn.errors import LifecycleError

AFTER_FORK = (
    "start it after the fork, in the process that uses it (gunicorn: post_worker_init, "
    "Celery: worker_process_init, multiprocessing: in the child; docs/recipes.md)"
)


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
        self._lock = threading.Lock()
        self._pid: int | None = None
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
        try:
            start()
        except BaseException:
            self.state = State.CLOSED
            undo()
            raise
        self.state = State.RUNNING

    def require_running(self, call: str) -> None:
        """
        Raise unless this helper runs, in this process.

        Raises:
            LifecycleError: not started, closing or closed; another process; an event loop's thread.
        """
        if self.state is not State.RUNNING:
            hint = "; call start() or use it as a context manager" if self.state is State.NEW else ""
            raise LifecycleError(f"{self._what} is {self.state.value}, {call} needs it running{hint}")
        self._refuse_fork()
        refuse_event_loop(call)

    def _refuse_fork(self) -> None:
        if self._pid not in (None, os.getpid()):
            raise LifecycleError(
                f"{self._what} was started in process {self._pid} and can't be used after the fork that "
                f"made process {os.getpid()}; {AFTER_FORK}"
            )

    def close(self, close: Callable[[], None]) -> None:
        """Go to closed through `close`, once; a later call, and one on a new helper, does nothing."""
        refuse_event_loop(f"{self._what}.close()")
        with self._lock:
            if self.state is State.NEW:
                self.state = State.CLOSED
            if self.state is not State.RUNNING or self._pid != os.getpid():
                return
            self.state = State.CLOSING
        try:
            close()
        finally:
            self.state = State.CLOSED


def refuse_event_loop(call: str) -> None:
    """Raise on the thread of a running event loop: our calls block, the loop would stand still."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise LifecycleError(f"{call} blocks and runs on an event loop's thread; use asyncio.to_thread")
