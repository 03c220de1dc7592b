"""
Two clocks: this machine's since boot, which never jumps, and the database's, by which ages are judged.

Machines of one service disagree; the database is the one that all of them ask anyway. So ids and
ages go by its clock, and a machine that is days wrong decides nothing (docs/decisions/0031).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone

_STEP_SECONDS = 5.0
SKEW_LIMIT_SECONDS = 60.0
"""From here on health speaks of it; log lines and times of birth are wrong by as much."""


def boot_seconds() -> float:
    """Return the monotonic clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class DatabaseClock:
    """
    The database's clock as of its last answer, carried on by the clock since boot. Thread-safe.

    Right to about the time that the question took. Until the database was asked: this machine's.

    Args:
        now, wall: the clocks of this machine.

    Attributes:
        steps: how often it was found set, by more than 5 s, since it was first asked: as by a person, or
            by a failover to a machine with another time.
    """

    def __init__(
        self, now: Callable[[], float] = boot_seconds, wall: Callable[[], float] = time.time
    ) -> None:
        self._now = now
        self._wall = wall
        self._reading = now(), wall()  # one value: it is read by other threads
        self._asked = False
        self.steps = 0

    def set(self, unix_seconds: float) -> None:
        """Take note of what the database's clock says now."""
        if self._asked and abs(unix_seconds - self.now()) > _STEP_SECONDS:
            self.steps += 1
        self._asked = True
        self._reading = self._now(), unix_seconds

    def now(self) -> float:
        """Return Unix seconds by the database's clock."""
        read_at, unix_seconds = self._reading
        return unix_seconds + self._now() - read_at

    def skew_seconds(self) -> float:
        """Return how far this machine's wall clock is ahead of the database's; negative: behind."""
        return self._wall() - self.now()


def shown(seconds: float) -> str:
    """Return Unix seconds as people read them, UTC; what no calendar has as a number."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} s after 1970"
