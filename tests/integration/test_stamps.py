"""Half messages that only look like ours, and some of an older version, on real servers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from devstack import Stack
from rmq_txn import Database, RocketMQ, TransactionProducer, schema
from rmq_txn.identity import PROPERTY_STAMP, PROPERTY_TXN_ID, Owner, new_txn_id, owner_of
from rmq_txn.message import Message, Outbound
from rmq_txn.producer.upkeep import OutboxTimes
from rmq_txn.verdict import Verdict
from tests.kit.rows import rows
from tests.kit.transports import RecordChecks, Wrapped
from tests.kit.wait import until

pytestmark = pytest.mark.servers

FORGED = 20


class Rig:
    """One producer of ours, and a stranger that may write to its topic and asks no questions."""

    def __init__(self, stack: Stack, database: Database, topic: str) -> None:
        self.stack, self.database, self.topic = stack, database, topic
        self.group = f"g-{topic}"
        self.checks = RecordChecks()

    @contextmanager
    def producer(self) -> Iterator[TransactionProducer]:
        """Start ours."""
        producer = TransactionProducer(
            group=self.group,
            broker=Wrapped(RocketMQ(self.stack.name_server), around_check=self.checks),
            database=self.database,
            topics=[self.topic],
            outbox_times=OutboxTimes(round_seconds=0.3, pause_seconds=60.0),
        )
        with producer:
            yield producer

    def send(self, messages: list[Outbound]) -> None:
        """Store half messages in our group, as a client whose verdicts are lost, and leave."""
        stranger = RocketMQ(self.stack.name_server).producer(self.group, lambda _check: Verdict.UNKNOWN)
        stranger.start([self.topic])
        try:
            for message in messages:
                stranger.send_half(message, lambda _id: Verdict.UNKNOWN)
        finally:
            stranger.close(5.0)

    def message(self, stamp: Callable[[str], str] = lambda _txn_id: "") -> Outbound:
        """Make a half message that names our owner."""
        owner = owner_of(self.group, schema.check(self.database).database_id)
        txn_id = new_txn_id()
        return Message(self.topic, {"id": "forged"}).outbound(
            txn_id=txn_id, position=0, owner=owner, stamp=stamp(txn_id)
        )

    def answers(self, message: Outbound) -> list[Verdict]:
        """Return how the check-backs about one half message were answered so far."""
        return self.checks.verdicts(message.properties[PROPERTY_TXN_ID])


@pytest.fixture
def rig(stack: Stack, database: Database, topic: str) -> Rig:
    """Return a rig."""
    return Rig(stack, database, topic)


def test_forged_half_messages_write_no_row_and_disturb_nobody(
    rig: Rig, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With a stamp of a guessed secret, and without one."""
    owner = owner_of(rig.group, schema.check(rig.database).database_id)
    guess = Owner(owner, b"guess")
    forged = [rig.message(lambda txn_id: guess.stamp(txn_id, 0)) for _ in range(FORGED // 2)]
    forged += [rig.message() for _ in range(FORGED // 2)]
    rig.send(forged)
    with caplog.at_level(logging.WARNING, "rmq_txn"), rig.producer() as producer:
        until(lambda: all(map(rig.answers, forged)), "a check-back about each of them", 120)
        until(lambda: "did not sign" in str(producer.health().problems), "health says so")
        assert producer.health().forged_checks >= FORGED
        assert "not trusted" not in caplog.text
    assert {answer for message in forged for answer in rig.answers(message)} == {Verdict.UNKNOWN}
    assert rows(database_url, "SELECT txn_id FROM rmq_txn_log") == []
    assert caplog.text.count("that it did not sign, answered unknown") <= 2


def test_a_half_message_of_the_older_version_is_decided_for_a_week_after_the_upgrade(
    rig: Rig, database_url: str
) -> None:
    """A process that was started before goes on, and its lost verdicts are asked of new ones."""
    with rig.database.transaction() as txn:
        txn.execute("UPDATE rmq_txn_identity SET upgraded_at = NOW() - INTERVAL 6 DAY")
    old = rig.message()
    assert PROPERTY_STAMP not in old.properties
    rig.send([old])
    with rig.producer():
        until(lambda: rig.answers(old), "its check-back", 120)
    assert rig.answers(old)[0] is Verdict.ROLLBACK
    assert len(rows(database_url, "SELECT txn_id FROM rmq_txn_log")) == 1


def test_what_is_sent_and_what_is_copied_carry_the_same_stamp(rig: Rig, database_url: str) -> None:
    """So that what the relay publishes again is the same message."""
    with rig.producer() as producer, producer.transaction() as txn:
        txn.publish(rig.topic, {"id": "ours"})
    identity = schema.check(rig.database)
    owner = Owner(owner_of(rig.group, identity.database_id), identity.secret)
    ((properties,),) = rows(database_url, "SELECT properties FROM rmq_txn_outbox")
    assert owner.is_stamp(json.loads(properties)[PROPERTY_STAMP], txn.txn_id, 0)
