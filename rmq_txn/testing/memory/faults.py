"""The broker's own faults, as a test scripts them: each is armed for so many times and then spent."""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from rmq_txn.quantities import positive_whole_number

LOSE_VERDICT: Final = "lose a verdict"
DELAY_VERDICT: Final = "delay a verdict"
DELAY_DELIVERY: Final = "delay a delivery"
DUPLICATE_HALF: Final = "duplicate a half message"
DELIVER_TWICE: Final = "deliver twice"
REFUSE_SEND: Final = "refuse a send"
STORE_AND_REFUSE: Final = "store a message and refuse it"


class ScriptedFaults:
    """What is armed. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: dict[str, deque[float]] = {}

    def arm(self, fault: str, count: int, value: float = 1.0) -> None:
        """Let a fault happen the next `count` times; `value` is its duration, if it has one."""
        positive_whole_number("count", count)
        with self._lock:
            self._armed.setdefault(fault, deque()).extend([value] * count)

    def take(self, fault: str) -> float:
        """Return the value of a fault that happens now and spend it; 0 if it is not armed."""
        with self._lock:
            armed = self._armed.get(fault)
            return armed.popleft() if armed else 0.0

    def armed(self) -> dict[str, int]:
        """Return what has not happened yet."""
        with self._lock:
            return {fault: len(values) for fault, values in self._armed.items() if values}
