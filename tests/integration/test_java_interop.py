"""Our service and a Java service with the official client, over one broker: both directions."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from devstack import LocalStack
from rmq_txn import (
    Database,
    Delivery,
    IdempotentConsumer,
    Message,
    RocketMQ,
    Transaction,
    TransactionProducer,
)
from tests.kit import java
from tests.kit.java import JavaPeer, Received
from tests.kit.rows import rows
from tests.kit.transports import DeliverTwice, Wrapped
from tests.kit.wait import until

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

UNICODE = "转账 ½ – 🎁"
PROPERTIES = {"trace": "00-4bf92f-01", "城市": UNICODE}
BODIES = {
    "unicode": json.dumps({"note": UNICODE}, ensure_ascii=False).encode(),
    # By default both clients compress what is longer than 4 KiB, with zlib.
    "compressible": json.dumps({"note": UNICODE * 5_000}, ensure_ascii=False).encode(),
    "incompressible": random.Random(7).randbytes(1_000_000),
    "nul": b"\x00a\x00" * 3,
}


@pytest.fixture(scope="module")
def peer(
    stack: LocalStack, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[JavaPeer]:
    """Start one Java process for all tests."""
    if (reason := java.missing()) is not None:
        if request.config.getoption("--require-servers"):
            pytest.fail(reason)
        pytest.skip(reason)
    with JavaPeer(stack, "java-peer", tmp_path_factory.mktemp("java")) as peer:
        yield peer


class Ours:
    """Our side: a producer, and a consumer that hears every message twice."""

    def __init__(self, stack: LocalStack, database: Database, topic: str) -> None:
        self.topic = topic
        self.deliveries: list[Delivery] = []
        self.twice = DeliverTwice()
        broker = RocketMQ(stack.name_server, extra_properties=tuple(PROPERTIES))
        self.producer = TransactionProducer(
            group=f"g-{topic}", broker=broker, database=database, topics=[topic]
        )
        self.consumer = IdempotentConsumer(
            group=f"c-{topic}", broker=Wrapped(broker, around_deliver=self.twice), database=database
        )
        self.consumer.handles(topic)(self.award)

    def award(self, txn: Transaction, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        txn.execute("INSERT INTO effect (id) VALUES (%s)", (delivery.message_id,))

    def wait_delivered(self, count: int) -> None:
        """Wait until `count` messages were delivered and handled or skipped, each one twice."""
        until(lambda: self.twice.delivered_twice() >= count, f"{count} messages, each twice", 60)
        assert len(self.twice.answers) == count


@pytest.fixture
def ours(stack: LocalStack, database: Database, topic: str) -> Iterator[Ours]:
    """Return our side; what a test started is closed at its end."""
    ours = Ours(stack, database, topic)
    with ExitStack() as resources:
        resources.callback(ours.consumer.close)
        resources.callback(ours.producer.close)
        yield ours


def effects(url: str) -> list[str]:
    """Return the message ids that had an effect, in the order of the effects."""
    return [id_ for (id_,) in rows(url, "SELECT id FROM effect ORDER BY n")]


def received(peer: JavaPeer, group: str, count: int) -> dict[str, Received]:
    """Wait for `count` different messages of a Java consumer group; return them by KEYS."""

    def by_key() -> dict[str, Received]:
        return {message.keys or "": message for message in peer.received(group)}

    until(lambda: len(by_key()) >= count, f"{count} messages at the Java consumer", 60)
    return by_key()


def test_a_java_message_arrives_as_it_was_sent(
    peer: JavaPeer, ours: Ours, database_url: str, unique: str
) -> None:
    """Body byte for byte, KEYS, TAGS and properties; each has its effect once."""
    peer.subscribe(f"java-{unique}", ours.topic)
    sent = {
        peer.send(ours.topic, body, keys=[name, "2026"], tag="paid", properties=PROPERTIES): body
        for name, body in BODIES.items()
    }
    bare = peer.send(ours.topic, b"{}")
    ours.consumer.start()
    ours.wait_delivered(len(sent) + 1)
    arrived = {delivery.message_id: delivery for delivery in ours.deliveries}
    assert {id_: arrived[id_].body for id_ in sent} == sent
    for id_, name in zip(sent, BODIES, strict=True):
        assert arrived[id_].key == f"{name} 2026"  # KEYS is a list, joined by spaces on the wire
        assert arrived[id_].tag == "paid"
        assert arrived[id_].properties == PROPERTIES
        assert arrived[id_].txn_id is None
    assert (arrived[bare].key, arrived[bare].tag, arrived[bare].properties) == (None, None, {})
    assert sorted(effects(database_url)) == sorted([*sent, bare])
    theirs = received(peer, f"java-{unique}", len(sent) + 1)
    assert theirs["compressible 2026"].stored_bytes < len(BODIES["compressible"]) / 10


def test_java_messages_with_equal_keys_and_different_bodies_are_all_handled(
    peer: JavaPeer, ours: Ours, database_url: str
) -> None:
    """`order-1` created and `order-1` paid are two messages: KEYS is no dedup key."""
    bodies = [json.dumps({"order": 1, "state": state}).encode() for state in ("created", "paid", "sent")]
    sent = [peer.send(ours.topic, body, keys=["order-1"]) for body in bodies]
    ours.consumer.start()
    ours.wait_delivered(len(sent))
    assert {delivery.key for delivery in ours.deliveries} == {"order-1"}
    assert sorted(delivery.body for delivery in ours.deliveries) == sorted(bodies)
    assert sorted(effects(database_url)) == sorted(sent)


def test_a_java_transaction_is_handled_once_and_a_rolled_back_one_never(
    peer: JavaPeer, ours: Ours, database_url: str
) -> None:
    """The other side of TransactionMQProducer: what its local transaction said is what we see."""
    ours.consumer.start()
    states = ("ROLLBACK_MESSAGE", "COMMIT_MESSAGE", "ROLLBACK_MESSAGE", "COMMIT_MESSAGE")
    sent = [
        peer.send(ours.topic, json.dumps({"n": n}).encode(), keys=[f"t-{n}"], state=state)
        for n, state in enumerate(states)
    ]
    ours.wait_delivered(2)
    assert sorted(delivery.json()["n"] for delivery in ours.deliveries) == [1, 3]
    assert sorted(effects(database_url)) == sorted(sent[1::2])


def publish(
    producer: TransactionProducer,
    message: Message,
    work: Callable[[Transaction], None],
    *,
    form_b: bool,
) -> None:
    if form_b:
        producer.send_in_transaction(message, work)
        return
    with producer.transaction() as txn:
        txn.publish(
            message.topic, message.body, key=message.key, tag=message.tag, properties=message.properties
        )
        work(txn)


def test_java_reads_what_we_committed_and_never_what_we_rolled_back(
    peer: JavaPeer, ours: Ours, unique: str
) -> None:
    """A body of plain JSON or bytes without an envelope, KEYS, TAGS, properties; both forms."""
    peer.subscribe(f"java-{unique}", ours.topic)
    note = {"note": UNICODE, "amount": 2500, "ok": True}
    ours.producer.start()

    def fail(_txn: Transaction) -> None:
        raise RuntimeError("business says no")

    for form_b in (False, True):
        refused = Message(ours.topic, note, key=f"refused-{form_b}")
        with pytest.raises(RuntimeError, match="business says no"):
            publish(ours.producer, refused, fail, form_b=form_b)
        committed = Message(ours.topic, note, key=f"json-{form_b}", tag="paid", properties=PROPERTIES)
        publish(ours.producer, committed, lambda _txn: None, form_b=form_b)
    for name, body in BODIES.items():
        publish(ours.producer, Message(ours.topic, body, key=name), lambda _txn: None, form_b=True)

    arrived = received(peer, f"java-{unique}", 2 + len(BODIES))
    assert arrived.keys() == {"json-False", "json-True", *BODIES}
    for form in ("json-False", "json-True"):
        assert json.loads(arrived[form].body) == note
        assert arrived[form].tag == "paid"
        assert PROPERTIES.items() <= arrived[form].properties.items()
    assert {name: arrived[name].body for name in BODIES} == BODIES
    assert arrived["compressible"].stored_bytes < len(BODIES["compressible"]) / 10


def test_java_subscribes_to_one_of_our_tags(peer: JavaPeer, ours: Ours, unique: str) -> None:
    """The broker filters by the tag that we set."""
    peer.subscribe(f"java-{unique}", ours.topic, "paid")
    ours.producer.start()
    for tag in ("created", "paid", "sent"):
        publish(
            ours.producer, Message(ours.topic, {"n": 1}, key=tag, tag=tag), lambda _txn: None, form_b=True
        )
    assert received(peer, f"java-{unique}", 1).keys() == {"paid"}


def test_a_java_member_of_our_group_that_filters_is_told_by_health(
    peer: JavaPeer, ours: Ours, caplog: pytest.LogCaptureFixture
) -> None:
    """What it leaves out of its queues nobody gets: it can't be mended here, so somebody must hear of it."""
    group = f"c-{ours.topic}"
    peer.subscribe(group, ours.topic, "created || paid")
    ours.consumer.start()
    until(lambda: ours.consumer.health().problems, "the first look at the members", 60)
    (problem,) = ours.consumer.health().problems
    assert f" (JAVA) of group {group} wants only 'created || paid' of topic '{ours.topic}'" in problem
    assert "a member of the group filters" in caplog.text
