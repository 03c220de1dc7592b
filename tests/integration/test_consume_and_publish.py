"""Consume, write and publish as one unit: inbox row, writes and messages live or die together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from devstack import LocalStack
from rmq_txn import Delivery, IdempotentConsumer, RocketMQ, Transaction, TransactionProducer
from rmq_txn.database.pool import parse_url
from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.lifecycle import State
from rmq_txn.message import Outbound
from tests.kit.desk import Desk
from tests.kit.rows import rows
from tests.kit.statements import COMMIT, Killer, hooked
from tests.kit.transports import DeliverTwice, Wrapped, never_answers
from tests.kit.wait import until

pytestmark = pytest.mark.servers


class Relay:
    """A consumer that publishes what it handled to a second topic, and one that hears of it."""

    def __init__(self, desk: Desk, topic: str) -> None:
        self.desk, self.topic = desk, topic
        self.heard: list[Delivery] = []
        hearing = IdempotentConsumer(
            group=f"h-{topic}", broker=RocketMQ(desk.stack.name_server), database=desk.database
        )
        hearing.handles(topic)(lambda _txn, delivery: self.heard.append(delivery))
        desk.resources.enter_context(hearing)

    def start(
        self, handler: Any = None, *, around_deliver: Any = None, max_attempts: int = 8, **hooks: Any
    ) -> IdempotentConsumer:
        """Start the consumer in the middle; `hooks` are those of its producer's transport."""
        producer = TransactionProducer(
            group=f"m-{self.topic}",
            broker=Wrapped(RocketMQ(self.desk.stack.name_server), **hooks),
            database=self.desk.database,
            topics=[self.topic],
        )
        around = {} if around_deliver is None else {"around_deliver": around_deliver}
        consumer = self.desk.consumer(
            handler or self.pass_on, producer=producer, max_attempts=max_attempts, **around
        )
        assert producer.state is State.RUNNING  # started with the consumer
        self.desk.resources.callback(self.close_both, consumer, producer)
        return consumer

    def close_both(self, consumer: IdempotentConsumer, producer: TransactionProducer) -> None:
        """Close the consumer; nobody has to close its producer."""
        consumer.close()
        assert producer.state is State.CLOSED

    def pass_on(self, txn: Transaction, delivery: Delivery) -> None:
        """Write and publish."""
        self.desk.award(txn, delivery)
        txn.publish(self.topic, {"of": delivery.json()["id"]})

    def ids(self) -> list[str]:
        return [delivery.json()["of"] for delivery in self.heard]


@pytest.fixture
def relay(desk: Desk, stack: LocalStack, unique: str) -> Iterator[Relay]:
    """Return two topics and who listens at the end."""
    topic = f"{unique}-out"
    stack.create_topic(topic)
    return Relay(desk, topic)


def test_a_duplicate_publishes_nothing(relay: Relay) -> None:
    """Each message comes twice and is passed on once, under a transaction id of its own."""
    twice = DeliverTwice()
    relay.start(around_deliver=twice)
    relay.desk.publish("a", "b")
    until(lambda: twice.delivered_twice() == 2, "both delivered twice", 40)
    until(lambda: sorted(relay.ids()) == ["a", "b"], "both passed on")
    assert sorted(relay.desk.effects()) == ["a", "b"]
    incoming = {delivery.txn_id for delivery in relay.desk.deliveries}
    outgoing = {delivery.txn_id for delivery in relay.heard}
    assert len(incoming | outgoing) == 4
    committed = rows(relay.desk.url, "SELECT txn_id FROM rmq_txn_log WHERE state = 1")
    assert outgoing <= {txn_id.decode() for (txn_id,) in committed}


def test_a_handler_that_fails_publishes_nothing(relay: Relay) -> None:
    """Neither its writes nor its messages stay; the try that succeeds has both."""
    sent: list[str] = []
    failures = [ValueError("after publish")]

    def handler(txn: Transaction, delivery: Delivery) -> None:
        relay.pass_on(txn, delivery)
        if failures:
            raise failures.pop()

    relay.start(handler, on_send=lambda message: sent.append(message.topic))
    del sent[:]  # the warm-up
    relay.desk.publish("a")
    until(lambda: relay.ids() == ["a"], "passed on", 40)
    assert sent == [relay.topic]
    assert relay.desk.effects() == ["a"]


@pytest.mark.parametrize("point", ["INSERT INTO rmq_txn_log", "RELEASE", COMMIT])
def test_a_crash_between_half_message_and_commit_leaves_nothing_and_the_next_try_all(
    relay: Relay, point: str
) -> None:
    """Its half message is there and never delivered; the message is handled once in the end."""
    halves: list[Outbound] = []
    killed: list[str] = []

    def before(session: Any, sql: str) -> None:
        if sql.startswith(point) and halves and not killed:
            killed.append(sql)
            Killer(parse_url(relay.desk.url), 0)(session, sql)

    with hooked(before=before):
        relay.start(on_send=halves.append)
        del halves[:]  # the warm-up
        relay.desk.publish("a")
        until(lambda: relay.ids() == ["a"], "passed on", 40)
    assert killed
    assert len(halves) == 2
    assert relay.heard[0].txn_id == halves[1].properties["rmq_txn_id"]
    assert relay.desk.effects() == ["a"]


def test_a_crash_between_commit_and_verdict_is_recovered_by_check_back(relay: Relay) -> None:
    """The inbox row and the message have one fate, so the lost verdict can be asked for."""
    relay.start(around_execute=never_answers)
    relay.desk.publish("a")
    until(lambda: relay.ids() == ["a"], "passed on", 60)
    assert relay.desk.effects() == ["a"]


def test_a_broker_that_takes_no_half_message_uses_up_no_attempt(relay: Relay) -> None:
    """The message is innocent: nothing is written or counted, and it comes again."""
    refusals = [BrokerUnavailableError("no"), BrokerUnavailableError("no")]
    armed: list[bool] = []

    def refuse(_message: Outbound) -> None:
        if armed and refusals:
            assert relay.desk.effects() == []
            raise refusals.pop()

    relay.start(on_send=refuse, max_attempts=1)
    armed.append(True)
    relay.desk.publish("a")
    until(lambda: relay.ids() == ["a"], "passed on", 60)
    assert refusals == []
    assert relay.desk.effects() == ["a"]
    assert rows(relay.desk.url, "SELECT 1 FROM rmq_txn_parked") == []
