"""A producer and consumers of one topic, for tests of the consumer helper on real servers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from devstack import Stack
from rmq_txn import (
    Database,
    Delivery,
    IdempotentConsumer,
    Message,
    RocketMQ,
    Transaction,
    TransactionProducer,
)
from tests.kit.rows import rows
from tests.kit.transports import Wrapped
from tests.kit.wait import until


class Desk:
    """A producer, and consumers of one group that write `effect` rows."""

    def __init__(self, stack: Stack, url: str, database: Database, topic: str) -> None:
        self.stack, self.url, self.database, self.topic = stack, url, database, topic
        self.resources = ExitStack()
        self.deliveries: list[Delivery] = []
        self.producer = self.resources.enter_context(
            TransactionProducer(
                group=f"g-{topic}", broker=RocketMQ(stack.name_server), database=database, topics=[topic]
            )
        )

    def publish(self, *ids: str, tag: str | None = None) -> None:
        for id_ in ids:
            self.producer.send_in_transaction(Message(self.topic, {"id": id_}, tag=tag), lambda _txn: None)

    def award(self, txn: Transaction, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        txn.execute("INSERT INTO effect (id) VALUES (%s)", (delivery.json()["id"],))

    def consumer(
        self,
        handler: Callable[[Transaction, Delivery], object] | None = None,
        *,
        start: bool = True,
        **settings: Any,
    ) -> IdempotentConsumer:
        broker = Wrapped(
            RocketMQ(self.stack.name_server),
            **{key: settings.pop(key) for key in list(settings) if key.startswith("around")},
        )
        consumer = IdempotentConsumer(
            group=f"c-{self.topic}", broker=broker, database=self.database, **settings
        )
        consumer.handles(self.topic)(handler or self.award)
        if start:
            self.resources.enter_context(consumer)
        return consumer

    def effects(self) -> list[str]:
        return [row[0] for row in rows(self.url, "SELECT id FROM effect ORDER BY n")]

    def wait_effects(self, *ids: str, seconds: float = 40) -> None:
        until(lambda: set(ids) <= set(self.effects()), f"effects {ids}", seconds)
