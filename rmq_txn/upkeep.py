"""
What a started producer does beside its transactions: keep the outbox small, and know how it is.

One daemon thread a producer. It counts undisturbed time, asks the brokers whether they know this
producer, deletes the copies of messages that arrived, and publishes again what a broker gave up on.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

from rmq_txn.checkback import Oracle
from rmq_txn.database import Database
from rmq_txn.errors import BrokerUnavailableError, RmqTxnError, SettingsError
from rmq_txn.logs import get_logger
from rmq_txn.outbox import ALARM_AFTER_BUDGET_SECONDS, Outbox, OutboxCount
from rmq_txn.relay import Relay
from rmq_txn.transport import ProducerTransport
from rmq_txn.undisturbed import SentVerdicts, UndisturbedTime

log = get_logger("outbox")

_TICK_SECONDS = 1.0
_BROKER, _DATABASE = "broker", "database"


def check_duration(name: str, value: object) -> None:
    """Raise `SettingsError` unless `value` is a duration that can be waited for."""
    if isinstance(value, bool) or not (isinstance(value, (int, float)) and 0 < value < math.inf):
        raise SettingsError(f"{name} is {value!r}, allowed is a number of seconds above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxTimes:
    """
    The durations behind the outbox; shorter ones are for tests.

    Attributes:
        relay_margin_seconds: how much older a row must be before the relay publishes it again.
        settle_seconds: between publishing again and deleting.
        silence_seconds: brokers or database silent for longer disturb.
        pause_seconds: a gap of this process that is longer disturbs.
        round_seconds: pause between two looks at brokers and table.
    """

    relay_margin_seconds: float = 120.0
    settle_seconds: float = 60.0
    silence_seconds: float = 30.0
    pause_seconds: float = 5.0
    round_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what is no duration."""
        for item in fields(self):
            check_duration(item.name, getattr(self, item.name))


@dataclass(frozen=True, slots=True)
class ProducerHealth:
    """
    How a producer is, as of its last look, some seconds ago; asks nobody.

    Attributes:
        registered: the brokers of all topics know this producer, so check-backs reach it.
        outbox_rows: copies in the database, of all its producers.
        oldest_row_seconds: age of the oldest, 0 if there is none.
        foreign_checks: questions about half messages of another owner, since the start.
        problems: a sentence for each thing that somebody has to look at; empty is healthy.
    """

    registered: bool
    outbox_rows: int
    oldest_row_seconds: float
    foreign_checks: int
    problems: tuple[str, ...]


class Upkeep:
    """The daemon thread of one producer. Thread-safe; started and closed once."""

    def __init__(
        self,
        database: Database,
        database_id: str,
        client: ProducerTransport,
        oracle: Oracle,
        topics: Sequence[str],
        check_budget_seconds: float,
        times: OutboxTimes,
    ) -> None:
        self._client = client
        self._oracle = oracle
        self._topics = topics
        self._budget_seconds = check_budget_seconds
        self._times = times
        self._closing = threading.Event()
        self._undisturbed = UndisturbedTime(
            pause_seconds=times.pause_seconds,
            silence_seconds=times.silence_seconds,
            others=(_BROKER, _DATABASE),
        )
        self._verdicts = SentVerdicts(self._undisturbed, check_budget_seconds)
        self._outbox = Outbox(database)
        self._relay = Relay(
            self._outbox,
            client,
            self._undisturbed,
            database_id=database_id,
            overdue_seconds=check_budget_seconds + times.relay_margin_seconds,
            settle_seconds=times.settle_seconds,
            work_seconds=times.round_seconds,
            closing=self._closing,
        )
        self._count = OutboxCount(0, 0.0)
        self._in_trouble: set[str] = set()
        self._foreign_checks = 0
        self._foreign_seen = -math.inf
        self._thread = threading.Thread(target=self._run, name="rmq_txn outbox", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, timeout_seconds: float) -> None:
        """Stop after the step that runs now; a step is bounded to some seconds."""
        self._closing.set()
        if self._thread.is_alive():  # not if Ctrl-C came before its start
            self._thread.join(timeout_seconds)

    def now(self) -> float:
        """Return the time to give to `verdict_sent`, before the first half message."""
        return self._undisturbed.now()

    def verdict_sent(self, txn_id: str, began: float) -> None:
        """Take care of the copies of a transaction that committed, from now on."""
        self._verdicts.add(txn_id, began)

    def health(self) -> ProducerHealth:
        """Return what the last round found."""
        registered = _BROKER not in self._in_trouble
        alarm_seconds = self._budget_seconds + ALARM_AFTER_BUDGET_SECONDS
        problems = []
        if not registered:
            problems.append("the brokers don't know this producer or don't answer")
        if _DATABASE in self._in_trouble:
            problems.append("the outbox can't be worked on")
        if self._count.oldest_seconds > alarm_seconds:
            problems.append(
                f"the oldest outbox row is {self._count.oldest_seconds:.0f} s old, the limit is "
                f"{alarm_seconds:.0f} s; the log says why it is not published again"
            )
        if self.now() - self._foreign_seen < self._budget_seconds:
            problems.append("another service shares this producer group; give each its own group")
        return ProducerHealth(
            registered=registered,
            outbox_rows=self._count.rows,
            oldest_row_seconds=self._count.oldest_seconds,
            foreign_checks=self._foreign_checks,
            problems=tuple(problems),
        )

    def _run(self) -> None:
        try:
            next_round = self.now() + self._times.round_seconds
            while not self._closing.wait(min(_TICK_SECONDS, self._times.round_seconds)):
                self._undisturbed.tick()
                if self.now() >= next_round:
                    self._round()
                    next_round = self.now() + self._times.round_seconds
        finally:
            self._outbox.close()

    def _round(self) -> None:
        with self._step(_BROKER):
            self._ask_brokers()
        self._look_for_foreign_checks()
        with self._step(_DATABASE):
            for txn_ids in self._verdicts.settled():
                self._outbox.delete_transactions(txn_ids)
            self._relay.work()
            self._count = self._outbox.count()

    def _ask_brokers(self) -> None:
        """
        Ask whether each broker knows this very client: what check-back needs, and no more.

        A half message rolled back would prove less, as a broker takes one from clients that it
        would not ask; and it would be stored.
        """
        for topic in self._topics:
            if not self._client.is_registered(topic):
                raise BrokerUnavailableError(f"a broker of topic {topic!r} does not know this producer")
            self._undisturbed.tick()

    def _look_for_foreign_checks(self) -> None:
        """Whoever shares our group is asked about our half messages, too, and can't answer."""
        found = self._oracle.foreign_checks
        if found != self._foreign_checks:
            self._foreign_checks = found
            self._foreign_seen = self.now()
            self._undisturbed.disturb("another service shares this producer group")

    @contextmanager
    def _step(self, who: str) -> Iterator[None]:
        """Note whether `who` answered; log the first failure and the recovery, not what is between."""
        try:
            yield
        except Exception as error:  # the boundary of the thread: logged, and done again later
            if who not in self._in_trouble:
                self._in_trouble.add(who)
                ours = isinstance(error, RmqTxnError)
                log.warning("the outbox waits", for_=who, error=str(error), exc_info=not ours)
        else:
            if who in self._in_trouble:
                self._in_trouble.discard(who)
                log.info("the outbox goes on", after=who)
            self._undisturbed.heard(who)
