"""Counting what is still running, so that a close can wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class InFlight:
    """Counts the calls that run, and remembers when the last one came or went. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._last_change = time.monotonic()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count the call that runs in this block."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._changed:
            self._running += change
            self._last_change = time.monotonic()
            self._changed.notify_all()

    def wait_until_quiet(self, quiet_seconds: float, timeout_seconds: float) -> bool:
        """
        Wait until no call runs and none came or went for `quiet_seconds`.

        Returns:
            False if that did not happen within `timeout_seconds`.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while True:
                now = time.monotonic()
                quiet_for = now - self._last_change
                if self._running == 0 and quiet_for >= quiet_seconds:
                    return True
                if now >= deadline:
                    return False
                pause = deadline - now
                if self._running == 0:
                    pause = min(pause, quiet_seconds - quiet_for)
                self._changed.wait(pause)
