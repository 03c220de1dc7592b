"""The consumer helper against a real broker and a real database."""

from __future__ import annotations

import threading

import pymysql
import pytest

from devstack import LocalStack
from rmq_txn import (
    Delivery,
    Message,
    RocketMQ,
    Transaction,
    TransactionProducer,
)
from rmq_txn.database.pool import parse_url
from tests.kit.desk import Desk
from tests.kit.statements import COMMIT, Killer, hooked
from tests.kit.transports import DeliverTwice
from tests.kit.wait import until

pytestmark = pytest.mark.servers


def test_a_redelivered_message_has_no_second_effect(desk: Desk) -> None:
    """The broker really delivers it again after the first handling committed."""
    twice = DeliverTwice()
    desk.consumer(around_deliver=twice)
    desk.publish("one", "two", "three")
    until(lambda: twice.delivered_twice() == 3, "all three delivered twice", 40)
    assert sorted(desk.effects()) == ["one", "three", "two"]
    assert len(desk.deliveries) == 3


def test_a_failing_handler_is_rolled_back_and_called_again_until_it_succeeds(desk: Desk) -> None:
    """Its claim on the inbox goes with its writes, so the redelivery is not taken for a duplicate."""
    failures = [ValueError("first"), KeyError("second")]

    def flaky(txn: Transaction, delivery: Delivery) -> None:
        desk.award(txn, delivery)
        if failures:
            raise failures.pop(0)

    desk.consumer(flaky)
    desk.publish("stubborn")
    desk.wait_effects("stubborn")
    assert desk.effects() == ["stubborn"]
    assert [d.redeliveries for d in desk.deliveries] == [0, 1, 2]


def test_any_unicode_and_nul_bytes_arrive_unchanged(desk: Desk) -> None:
    """Bodies are read to their exact length, whatever is in them, small and compressed alike."""
    bodies = [
        b"\x00",
        b"a\x00b" * 5,
        bytes(range(256)) * 64,
        "积分\U0001f600\u0000\uffff".encode(),
        b"x" * 100_000,
    ]
    received: list[Delivery] = []
    desk.consumer(lambda _txn, delivery: received.append(delivery))
    for n, body in enumerate(bodies):
        message = Message(
            desk.topic, body, key=f"键-{n}", tag="标签", properties={"名字": "值 \U0001f600", "n": str(n)}
        )
        desk.producer.send_in_transaction(message, lambda _txn: None)
    until(lambda: len(received) == len(bodies), "all bodies")
    got = {int(d.properties["n"]): d for d in received}
    assert [got[n].body for n in range(len(bodies))] == bodies
    assert {(d.key, d.tag, d.properties["名字"]) for d in received} == {
        (f"键-{n}", "标签", "值 \U0001f600") for n in range(len(bodies))
    }


def test_each_topic_and_tag_reaches_its_own_handler(desk: Desk, stack: LocalStack, unique: str) -> None:
    """One native callback routes to all; a tag without a handler of its own goes to `*`."""
    other_topic = f"{unique}o"
    stack.create_topic(other_topic)
    seen: dict[str, list[str]] = {"gold": [], "rest": [], "other": []}
    consumer = desk.consumer(lambda _txn, d: seen["rest"].append(d.json()["id"]), start=False)
    consumer.handles(desk.topic, tag="gold")(lambda _txn, d: seen["gold"].append(d.json()["id"]))
    consumer.handles(other_topic, tag="red")(lambda _txn, d: seen["other"].append(d.json()["id"]))
    desk.resources.enter_context(consumer)
    producer = desk.resources.enter_context(
        TransactionProducer(
            group=f"g2-{desk.topic}",
            broker=RocketMQ(stack.name_server),
            database=desk.database,
            topics=[desk.topic, other_topic],
        )
    )
    with producer.transaction() as txn:
        txn.publish(desk.topic, {"id": "g"}, tag="gold")
        txn.publish(desk.topic, {"id": "s"}, tag="silver")
        txn.publish(desk.topic, {"id": "none"})
        txn.publish(other_topic, {"id": "blue"}, tag="blue")
        txn.publish(other_topic, {"id": "red"}, tag="red")
    until(lambda: sum(map(len, seen.values())) >= 4, "four deliveries")
    assert {name: sorted(ids) for name, ids in seen.items()} == {
        "gold": ["g"],
        "rest": ["none", "s"],
        "other": ["red"],
    }


STATEMENTS = ["INSERT INTO rmq_txn_inbox", "INSERT INTO effect", "RELEASE", COMMIT]


@pytest.mark.parametrize("at", range(len(STATEMENTS)), ids=STATEMENTS)
def test_a_connection_killed_between_two_statements_has_one_effect_in_the_end(
    desk: Desk, database_url: str, at: int
) -> None:
    """Nothing of the broken try stays, and the next one is not taken for a duplicate."""
    killer = Killer(parse_url(database_url), at)
    desk.publish("k")
    with hooked(before=killer):
        desk.consumer()
        desk.wait_effects("k")
    assert desk.effects() == ["k"]
    assert killer.statements[at].startswith(STATEMENTS[at])


def test_deliveries_are_held_while_the_database_is_away(desk: Desk, stack: LocalStack) -> None:
    """No attempt of the broker is spent: the same delivery is handled once the database is back."""
    arrived = threading.Event()
    down = threading.Event()

    def handler(txn: Transaction, delivery: Delivery) -> None:
        arrived.set()
        down.wait(20)
        desk.award(txn, delivery)

    desk.consumer(handler)
    desk.publish("patient")
    assert arrived.wait(40)
    stack.database.kill()
    down.set()
    stack.database.start()
    desk.wait_effects("patient")
    assert desk.effects() == ["patient"]
    assert {d.redeliveries for d in desk.deliveries} == {0}


def test_a_lock_error_is_tried_again_in_process(desk: Desk) -> None:
    """A deadlock costs milliseconds, not one of the broker's redeliveries."""
    errors = [
        pymysql.err.OperationalError(1213, "Deadlock found"),
        pymysql.err.OperationalError(1205, "Lock"),
    ]

    def unlucky(txn: Transaction, delivery: Delivery) -> None:
        if errors:
            raise errors.pop()
        desk.award(txn, delivery)

    desk.consumer(unlucky)
    desk.publish("lucky")
    desk.wait_effects("lucky")
    assert [d.redeliveries for d in desk.deliveries] == [0]


def test_closing_lets_a_running_handler_finish_and_commit(desk: Desk) -> None:
    """The handler is not interrupted, its effect is durable and nothing comes again."""
    inside, go_on = threading.Event(), threading.Event()

    def slow(txn: Transaction, delivery: Delivery) -> None:
        inside.set()
        go_on.wait(20)
        desk.award(txn, delivery)

    consumer = desk.consumer(slow)
    desk.publish("slow")
    assert inside.wait(40)
    closer = threading.Thread(target=consumer.close)
    closer.start()
    until(lambda: consumer.state.value == "closing", "closing has begun")
    go_on.set()
    closer.join(20)
    assert not closer.is_alive()
    assert desk.effects() == ["slow"]


def test_two_consumers_of_one_group_share_the_messages_and_no_effect_is_doubled(desk: Desk) -> None:
    """Rebalancing in the middle of traffic may deliver twice; the inbox is shared."""
    ids = [f"m{n}" for n in range(60)]
    desk.consumer()
    desk.publish(*ids[:20])
    second = desk.consumer()
    desk.publish(*ids[20:40])
    second.close()
    desk.publish(*ids[40:])
    desk.wait_effects(*ids, seconds=60)
    assert sorted(desk.effects()) == sorted(ids)
