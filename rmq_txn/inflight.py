"""Counting what is still running, so that a close can wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class InFlight:
    """Counts the calls that run, and remembers when the last one came or went. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: set[object] = set()
        self._last_change = time.monotonic()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count the call that runs in this block."""
        token = object()
        try:
            try:
                self._change(self._running.add, token)
                yield
            finally:
                self._change(self._running.discard, token)
        finally:
            self._change(self._running.discard, token)  # if Ctrl-C kept the line above from it

    def _change(self, change: Callable[[object], None], token: object) -> None:
        with self._changed:
            change(token)
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
                if not self._running and quiet_for >= quiet_seconds:
                    return True
                if now >= deadline:
                    return False
                pause = deadline - now
                if not self._running:
                    pause = min(pause, quiet_seconds - quiet_for)
                self._changed.wait(pause)
