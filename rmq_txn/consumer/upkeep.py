"""
What a started consumer looks at beside its deliveries, so that somebody hears of what they can't know.

One daemon thread a consumer. It asks the brokers whether they know it and how many messages wait, and
counts what fails and what is parked. It decides nothing: deliveries go on whatever it finds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from rmq_txn.clock import shown
from rmq_txn.consumer import parking
from rmq_txn.consumer.health import HealthNotes, Seen
from rmq_txn.database import Database
from rmq_txn.database.sideline import Sideline
from rmq_txn.errors import BrokerUnavailableError, RmqTxnError
from rmq_txn.logs import get_logger
from rmq_txn.transport import ConsumerTransport, Lag, TagFilter

log = get_logger("consumer")

ROUND_SECONDS = 15.0
_SOONEST_SECONDS = 1.0
_UNKNOWN_SECONDS = 40.0
"""The native client tells brokers of itself each 30 s; one that just came back has not heard yet."""
_STUCK_SECONDS = 120.0
"""A handler may take a minute, and offsets are committed late; longer than that somebody should look."""


class Upkeep:
    """
    The thread. Started and closed once; thread-safe.

    Args:
        notes: told what was seen.
        now: the clock by which a group is called stuck, seconds.
    """

    def __init__(
        self,
        database: Database,
        group: str,
        topics: Sequence[str],
        client: ConsumerTransport,
        notes: HealthNotes,
        *,
        round_seconds: float = ROUND_SECONDS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._group = group
        self._topics = topics
        self._client = client
        self._notes = notes
        self._round_seconds = round_seconds
        self._now = now
        self._moved: tuple[int, float] | None = None
        self._unknown_since: float | None = None
        self._filters: frozenset[TagFilter] = frozenset()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rmq_txn consumer upkeep", daemon=True)

    def start(self) -> None:
        """Begin with a look at once: a service that says how it is should know it."""
        self._thread.start()

    def close(self, timeout_seconds: float) -> None:
        """Stop after the look that runs now. Idempotent; also before `start`."""
        self._closing.set()
        self._notes.stale.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        with closing(self._database.sideline("parked messages")) as sideline:
            while True:
                self._notes.stale.clear()
                try:
                    self._notes.look(self.look(sideline))
                except Exception:  # the boundary of the thread: a cause of ours, told each time
                    log.exception("the look at brokers and tables failed")
                # A group in which everything fails is looked at once a second, not once a failure.
                if self._closing.wait(min(_SOONEST_SECONDS, self._round_seconds)):
                    return
                self._notes.stale.wait(self._round_seconds)
                if self._closing.is_set():
                    return

    def look(self, sideline: Sideline) -> Seen:
        """Ask brokers and database once. What can't be asked is a problem, and no answer."""
        problems: list[str] = []
        registered, lag = False, None
        try:
            known = all(self._client.is_registered(topic) for topic in self._topics)
            registered, lag, filters = known, self._client.lag(), self._client.filters()
        except BrokerUnavailableError as error:
            problems.append(f"the brokers can't be asked: {error}")
        else:
            problems += self._of_brokers(registered, lag)
            problems += self._of_filters(filters)
        failing = parked = parking.ParkedCount()
        database_answers = True
        try:
            with sideline.session() as session:
                failing, parked = parking.count(session, self._group)
        except RmqTxnError as error:
            database_answers = False
            problems.append(str(error))
        problems += self._of_messages(failing, parked)
        return Seen(
            registered=registered,
            lag=None if lag is None else lag.messages,
            failing=failing.messages,
            parked=parked.messages,
            problems=tuple(problems),
            database_answers=database_answers,
        )

    def _of_brokers(self, registered: bool, lag: Lag) -> Iterator[str]:
        now = self._now()
        self._unknown_since = None if registered else self._unknown_since or now
        if self._unknown_since is not None and now - self._unknown_since >= _UNKNOWN_SECONDS:
            yield "a broker does not know this consumer, it would not deliver to it"
        if self._moved is None or self._moved[0] != lag.position or not lag.messages:
            self._moved = lag.position, now
        stands = now - self._moved[1]
        if stands >= _STUCK_SECONDS:
            yield (
                f"{lag.messages} messages wait for group {self._group}, and it has acknowledged none for "
                f"{stands:.0f} s: a handler hangs, every member is held up, or a message kills the client "
                "(rmq-txn offsets show)"
            )

    def _of_filters(self, filters: Sequence[TagFilter]) -> Iterator[str]:
        for item in filters:
            problem = (
                f"member {item.member} ({item.language}) of group {self._group} wants only "
                f"{item.expression!r} of topic {item.topic!r}, and what else comes to its queues is lost to "
                "the whole group; let it subscribe to '*', or give it a group of its own"
            )
            if item not in self._filters:
                log.error("a member of the group filters", problem=problem)
            yield problem
        self._filters = frozenset(filters)

    def _of_messages(self, failing: parking.ParkedCount, parked: parking.ParkedCount) -> Iterator[str]:
        if failing.messages:
            yield (
                f"{failing.messages} messages of group {self._group} fail and are delivered again, the "
                f"oldest since {shown(failing.since)}: rmq-txn parked list says why"
            )
        if parked.messages:
            yield (
                f"{parked.messages} messages of group {self._group} are parked, the oldest since "
                f"{shown(parked.since)}: mend the cause, then rmq-txn parked replay, or drop"
            )
