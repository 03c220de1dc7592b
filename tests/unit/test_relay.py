"""When the relay deletes what it published again: not before the broker kept it, not after a disturbance."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from rmq_txn.errors import BrokerUnavailableError, InvalidMessageError
from rmq_txn.identity import new_txn_id
from rmq_txn.message import Outbound
from rmq_txn.producer.outbox import Attempt, OutboxRow
from rmq_txn.producer.relay import Relay
from rmq_txn.producer.undisturbed_time import UndisturbedTime

SETTLE_SECONDS = 60.0


class Table:
    """FAKE. The outbox: rows that are due, until they are deleted or an attempt says when to look again."""

    def __init__(self, now: Any) -> None:
        self.elected = True
        self.rows: list[OutboxRow] = []
        self.noted: list[Attempt] = []
        self.asked_since: list[int] = []
        self._now = now
        self._not_before: dict[str, float] = {}

    def elect(self, _database_id: str) -> bool:
        """Say what the test wants."""
        return self.elected

    def overdue(self, _age_seconds: float, limit: int, since: int) -> list[OutboxRow]:
        """Return the rows that are due now."""
        self.asked_since.append(since)
        rows = [row for row in self.rows if row.written_at >= since]
        due = [row for row in rows if self._not_before.get(row.txn_id, 0.0) <= self._now()]
        return due[:limit]

    def note(self, attempts: Sequence[Attempt]) -> None:
        """Remember when each row is due again."""
        self.noted += attempts
        for attempt in attempts:
            self._not_before[attempt.row.txn_id] = self._now() + attempt.retry_seconds

    def delete_rows(self, rows: Iterable[OutboxRow]) -> None:
        """Delete."""
        gone = {row.txn_id for row in rows}
        self.rows = [row for row in self.rows if row.txn_id not in gone]


class Broker:
    """FAKE. Takes every message, or fails as it is told for a topic; shows what it is told that it has."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.asked: list[str] = []
        self.problems: dict[str, Exception] = {}
        self.on_send: Any = lambda: None
        self.shown: set[str] = set()
        self.mute: set[str] = set()
        self.looked_for: list[str] = []

    def is_published(self, message: Outbound, message_id: str) -> bool:
        """Say whether it has it, or that it does not tell."""
        self.looked_for.append(message_id)
        if message.topic in self.mute:
            raise BrokerUnavailableError("mute")
        return message_id in self.shown

    def send_plain(self, message: Outbound, message_id: str) -> None:
        """Take it, or not."""
        self.asked.append(message.topic)
        self.on_send()
        if message.topic in self.problems:
            raise self.problems[message.topic]
        self.got.append(message_id)


class Rig:
    """A relay whose clock does what it is told."""

    def __init__(self) -> None:
        self.clock = 1000.0
        self.time = UndisturbedTime(
            pause_seconds=5.0,
            silence_seconds=30.0,
            others=(),
            now=lambda: self.clock,
            wall=lambda: self.clock,
        )
        self.table, self.broker = Table(lambda: self.clock), Broker()
        self.closing = threading.Event()
        self.settled: set[str] = set()
        self.relay = self.make()

    def make(self, *, work_seconds: float = 10.0) -> Relay:
        outbox: Any = self.table
        client: Any = self.broker
        return Relay(
            outbox,
            client,
            self.time,
            database_id="d",
            overdue_seconds=600.0,
            settle_seconds=SETTLE_SECONDS,
            work_seconds=work_seconds,
            closing=self.closing,
            is_settled=lambda row: row.message_id in self.settled,
        )

    def copy(
        self,
        name: str,
        *,
        topic: str = "t",
        properties: bytes = b"{}",
        failures: int = 0,
        written_at: int = 86_400,
    ) -> None:
        """Put a copy into the table that nobody deleted in time."""
        values = (new_txn_id(), 0, name, failures, topic, None, None, 600.0, properties, b"x", written_at)
        self.table.rows.append(OutboxRow(*values))

    def left(self) -> list[str]:
        return [row.message_id for row in self.table.rows]

    def run(self, seconds: float) -> None:
        """Live through some time: a tick a second, work each ten."""
        until = self.clock + seconds
        while self.clock < until:
            self.clock += 1.0
            self.time.tick()
            if self.clock % 10 == 0:
                self.relay.work()


@pytest.fixture
def rig() -> Rig:
    """Return a rig that has been at work for a while."""
    rig = Rig()
    rig.run(20.0)
    return rig


