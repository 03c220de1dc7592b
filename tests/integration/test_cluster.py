"""Two brokers, both masters, and one of them dies under load."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest

from devstack import LocalStack, StackPorts
from devstack.rocketmq import Broker
from devstack.server import Server
from rmq_txn import (
    Database,
    Delivery,
    FencedError,
    HalfMessageError,
    IdempotentConsumer,
    RocketMQ,
    Transaction,
    TransactionProducer,
)
from rmq_txn.remoting.client import RemotingClient
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

CLIENTS = 3
STEP = 30
"""Transfers in each phase: both up, one killed."""
SECONDS = 120.0


@pytest.fixture
def second(stack: LocalStack, topic: str) -> Iterator[Server]:
    """Return a second broker of the cluster that has the test's topic, too."""
    ports = replace(StackPorts.choose(), name_server=stack.ports.name_server)
    program = Broker(stack.settings, ports, number=2)
    server = Server(program)
    server.start()
    try:
        program.create_topic(topic, queues=4)
        until(lambda: program.has_route(topic), "both brokers have the topic", SECONDS)
        yield server
    finally:
        server.end()


class Services:
    """A producer and a consumer on one database, and transfers from several threads."""

    def __init__(self, stack: LocalStack, topic: str, database: Database) -> None:
        self.broker = RocketMQ(stack.name_server)
        self.topic = topic
        self.database = database
        self.committed: list[str] = []
        self.stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[TransactionProducer]:
        """Start both; close them at the end."""
        producer = TransactionProducer(
            group=f"g-{self.topic}", broker=self.broker, database=self.database, topics=[self.topic]
        )
        consumer = IdempotentConsumer(group=f"c-{self.topic}", broker=self.broker, database=self.database)

        @consumer.handles(self.topic)
        def award(txn: Transaction, delivery: Delivery) -> None:
            txn.execute("INSERT INTO effect (id, note) VALUES (%s, 'points')", (delivery.json()["id"],))

        with producer, consumer:
            yield producer

    def transfer_until_stopped(self, producer: TransactionProducer, client: int) -> None:
        """Repeat each transfer until it is committed."""
        number = 0
        while not self.stop.is_set():
            id_ = f"{client}-{number}"
            try:
                with producer.transaction() as txn:
                    txn.execute("INSERT INTO effect (id, note) VALUES (%s, 'transfer')", (id_,))
                    txn.publish(self.topic, {"id": id_})
            except (HalfMessageError, FencedError):
                continue  # nothing was committed
            self.committed.append(id_)
            number += 1

    def wait_for_more(self, phase: str) -> None:
        goal = len(self.committed) + STEP
        until(lambda: len(self.committed) >= goal, f"{STEP} transfers {phase}", SECONDS)


@pytest.mark.long
def test_transfers_go_on_when_one_of_two_brokers_is_killed(
    stack: LocalStack, second: Server, topic: str, database_url: str, database: Database
) -> None:
    """kill -9 under load: the other one takes over, and what the dead one stored comes after its return."""
    assert len(RemotingClient(stack.name_server).topic_route(topic).brokers) == 2
    services = Services(stack, topic, database)
    with services.running() as producer, ThreadPoolExecutor(CLIENTS) as pool:
        clients = [
            pool.submit(services.transfer_until_stopped, producer, client) for client in range(CLIENTS)
        ]
        try:
            services.wait_for_more("on two brokers")
            second.kill()
            services.wait_for_more("while one is down")
        finally:
            services.stop.set()
        for client in clients:
            client.result()

    def ids(note: str) -> list[str]:
        return sorted(row[0] for row in rows(database_url, "SELECT id FROM effect WHERE note = %s", (note,)))

    second.start()
    # New ones find the broker at once; the old ones would look for it after 30 s.
    with services.running():
        assert ids("transfer") == sorted(services.committed)
        until(lambda: len(ids("points")) >= len(services.committed), "points for every transfer", SECONDS)
    assert ids("points") == ids("transfer")
