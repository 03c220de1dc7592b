"""
A producer or consumer process that ends by a real `kill -9` at a named point of the protocol.

Run as `python -m tests.kit.victim '<json>'`; the points are injected from outside the package, by a
wrapped transport or hooks between statements.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from rmq_txn import (
    Database,
    Delivery,
    IdempotentConsumer,
    Message,
    RocketMQ,
    Transaction,
    TransactionProducer,
)
from rmq_txn.database.session import Session
from rmq_txn.message import Outbound
from rmq_txn.transport import Deliver, Execute
from rmq_txn.verdict import Answer, Verdict
from tests.kit.statements import COMMIT, hooked
from tests.kit.transports import Wrapped, kill_9_myself

PRODUCER_POINTS = {
    # point: does the local transaction count as committed?
    "after-half-message": False,
    "after-log-row": False,
    "before-commit": False,
    "after-commit": True,
    "before-end": True,
}
CONSUMER_POINTS = ("after-inbox-row", "after-handler", "after-commit", "before-ack")


def _kill_at(point: str, table: str) -> Any:
    """Make the hooks that kill at a point between statements."""
    before = {"before-commit": COMMIT, "after-handler": "RELEASE"}.get(point)
    after = {
        "after-log-row": f"INSERT INTO {table}",
        "after-inbox-row": f"INSERT INTO {table}",
        "after-commit": COMMIT,
    }.get(point)

    def hook(start: str | None) -> Any:
        def kill(_session: Session, sql: str) -> None:
            if start is not None and sql.startswith(start):
                kill_9_myself()

        return kill

    return hooked(before=hook(before), after=hook(after))


def produce(name_server: str, url: str, topic: str, group: str, form: str, point: str, id_: str) -> None:
    """Write one effect with one message, print the txn_id, and die on the way."""
    armed = threading.Event()

    def around(execute: Execute) -> Execute:
        def executed(message_id: str) -> Verdict:
            if armed.is_set() and point == "after-half-message":
                kill_9_myself()
            verdict = execute(message_id)
            if armed.is_set() and point == "before-end":
                kill_9_myself()
            return verdict

        return executed

    def tell(message: Outbound) -> None:
        if armed.is_set():
            print(message.properties["rmq_txn_id"], flush=True)

    broker = Wrapped(RocketMQ(name_server), around_execute=around, on_send=tell)
    producer = TransactionProducer(group=group, broker=broker, database=Database.mysql(url), topics=[topic])
    producer.start()
    armed.set()

    def work(txn: Transaction) -> None:
        txn.execute("INSERT INTO effect (id) VALUES (%s)", (id_,))

    with _kill_at(point, "rmq_txn_log"):
        if form == "b":
            producer.send_in_transaction(Message(topic, {"id": id_}), work)
        else:
            with producer.transaction() as txn:
                work(txn)
                txn.publish(topic, {"id": id_})


def consume(name_server: str, url: str, topic: str, group: str, point: str) -> None:
    """Handle the first delivery and die on the way."""

    def around(deliver: Deliver) -> Deliver:
        def delivered(delivery: Delivery) -> Answer:
            answer = deliver(delivery)
            if point == "before-ack":
                kill_9_myself()
            return answer

        return delivered

    broker = Wrapped(RocketMQ(name_server), around_deliver=around)
    consumer = IdempotentConsumer(group=group, broker=broker, database=Database.mysql(url))

    @consumer.handles(topic)
    def award(txn: Transaction, delivery: Delivery) -> None:
        txn.execute("INSERT INTO effect (id, note) VALUES (%s, %s)", (delivery.json()["id"], group))

    with _kill_at(point, "rmq_txn_inbox"):
        consumer.run()


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    {"produce": produce, "consume": consume}[arguments.pop("do")](**arguments)
