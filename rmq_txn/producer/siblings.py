"""
The rest of a producer group: may this process believe that its answers, too, were true ones?

A broker asks any client of the group about a half message. One that can't reach the database answers
UNKNOWN, and uses up the questions that another one could have answered. So each producer writes a row,
each round, that says whether it is well, and compares the rows of the others with the clients that
the brokers name. No I/O here; docs/decisions/0029.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class ProducerRow:
    """What one producer of the group says about itself."""

    instance: str
    """How its client id ends."""
    age_seconds: float
    """Since it said so, by the database's clock."""
    closing: bool
    disturbances: int


@dataclass(frozen=True, slots=True)
class Look:
    """
    What one look at the group found.

    Attributes:
        suspects: ids of clients that may answer anything; as long as there is one, no verdict is trusted.
        problems: a sentence about each of them.
        events: what happened since the last look; no verdict of before is trusted.
    """

    suspects: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    events: tuple[str, ...] = ()


class Siblings:
    """
    The rule. For one thread.

    Args:
        fresh_seconds: an older row is of a producer that can't write, or does not run.
        check_budget_seconds: for how long a broker goes on asking.
    """

    def __init__(self, fresh_seconds: float, check_budget_seconds: float, now: Callable[[], float]) -> None:
        self._fresh_seconds = fresh_seconds
        self._budget_seconds = check_budget_seconds
        self._now = now
        self._told: dict[str, int] | None = None
        self._fresh: set[str] = set()
        self._vanished: deque[float] = deque()

    def look(self, own: str, rows: Sequence[ProducerRow], clients: Iterable[str]) -> Look:
        """
        Compare what the others say with whom the brokers name.

        Args:
            own: the instance of this process.
            rows: of the whole group, read after the brokers were asked: a client writes before it
                registers.
            clients: the ids of all clients that the brokers would ask.
        """
        others = {row.instance: row for row in rows if row.instance != own}
        problems: dict[str, str] = {}
        named: set[str] = set()
        for client in sorted(clients):
            if client.endswith(own):
                continue
            row = next((row for name, row in others.items() if client.endswith(name)), None)
            if row is None:
                problems[client] = (
                    f"client {client} is registered for this producer group and has no row in "
                    "rmq_txn_producers: another service, another language, an older version, or a "
                    "database of its own; give each service and database its own group"
                )
                continue
            named.add(row.instance)
            if row.age_seconds > self._fresh_seconds:
                did = "said that it closes" if row.closing else "last wrote to the database"
                problems[client] = (
                    f"client {client} of this producer group is asked by brokers and {did} "
                    f"{row.age_seconds:.0f} s ago, allowed is {self._fresh_seconds:g} s: it is cut off, "
                    "stands still, or was left open; look at that process, or end it"
                )
        events = [*self._disturbed(others), *self._lost(others, named)]
        self._told = {name: row.disturbances for name, row in others.items()}
        return Look(tuple(problems), tuple(problems.values()), tuple(events))

    def _disturbed(self, others: dict[str, ProducerRow]) -> list[str]:
        """Find who says that it could not vouch for its answers; a new one begins with 0."""
        if self._told is None:
            return []  # the first look, before the first transaction
        worse = [name for name, row in others.items() if row.disturbances != self._told.get(name, 0)]
        return [f"producer {name} of this group was disturbed" for name in sorted(worse)[:_MOST_NAMED]]

    def _lost(self, others: dict[str, ProducerRow], named: set[str]) -> list[str]:
        """
        Find who went without good-bye, as by kill -9.

        What it answered in its last moments nobody knows, but these are short: only when they add up
        to a quarter of the time in which a broker asks do they count. A crash loop does.
        """
        fresh = {name for name, row in others.items() if row.age_seconds <= self._fresh_seconds}
        now = self._now()
        for name in self._fresh - fresh - named:
            if name not in others or not others[name].closing:
                self._vanished.append(now)
        self._fresh = fresh
        while self._vanished and now - self._vanished[0] > self._budget_seconds + self._fresh_seconds:
            self._vanished.popleft()
        if len(self._vanished) * self._fresh_seconds <= self._budget_seconds / 4:
            return []
        count = len(self._vanished)
        self._vanished.clear()
        return [f"{count} producers of this group ended without good-bye"]
