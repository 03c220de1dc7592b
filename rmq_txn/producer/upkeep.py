"""
What a started producer does beside its transactions: keep the outbox small, and know how it is.

One daemon thread a producer. It counts undisturbed time, asks the brokers who is registered, writes
its own row and reads those of its group, deletes the copies of messages that arrived, and publishes
again what a broker gave up on.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields

from rmq_txn.clock import SKEW_LIMIT_SECONDS, DatabaseClock
from rmq_txn.database import Database
from rmq_txn.errors import BrokerUnavailableError, RmqTxnError
from rmq_txn.logs import get_logger
from rmq_txn.producer.checkback import Oracle
from rmq_txn.producer.health import ROWS_COUNTED_BY_ALL, ProducerHealth
from rmq_txn.producer.outbox import (
    ALARM_AFTER_BUDGET_SECONDS,
    ALL_ROWS,
    Outbox,
    OutboxCount,
    OutboxRow,
)
from rmq_txn.producer.presence import Presence
from rmq_txn.producer.relay import Relay
from rmq_txn.producer.undisturbed_time import SentVerdicts, UndisturbedTime
from rmq_txn.producer.witness import Witness
from rmq_txn.quantities import positive_number
from rmq_txn.transport import ProducerTransport

log = get_logger("outbox")

_TICK_SECONDS = 1.0
_BROKER, _DATABASE = "broker", "database"
_BROKER_LEFT_SECONDS = 60.0
"""Native clients ask for routes each 30 s: until all of them know that a broker left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxTimes:
    """
    The durations behind the outbox; shorter ones are for tests.

    Attributes:
        relay_margin_seconds: how much older a row must be before the relay publishes it again.
        settle_seconds: between publishing again and deleting.
        silence_seconds: brokers or database silent for longer disturb.
        pause_seconds: a gap of this process that is longer disturbs.
        round_seconds: pause between two looks at brokers and tables.
    """

    relay_margin_seconds: float = 120.0
    settle_seconds: float = 60.0
    silence_seconds: float = 30.0
    pause_seconds: float = 5.0
    round_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what is no duration."""
        for item in fields(self):
            positive_number(item.name, getattr(self, item.name))

    @property
    def fresh_seconds(self) -> float:
        """
        How old the row of a producer of the group may be that is well; copies are kept so much longer.

        Well below the margin, so that owners delete before the relay publishes again.
        """
        return min(self.silence_seconds + self.round_seconds, self.relay_margin_seconds / 3)


def undisturbed_time(times: OutboxTimes) -> UndisturbedTime:
    """Make the time that an `Upkeep` counts."""
    return UndisturbedTime(
        pause_seconds=times.pause_seconds,
        silence_seconds=times.silence_seconds,
        others=(_BROKER, _DATABASE),
    )


class Upkeep:
    """The daemon thread of one producer. Thread-safe; started and closed once."""

    def __init__(
        self,
        database: Database,
        database_id: str,
        group: str,
        topics: Sequence[str],
        clock: DatabaseClock,
        check_budget_seconds: float,
        times: OutboxTimes,
        undisturbed: UndisturbedTime,
        verdicts: SentVerdicts,
        oracle: Oracle,
        client: ProducerTransport,
    ) -> None:
        self._topics = topics
        self._clock = clock
        self._budget_seconds = check_budget_seconds
        self._times = times
        self._undisturbed = undisturbed
        self._verdicts = verdicts
        self._oracle = oracle
        self._client = client
        self._closing = threading.Event()
        self._outbox = Outbox(database)
        self._presence = Presence(
            self._outbox,
            group,
            undisturbed,
            clock,
            fresh_seconds=times.fresh_seconds,
            check_budget_seconds=check_budget_seconds,
        )
        self._witness = Witness(
            undisturbed,
            clock,
            check_budget_seconds=check_budget_seconds,
            longest_seconds=oracle.longest_seconds,
        )
        self._relay = Relay(
            self._outbox,
            client,
            undisturbed,
            database_id=database_id,
            overdue_seconds=check_budget_seconds + times.relay_margin_seconds,
            settle_seconds=times.settle_seconds,
            work_seconds=times.round_seconds,
            closing=self._closing,
            is_settled=self._is_settled,
        )
        self._count = OutboxCount(0, 0.0)
        self._in_trouble: dict[str, str] = {}
        self._brokers: dict[str, float] = {}
        self._checks_seen = 0, 0
        self._foreign_at = self._forged_at = -math.inf
        self._thread = threading.Thread(target=self._run, name="rmq_txn outbox", daemon=True)

    def announce(self, instance: str) -> None:
        """See `Presence.announce`; before `start`, on the thread that calls it."""
        self._presence.announce(instance)

    def start(self) -> None:
        """Begin; the client was announced, and runs."""
        self._undisturbed.begin()
        self._thread.start()

    def close(self, timeout_seconds: float) -> None:
        """Say good-bye, and stop after the step that runs now; a step is bounded to some seconds."""
        self._closing.set()
        if self._thread.ident is None:  # not started: the client failed to, or Ctrl-C came before
            self._end()
        elif self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _end(self) -> None:
        # Before the client stops answering. If it can't be said, the others find out by themselves.
        with suppress(RmqTxnError):
            self._presence.say_goodbye()
        self._outbox.close()

    def health(self) -> ProducerHealth:
        """Return what the last round found."""
        registered = _BROKER not in self._in_trouble
        skew = self._clock.skew_seconds()
        return ProducerHealth(
            registered=registered,
            outbox_rows=self._count.rows,
            oldest_row_seconds=self._count.oldest_seconds,
            foreign_checks=self._oracle.foreign_checks,
            problems=tuple(self._problems(skew)),
            forged_checks=self._oracle.forged_checks,
            clock_skew_seconds=skew,
            database_answers=_DATABASE not in self._in_trouble,
            suspects=len(self._presence.problems),
        )

    def _problems(self, skew: float) -> Iterator[str]:
        now = self._undisturbed.now()
        alarm_seconds = self._budget_seconds + ALARM_AFTER_BUDGET_SECONDS
        trouble = self._in_trouble.copy()  # of another thread
        if _BROKER in trouble:
            yield "the brokers don't know this producer or don't answer"
        if _DATABASE in trouble:
            yield "the outbox can't be worked on"
        yield from trouble.values()
        if self._count.oldest_seconds > alarm_seconds:
            yield (
                f"the oldest outbox row is {self._count.oldest_seconds:.0f} s old, the limit is "
                f"{alarm_seconds:.0f} s; the log says why it is not published again"
            )
        if now - self._foreign_at < self._budget_seconds:
            yield "another service shares this producer group; give each its own group"
        if now - self._forged_at < self._budget_seconds:
            yield (
                f"{self._oracle.forged_checks} check-backs were about half messages that name this owner "
                "and that it did not sign: somebody else sends to its topics, or a process of an older "
                "version still runs"
            )
        yield from self._presence.problems
        if abs(skew) > SKEW_LIMIT_SECONDS:
            side = "ahead of" if skew > 0 else "behind"
            yield (
                f"the clock of this machine is {abs(skew):.0f} s {side} that of the database, the limit is "
                f"{SKEW_LIMIT_SECONDS:.0f} s: log lines and times of birth are wrong by as much, ids and "
                "ages go by the database; set one of the clocks right"
            )

    def _run(self) -> None:
        try:
            next_round = self._undisturbed.now() + self._times.round_seconds
            while not self._closing.wait(min(_TICK_SECONDS, self._times.round_seconds)):
                self._undisturbed.tick()
                if self._undisturbed.now() >= next_round:
                    self._round()
                    next_round = self._undisturbed.now() + self._times.round_seconds
        finally:
            self._end()

    def _round(self) -> None:
        asked_at, clients = self._undisturbed.now(), None
        with self._step(_BROKER):
            clients = self._ask_brokers()
        self._look_for_strange_checks()
        with self._step(_DATABASE):
            # Without an answer of the brokers the row is written all the same, and nothing is vouched for.
            self._presence.look(clients, asked_at)
            for txn_ids in self._verdicts.settled():
                self._outbox.delete_transactions(txn_ids)
            is_relay = self._relay.work()
            since = self._undisturbed.tick()
            self._count = self._outbox.count(ALL_ROWS if is_relay else ROWS_COUNTED_BY_ALL)
            self._witness.look(since, self._count.newest)

    def _is_settled(self, row: OutboxRow) -> bool:
        """Of another group, or of a topic whose brokers were not asked, nothing is known here."""
        ours = row.topic in self._topics and row.owner == self._oracle.owner.name
        return ours and self._witness.saw(row.txn_id, row.age_seconds)

    def _ask_brokers(self) -> frozenset[str]:
        """
        Ask each broker whom it would ask; return all of them. This very client must be among them.

        A half message rolled back would prove less, as a broker takes one from clients that it
        would not ask; and it would be stored.
        """
        clients: set[str] = set()
        brokers: set[str] = set()
        for topic in self._topics:
            for broker, known in self._client.registered_clients(topic).items():
                if not any(client.endswith(self._client.instance) for client in known):
                    raise BrokerUnavailableError(
                        f"broker {broker} of topic {topic!r} does not know this producer"
                    )
                clients |= known
                brokers.add(broker)
            self._undisturbed.tick()
        self._look_for_lost_brokers(brokers)
        return frozenset(clients)

    def _look_for_lost_brokers(self, brokers: set[str]) -> None:
        """A broker that left the route answers nobody, and asks no more until it is back."""
        now = self._undisturbed.now()
        self._brokers |= dict.fromkeys(brokers, now)
        for broker, seen in list(self._brokers.items()):
            if broker not in brokers:
                self._undisturbed.disturb(f"broker {broker} left the route")
                if now - seen > _BROKER_LEFT_SECONDS:
                    del self._brokers[broker]

    def _look_for_strange_checks(self) -> None:
        """For health. They disturb nobody: who shares our group is seen among the registered clients."""
        foreign, forged = self._checks_seen
        self._checks_seen = self._oracle.foreign_checks, self._oracle.forged_checks
        if foreign != self._checks_seen[0]:
            self._foreign_at = self._undisturbed.now()
        if forged != self._checks_seen[1]:
            self._forged_at = self._undisturbed.now()

    @contextmanager
    def _step(self, who: str) -> Iterator[None]:
        """Note whether `who` answered; log the first failure and the recovery, not what is between."""
        try:
            yield
        except Exception as error:  # the boundary of the thread: logged, and done again later
            before, self._in_trouble[who] = self._in_trouble.get(who), str(error)
            if before is None:
                ours = isinstance(error, RmqTxnError)
                log.warning("the outbox waits", for_=who, error=str(error), exc_info=not ours)
        else:
            if self._in_trouble.pop(who, None) is not None:
                log.info("the outbox goes on", after=who)
            self._undisturbed.heard(who)
