"""A broker that refuses: producer and consumer are told which of its settings does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from devstack import LocalStack
from rmq_txn import BrokerUnavailableError, RocketMQ
from rmq_txn.message import SCOUT_GROUP, Message
from rmq_txn.remoting.answers import StoredAt
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.diagnosis import explain
from rmq_txn.remoting.half_messages import OP_TOPIC
from rmq_txn.verdict import Answer, Verdict
from tests.kit.broker_administrator import BrokerAdministrator
from tests.kit.known import known_producer
from tests.kit.wait import until

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

CLOSE_SECONDS = 10.0


@pytest.fixture
def administrator(stack: LocalStack) -> BrokerAdministrator:
    """Return who may change the broker."""
    return BrokerAdministrator(stack.broker_address)


@pytest.fixture
def set_up(administrator: BrokerAdministrator) -> Iterator[Callable[..., None]]:
    """Return a function that changes the broker's configuration; it is as it was at the end."""
    before = administrator.broker_config()
    changed: dict[str, str] = {}

    def change(**lines: str) -> None:
        changed.update(lines)
        administrator.configure(lines)

    yield change
    change(**{name: before[name] for name in changed})


def permit(administrator: BrokerAdministrator, stack: LocalStack, topic: str, permission: int) -> None:
    """Set what may be done with a topic, and wait until the name server knows."""
    administrator.permit(topic, permission)
    name_server = RemotingClient(stack.name_server)
    until(
        lambda: [queues.permission for queues in name_server.topic_route(topic).queues] == [permission],
        "the name server knows the permission",
    )


def test_a_broker_that_takes_no_transactions_says_so_at_start_and_at_a_send(
    stack: LocalStack, topic: str, set_up: Callable[..., None]
) -> None:
    """rejectTransactionMessage=true; the client says "No route info"."""
    broker = RocketMQ(stack.name_server)
    message = Message(topic, {"n": 1}).outbound(txn_id="0" * 32, position=0, owner="x")
    with ExitStack() as resources:
        producer = known_producer(
            lambda: broker.producer(f"g-{topic}", lambda _check: Verdict.UNKNOWN), topic, resources
        )
        set_up(rejectTransactionMessage="true")
        with pytest.raises(
            BrokerUnavailableError, match="rejectTransactionMessage=true in its configuration"
        ):
            producer.send_half(message, lambda _id: Verdict.ROLLBACK)
        late = broker.producer(f"h-{topic}", lambda _check: Verdict.UNKNOWN)
        with pytest.raises(
            BrokerUnavailableError, match="rejectTransactionMessage=true in its configuration"
        ):
            late.start([topic])
        late.close(CLOSE_SECONDS)


def test_a_topic_that_may_not_be_written_is_named(
    stack: LocalStack, topic: str, administrator: BrokerAdministrator
) -> None:
    """With the command that mends it."""
    permit(administrator, stack, topic, 4)
    producer = RocketMQ(stack.name_server).producer(f"g-{topic}", lambda _check: Verdict.UNKNOWN)
    with pytest.raises(
        BrokerUnavailableError, match=f"may not be written .* updateTopicPerm -t {topic} -p 6"
    ):
        producer.start([topic])
    producer.close(CLOSE_SECONDS)


def test_a_message_larger_than_the_broker_takes_is_told_with_both_sizes(
    stack: LocalStack, topic: str, set_up: Callable[..., None]
) -> None:
    """Its limit may be lower than the default, which is all that we know beforehand."""
    set_up(maxMessageSize="1000")
    message = Message(topic, {"text": "x" * 2000}).outbound(txn_id="0" * 32, position=0, owner="x")
    cause = explain(RocketMQ(stack.name_server), message, "No route info")
    assert "2011 bytes of body" in cause.text
    assert "maxMessageSize is 1000" in cause.text
    assert not cause.brokers_answer


@pytest.mark.parametrize("what", ["topic", "group"])
def test_a_consumer_that_may_not_read_is_told_at_start(
    stack: LocalStack, topic: str, administrator: BrokerAdministrator, what: str
) -> None:
    """The client would start, and wait for ever without a word (docs/hazards.md, E8)."""
    group = f"c-{topic}"
    if what == "topic":
        permit(administrator, stack, topic, 2)
        said = f"lets nobody read topic '{topic}'"
    else:
        administrator.set_group(group, consumeEnable=False)
        said = f"does not let group '{group}' consume topic '{topic}'"
    consumer = RocketMQ(stack.name_server).consumer(group, {topic: ["*"]}, 1, lambda _delivery: Answer.ACK)
    with pytest.raises(BrokerUnavailableError, match=said):
        consumer.start()
    consumer.close(0.0, CLOSE_SECONDS)


def test_the_port_of_a_broker_given_as_name_server_is_named(stack: LocalStack, topic: str) -> None:
    """By both kinds of client, before the native one asks it for a minute."""
    broker = RocketMQ(stack.broker_address)
    producer = broker.producer(f"g-{topic}", lambda _check: Verdict.UNKNOWN)
    consumer = broker.consumer(f"c-{topic}", {topic: ["*"]}, 1, lambda _delivery: Answer.ACK)
    for start in (lambda: producer.start([topic]), consumer.start):
        with pytest.raises(BrokerUnavailableError, match=f"{stack.broker_address} is no name server"):
            start()


def test_what_a_diagnosis_sends_is_rolled_back_at_once(
    stack: LocalStack, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The broker notes each of them as decided, and one that was left open it does not.

    Not by its questions: with the short times of the tests it asks about what it has not noted yet.
    """
    store, stored = RemotingClient.store, list[int]()

    def watched(client: RemotingClient, *args: Any, **more: Any) -> StoredAt:
        stored.append(int((at := store(client, *args, **more)).queue_offset))
        return at

    monkeypatch.setattr(RemotingClient, "store", watched)
    broker, cluster = RemotingClient(stack.broker_address), RocketMQ(stack.name_server)
    message = Message(topic, {"n": 1}, key="k").outbound(txn_id="0" * 32, position=0, owner="x")
    broker.store(SCOUT_GROUP, message, "left open", half=True)
    for _ in range(3):
        assert explain(cluster, message, "No route info").brokers_answer
    left, *probes = stored
    assert len(probes) == 3

    def noted() -> set[int]:
        notes = broker.read(OP_TOPIC, 0, broker.min_offset(OP_TOPIC, 0), 100_000)
        return {int(offset) for note in notes for offset in note.body.split(b",") if offset}

    until(lambda: set(probes) <= noted(), "the rollbacks are noted", 60)
    assert left not in noted()