def test_a_copy_stays_until_the_broker_has_had_time_to_keep_what_it_took(rig: Rig) -> None:
    """A broker that crashes within a minute may lose it: then the copy is all there is."""
    rig.copy("m")
    rig.relay.work()
    assert rig.broker.got == ["m"]
    rig.run(SETTLE_SECONDS)
    assert rig.left() == ["m"]
    rig.run(20.0)
    assert (rig.left(), rig.broker.got) == ([], ["m"])


def test_what_was_published_before_a_disturbance_is_published_once_more_and_then_deleted(rig: Rig) -> None:
    """A broker that did not answer meanwhile may have crashed with what it took."""
    rig.copy("m")
    rig.relay.work()
    rig.run(30.0)
    rig.time.disturb("no answer of the broker")
    rig.run(SETTLE_SECONDS)
    assert rig.left() == ["m"]
    rig.run(100.0)
    assert rig.broker.got == ["m", "m"]
    rig.run(SETTLE_SECONDS + 20.0)
    assert (rig.left(), rig.broker.got) == ([], ["m", "m"])


def test_a_pause_that_only_the_relay_itself_notices_keeps_the_copy(rig: Rig) -> None:
    """It looks at the clock before it deletes: the thread that ticks may wake later."""
    rig.copy("m")
    rig.relay.work()
    rig.clock += 2 * SETTLE_SECONDS
    rig.relay.work()
    assert rig.left() == ["m"]


def test_only_the_elected_relay_publishes(rig: Rig) -> None:
    """The others look again in the next round."""
    rig.copy("m")
    rig.table.elected = False
    rig.relay.work()
    assert rig.broker.got == []
    rig.table.elected = True
    rig.relay.work()
    assert rig.broker.got == ["m"]


def test_a_relay_that_is_no_longer_elected_deletes_what_it_published(rig: Rig) -> None:
    """Nobody else knows that the broker has it; the other would publish it once more."""
    rig.copy("m")
    rig.relay.work()
    rig.table.elected = False
    rig.run(SETTLE_SECONDS + 20.0)
    assert (rig.left(), rig.broker.got) == ([], ["m"])


def test_a_topic_without_a_broker_is_tried_once_a_page_and_holds_up_no_other(rig: Rig) -> None:
    """Else each of its rows would wait for the same timeout."""
    rig.broker.problems["away"] = BrokerUnavailableError("nobody")
    for n in range(5):
        rig.copy(f"away-{n}", topic="away")
    rig.copy("sound")
    rig.relay.work()
    assert rig.broker.asked == ["away", "t"]
    assert rig.broker.got == ["sound"]
    assert [attempt.failed for attempt in rig.table.noted] == [True] * 5 + [False]


def test_a_message_that_is_refused_takes_no_other_of_its_topic_with_it(rig: Rig) -> None:
    """Damaged, or refused by the broker: that is the matter of one message."""
    rig.copy("damaged", properties=b"[1]")
    rig.broker.problems["picky"] = InvalidMessageError("too large")
    rig.copy("refused-1", topic="picky")
    rig.copy("refused-2", topic="picky")
    rig.copy("sound")
    rig.relay.work()
    assert rig.broker.asked == ["picky", "picky", "t"]
    assert rig.broker.got == ["sound"]


@pytest.mark.parametrize(
    ("problem", "longest_seconds"),
    [(BrokerUnavailableError("nobody"), 300.0), (InvalidMessageError("too large"), 3600.0)],
    ids=["away", "refused"],
)
def test_what_fails_is_tried_again_with_growing_pauses_that_have_a_bound(
    rig: Rig, problem: Exception, longest_seconds: float
) -> None:
    """A broker that comes back is noticed within five minutes, whatever was before."""
    rig.broker.problems["t"] = problem
    pauses = []
    for failures in (0, 1, 2, 5, 60):
        rig.table.rows.clear()
        rig.copy("m", failures=failures)
        rig.relay.work()
        pauses.append(rig.table.noted[-1].retry_seconds)
    assert pauses[:3] == [30.0, 60.0, 120.0]
    assert pauses[4] == longest_seconds
    assert pauses == sorted(pauses)


def test_a_round_that_takes_long_stops_and_what_was_published_is_noted(rig: Rig) -> None:
    """The same thread deletes, counts and asks the brokers; the rest comes in the next round."""
    for n in range(5):
        rig.copy(f"m{n}")

    def slow() -> None:
        rig.clock += 4.0

    rig.broker.on_send = slow
    rig.relay.work()
    assert rig.broker.got == ["m0", "m1", "m2"]
    assert [attempt.row.message_id for attempt in rig.table.noted] == ["m0", "m1", "m2"]
    rig.relay.work()
    assert rig.broker.got == ["m0", "m1", "m2", "m3", "m4"]


