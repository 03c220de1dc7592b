"""The broker's time: it stands still until it is told to move, so that hours pass in a test at once."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable

Action = Callable[[], None]


class VirtualClock:
    """
    Seconds since the broker was made, and what is due when. Not thread-safe: the store's lock guards it.

    Args:
        speed: seconds that pass by themselves in each second of this machine; 0: none.
    """

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._moved = 0.0
        self._made = time.monotonic()
        self._due: list[tuple[float, int, Action]] = []
        self._numbers = itertools.count()

    @property
    def runs(self) -> bool:
        """Whether time passes by itself."""
        return self._speed > 0

    def now(self) -> float:
        """Return the seconds that have passed."""
        if not self._speed:
            return self._moved
        return self._moved + (time.monotonic() - self._made) * self._speed

    def move_to(self, seconds: float) -> None:
        """Let it be that late; it never goes back."""
        self._moved += max(0.0, seconds - self.now())

    def after(self, seconds: float, action: Action) -> float:
        """Let something happen later; return when."""
        when = self.now() + seconds
        heapq.heappush(self._due, (when, next(self._numbers), action))
        return when

    def next_due(self) -> float | None:
        """Return when the next thing happens, if any."""
        return self._due[0][0] if self._due else None

    def take_due(self) -> list[Action]:
        """Take out what is due by now, in order."""
        found: list[Action] = []
        while self._due and self._due[0][0] <= self.now():
            found.append(heapq.heappop(self._due)[2])
        return found

    def real_seconds_to_next(self) -> float | None:
        """Return how long this machine waits for the next thing; None: it never comes by itself."""
        due = self.next_due()
        if due is None or not self._speed:
            return None
        return max(0.0, due - self.now()) / self._speed
