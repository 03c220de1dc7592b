"""How a consumer is: what its deliveries met, noted by them, and what its upkeep saw; asks nobody."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_REMEMBERED_SECONDS = 2 * 3600.0
"""The broker's longest pause between two deliveries: what nobody handles is met again within it."""
_CLOCK_TOLD_EACH_SECONDS = 600.0
_MOST_TOLD = 10


@dataclass(frozen=True, slots=True)
class ConsumerHealth:
    """
    How a consumer is, by its own deliveries now, and by its last look at brokers and tables.

    Attributes:
        held: deliveries that wait for the database to be there, or to accept writes; no attempt is spent.
        problems: a sentence for each thing that somebody has to look at; empty is healthy.
        oldest_held_seconds: for how long the oldest of them waits; 0 if there is none.
        registered: the brokers of all topics know this consumer, so they deliver to it.
        lag: messages that wait for the group on the brokers, by the offsets that it committed; None
            if it is not known.
        failing: messages of the group whose handler failed, and that are delivered again.
        parked: messages of the group that failed for good and wait for a person.
        duplicates: deliveries that this consumer skipped since its start, for they were handled before.
        database_answers: the last look could read our tables.
    """

    held: int
    problems: tuple[str, ...]
    oldest_held_seconds: float = 0.0
    registered: bool = False
    lag: int | None = None
    failing: int = 0
    parked: int = 0
    duplicates: int = 0
    database_answers: bool = True


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look at brokers and tables found; see `ConsumerHealth`."""

    registered: bool = False
    lag: int | None = None
    failing: int = 0
    parked: int = 0
    problems: tuple[str, ...] = ()
    database_answers: bool = True


class HealthNotes:
    """
    What the deliveries of one consumer note of themselves. Thread-safe; does no I/O.

    Attributes:
        stale: set when a message began to fail, was parked or was replayed: worth a look at the tables.
    """

    def __init__(self) -> None:
        self.stale = threading.Event()
        self._lock = threading.Lock()
        self._held: dict[object, tuple[str, float]] = {}
        self._unhandled: dict[tuple[str, str | None], tuple[int, float]] = {}
        self._clocks: dict[str, tuple[str, float, float]] = {}
        self._seen = Seen()
        self._duplicates = 0

    @contextmanager
    def holding(self, why: str) -> Iterator[None]:
        """Count the delivery of this thread as held while the block runs."""
        token = object()
        with self._lock:
            self._held[token] = why, time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                del self._held[token]

    def unhandled(self, topic: str, tag: str | None) -> None:
        """Note a message for which this process has no handler."""
        with self._lock:
            count, _ = self._unhandled.get((topic, tag), (0, 0.0))
            self._unhandled[topic, tag] = count + 1, time.monotonic()

    def duplicate(self) -> None:
        """Note a delivery that was skipped."""
        with self._lock:
            self._duplicates += 1

    def clock(self, whose: str, problem: str) -> bool:
        """Note that a clock is wrong; return whether that is worth a log line again."""
        now = time.monotonic()
        with self._lock:
            _, _, told = self._clocks.get(whose, ("", now, -_CLOCK_TOLD_EACH_SECONDS))
            worth = now - told >= _CLOCK_TOLD_EACH_SECONDS
            self._clocks[whose] = problem, now, now if worth else told
        return worth

    def look(self, seen: Seen) -> None:
        """Note what the upkeep saw."""
        with self._lock:
            self._seen = seen

    def read(self) -> ConsumerHealth:
        """Return what there is to say now."""
        now = time.monotonic()
        since, since_clocks = now - _REMEMBERED_SECONDS, now - _CLOCK_TOLD_EACH_SECONDS
        with self._lock:
            seen, duplicates = self._seen, self._duplicates
            held = Counter(why for why, _ in self._held.values())
            oldest = max((now - since for _, since in self._held.values()), default=0.0)
            unhandled = {key: count for key, (count, last) in self._unhandled.items() if last > since}
            clocks = [text for text, seen, _ in self._clocks.values() if seen > since_clocks]
        problems = [f"{count} deliveries are held: {why}" for why, count in held.items()]
        for (topic, tag), count in list(unhandled.items())[:_MOST_TOLD]:
            named = "no tag" if tag is None else f"tag {tag!r:.80}"
            problems.append(
                f"no handler for topic {topic!r:.160} with {named}: {count} deliveries given back "
                "to the broker; add a handler, or say ignores(topic, tag)"
            )
        if len(unhandled) > _MOST_TOLD:
            problems.append(f"no handler for {len(unhandled) - _MOST_TOLD} more topics and tags")
        return ConsumerHealth(
            held=sum(held.values()),
            problems=(*problems, *clocks, *seen.problems),
            oldest_held_seconds=oldest,
            registered=seen.registered,
            lag=seen.lag,
            failing=seen.failing,
            parked=seen.parked,
            duplicates=duplicates,
            database_answers=seen.database_answers,
        )