def test_a_closing_producer_publishes_no_more(rig: Rig) -> None:
    """The next relay takes the rest; what was published is noted."""
    for n in range(3):
        rig.copy(f"m{n}")
    rig.broker.on_send = rig.closing.set
    rig.relay.work()
    assert rig.broker.got == ["m0"]
    assert len(rig.table.noted) == 1


def test_a_long_page_does_not_look_like_a_process_that_stood_still(rig: Rig) -> None:
    """Each attempt may take some seconds; the clock is looked at between them."""
    for n in range(4):
        rig.copy(f"m{n}")

    def slow() -> None:
        rig.clock += 3.0

    before = rig.time.tick()
    rig.broker.on_send = slow
    rig.relay.work()
    assert rig.time.tick() == before


def test_a_published_row_is_left_alone_by_another_relay_until_it_is_deleted(rig: Rig) -> None:
    """And not for ever: if this one dies before that, another one publishes it once more."""
    rig.copy("m", properties=json.dumps({}).encode())
    rig.relay.work()
    other = rig.make()
    rig.clock += SETTLE_SECONDS + 20.0
    other.work()
    assert rig.broker.got == ["m"]
    rig.clock += SETTLE_SECONDS + 20.0
    other.work()
    assert rig.broker.got == ["m", "m"]


def test_what_the_broker_surely_has_is_deleted_and_not_published_again(rig: Rig) -> None:
    """More than a page of it, and the others are published all the same."""
    for number in range(40):
        rig.copy(f"M{number}")
    rig.settled = {f"M{number}" for number in range(40) if number % 4}
    rig.relay.work()
    others = [f"M{number}" for number in range(0, 40, 4)]
    assert rig.broker.got == others
    assert rig.left() == others


def test_a_round_does_not_walk_again_past_what_it_published_and_the_next_one_begins_anew(rig: Rig) -> None:
    """Those rows stay for a while; with many of them the walk took longer than to publish."""
    for number in range(40):
        rig.copy(f"M{number}", written_at=86_400 + number)
    rig.table.asked_since.clear()
    rig.relay.work()
    rig.relay.work()
    assert rig.broker.got == [f"M{number}" for number in range(40)]
    assert rig.table.asked_since == [86_400, 86_415, 86_431, 86_439, 86_400]


@pytest.mark.parametrize(
    ("properties", "owner"),
    [
        (b'{"rmq_txn_owner": "g@d"}', "g@d"),
        (b"{}", None),
        (b'{"rmq_txn_owner": 7}', None),
        (b"no json", None),
        (b"[]", None),
    ],
)
def test_a_row_names_who_published_it(properties: bytes, owner: str | None) -> None:
    """What has no owner, or is damaged, is nobody's."""
    assert OutboxRow(new_txn_id(), 0, "M", 0, "t", None, None, 0.0, properties, b"x").owner == owner


def test_what_consumers_see_is_not_published_again_and_deleted_as_if_it_had_been(rig: Rig) -> None:
    """After a deployment nobody knows what the broker has; but it can be asked."""
    rig.broker.shown = {"there"}
    rig.copy("there")
    rig.copy("lost")
    rig.relay.work()
    assert rig.broker.got == ["lost"]
    assert [(attempt.row.message_id, attempt.was_there) for attempt in rig.table.noted] == [
        ("there", True),
        ("lost", False),
    ]
    rig.run(SETTLE_SECONDS)
    assert rig.left() == ["there", "lost"]
    rig.run(20.0)
    assert (rig.left(), rig.broker.got) == ([], ["lost"])


def test_what_was_shown_before_the_broker_crashed_is_looked_for_again(rig: Rig) -> None:
    """It may have come a moment before, by a late verdict, and not be on the disk."""
    rig.broker.shown = {"m"}
    rig.copy("m")
    rig.relay.work()
    rig.time.disturb("no answer of the broker")
    rig.broker.shown = set()
    rig.run(300.0)
    assert (rig.left(), rig.broker.got) == ([], ["m"])


def test_where_brokers_do_not_tell_all_is_published_and_they_are_asked_once_a_round(rig: Rig) -> None:
    """Each question may run into a timeout; other topics are not concerned."""
    rig.broker.mute = {"silent"}
    rig.broker.shown = {"c"}
    rig.copy("a", topic="silent")
    rig.copy("b", topic="silent")
    rig.copy("c")
    rig.relay.work()
    assert rig.broker.got == ["a", "b"]
    assert rig.broker.looked_for == ["a", "c"]
    rig.copy("d", topic="silent")
    rig.relay.work()
    assert rig.broker.looked_for == ["a", "c", "d"]
