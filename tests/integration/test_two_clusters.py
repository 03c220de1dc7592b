"""Two clusters in one process: what is sent to the one never shows in the other (docs/hazards.md, C1)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from devstack import LocalStack, StackSettings
from devstack.rocketmq import Broker, NameServer
from devstack.server import Server
from devstack.settings import StackPorts
from rmq_txn import Database, IdempotentConsumer, Message, RocketMQ, TransactionProducer
from tests.conftest import CHECKOUT
from tests.kit.wait import until

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]


@pytest.fixture
def second_cluster(stack: LocalStack, unique: str) -> Iterator[tuple[str, Broker]]:
    """Start another name server and broker, without a database; return address and broker."""
    settings = StackSettings.for_tests(CHECKOUT / ".devstack" / f"second-{unique}")
    ports = StackPorts.choose()
    name_server, broker = NameServer(settings, ports), Broker(settings, ports)
    settings.folder.mkdir(parents=True)
    with ExitStack() as running:
        running.callback(shutil.rmtree, settings.folder, ignore_errors=True)
        for program in (name_server, broker):
            server = Server(program)
            running.callback(server.end)
            server.start()
        yield name_server.address, broker


def test_two_clusters_in_one_process_are_not_mixed_up(
    stack: LocalStack, topic: str, second_cluster: tuple[str, Broker], database: Database
) -> None:
    """Same topic and same groups on both; each message arrives in its own cluster, once."""
    address, other = second_cluster
    other.create_topic(topic, 4)
    until(lambda: other.has_route(topic), "the topic on the second cluster")
    arrived: dict[str, list[str]] = {"first": [], "second": []}
    with ExitStack() as opened:
        producers = {}
        for name, broker in (("first", RocketMQ(stack.name_server)), ("second", RocketMQ(address))):
            producers[name] = opened.enter_context(
                TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic])
            )
            consumer = IdempotentConsumer(group=f"c-{topic}", broker=broker, database=database)
            consumer.handles(topic)(
                lambda _txn, delivery, seen=arrived[name]: seen.append(delivery.json()["for"])
            )
            opened.enter_context(consumer)
        for _ in range(10):
            for name, producer in producers.items():
                producer.send_in_transaction(Message(topic, {"for": name}), lambda _txn: None)
        until(lambda: min(map(len, arrived.values())) >= 10, "all deliveries", 60)
        assert all(producer.is_registered() for producer in producers.values())
    assert arrived == {"first": ["first"] * 10, "second": ["second"] * 10}
