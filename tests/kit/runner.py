"""A consumer process as users write it: `consumer.run()` until a signal. Run with JSON arguments."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rmq_txn import Database, Delivery, IdempotentConsumer, RocketMQ, Transaction
from tests.kit.wait import until


def main(name_server: str, url: str, topic: str, group: str, inside: str, go_on: str) -> None:
    """Handle deliveries; each says it is inside by one file and waits for another."""
    consumer = IdempotentConsumer(group=group, broker=RocketMQ(name_server), database=Database.mysql(url))

    @consumer.handles(topic)
    def slow(txn: Transaction, delivery: Delivery) -> None:
        txn.execute("INSERT INTO effect (id) VALUES (%s)", (delivery.json()["id"],))
        Path(inside).touch()
        until(Path(go_on).exists, "the test lets the handler go on")

    consumer.run()
    print("closed")


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
