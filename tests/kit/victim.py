"""
A producer or consumer process that ends by a real `kill -9` at a named point of the protocol.

Run as `python -m tests.kit.victim '<json>'`; the points are injected from outside the package, by a
wrapped transport or hooks between statements.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import pymysql

from rmq_txn import (
    Database,
    Delivery,
    IdempotentConsumer,
    Message,
    RocketMQ,
    Transaction,
    TransactionProducer,
)
from rmq_txn.aio import AsyncTransaction
from rmq_txn.database.pool import parse_url
from rmq_txn.database.session import Session
from rmq_txn.message import Outbound
from rmq_txn.transport import Checker, Deliver, Execute
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

    def asks_another(_check: Checker) -> Checker:
        return lambda _question: Verdict.UNKNOWN  # a test looks for who answers after all died

    broker = Wrapped(RocketMQ(name_server), around_execute=around, around_check=asks_another, on_send=tell)
    database = Database.mysql(url, isolation_level="read committed" if form == "django" else None)
    producer = TransactionProducer(group=group, broker=broker, database=database, topics=[topic])
    producer.start()
    armed.set()

    with _kill_at(point, "rmq_txn_log"):
        FORMS[form](producer, url, Message(topic, {"id": id_}), id_)


INSERT = "INSERT INTO effect (id) VALUES (%s)"


def _block(producer: TransactionProducer, _url: str, message: Message, id_: str) -> None:
    with producer.transaction() as txn:
        txn.execute(INSERT, (id_,))
        txn.publish(message.topic, message.body)


def _work(producer: TransactionProducer, _url: str, message: Message, id_: str) -> None:
    producer.send_in_transaction(message, lambda txn: txn.execute(INSERT, (id_,)))


def _block_of_a_task(producer: TransactionProducer, _url: str, message: Message, id_: str) -> None:
    async def task() -> None:
        async with producer.atransaction() as txn:
            await txn.execute(INSERT, (id_,))
            txn.publish(message.topic, message.body)

    asyncio.run(task())


def _work_of_a_task(producer: TransactionProducer, _url: str, message: Message, id_: str) -> None:
    async def work(txn: AsyncTransaction) -> None:
        await txn.execute(INSERT, (id_,))

    async def task() -> None:
        await producer.asend_in_transaction(message, work)

    asyncio.run(task())


def _block_of_sqlalchemy(producer: TransactionProducer, _url: str, message: Message, id_: str) -> None:
    import sqlalchemy
    from sqlalchemy.orm import Session

    from rmq_txn.join.sqlalchemy import joined

    with Session() as session, producer.transaction(join=joined(session)) as txn:
        session.execute(sqlalchemy.text("INSERT INTO effect (id) VALUES (:id)"), {"id": id_})
        txn.publish(message.topic, message.body)


def _block_of_django(producer: TransactionProducer, url: str, message: Message, id_: str) -> None:
    from rmq_txn.join.django import joined
    from tests.kit.django_site import Effect, aliases

    with aliases() as alias:
        alias("default", url)
        with producer.transaction(join=joined()) as txn:
            Effect.objects.create(id=id_)
            txn.publish(message.topic, message.body)


def _beside_the_block(producer: TransactionProducer, url: str, message: Message, id_: str) -> None:
    """Be broken: the work commits on a connection of its own, as that of a session that was not joined."""
    with producer.transaction() as txn:
        with pymysql.connect(**parse_url(url), autocommit=True) as own:
            own.cursor().execute(INSERT, (id_,))
        txn.publish(message.topic, message.body)


FORMS: dict[str, Callable[[TransactionProducer, str, Message, str], None]] = {
    "a": _block,
    "b": _work,
    "async-a": _block_of_a_task,
    "async-b": _work_of_a_task,
    "sqlalchemy": _block_of_sqlalchemy,
    "django": _block_of_django,
    "broken": _beside_the_block,
}


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
