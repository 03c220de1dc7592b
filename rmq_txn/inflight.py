"""Counting what is still running, so that a close can wait for it."""

from __future__ import annotations

import threading
import time


class InFlight:
    """
    The calls that run, and when the last one came or went. Thread-safe.

    A call adds itself and removes itself in a `finally`. Ctrl-C, which may come on the main thread, may keep
    it from that, so there it looks once more whether it is `running`. Only a close waits, so only then is
    anybody told: to notify a condition each time cost 42 function calls a transaction, this costs 6.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may close what its own thread is about to count
        self._changed = threading.Condition(self._lock)
        self._waiting = 0
        self.running: set[object] = set()
        """For reading."""
        self._last_change = time.monotonic()

    def add(self, call: object) -> None:
        """Count a call; `call` is an `object()` of its own."""
        with self._lock:
            self.running.add(call)
            self._last_change = time.monotonic()
            if self._waiting:
                self._changed.notify_all()

    def remove(self, call: object) -> None:
        """Count it no longer. Does nothing if it is not counted."""
        with self._lock:
            if call not in self.running:
                return
            self.running.discard(call)
            self._last_change = time.monotonic()
            if self._waiting:
                self._changed.notify_all()

    def wait_until_quiet(self, quiet_seconds: float, timeout_seconds: float) -> bool:
        """
        Wait until no call runs and none came or went for `quiet_seconds`.

        Returns:
            False if that did not happen within `timeout_seconds`.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._lock:
            self._waiting += 1
            try:
                return self._wait(quiet_seconds, deadline)
            finally:
                self._waiting -= 1

    def _wait(self, quiet_seconds: float, deadline: float) -> bool:
        while True:
            now = time.monotonic()
            quiet_for = now - self._last_change
            if not self.running and quiet_for >= quiet_seconds:
                return True
            if now >= deadline:
                return False
            pause = deadline - now
            if not self.running:
                pause = min(pause, quiet_seconds - quiet_for)
            self._changed.wait(pause)
