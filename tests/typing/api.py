"""
The public API as a type checker sees it. Checked by mypy in `test_api_types.py`, never run.

Lines with `type: ignore[...]` must be errors: `warn_unused_ignores` makes mypy say so if they are not.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from typing_extensions import assert_type

from rmq_txn import (
    Database,
    Delivery,
    IdempotentConsumer,
    InDoubtError,
    Message,
    Receipt,
    RocketMQ,
    Transaction,
    TransactionProducer,
)
from rmq_txn.aio import AsyncTransaction
from rmq_txn.join.sqlalchemy import joined, joins
from rmq_txn.testing import CrashPoints, MemoryBroker
from rmq_txn.transport import ProducerTransport, Transport
from rmq_txn.transport.wrapped import Wrapped

database = Database.mysql("mysql://app:pw@127.0.0.1:3306/shop", pool_size=4)
broker = RocketMQ("127.0.0.1:9876")
assert_type(database, Database)
assert_type(database.pool_size, int)

# Any transport fits where the protocol is asked for.
seam: Transport = broker
native: ProducerTransport = broker.producer("g", lambda check: 1)  # type: ignore[arg-type, return-value]

producer = TransactionProducer(group="g", broker=broker, database=database, topics=["transfer"])
TransactionProducer(group="g", broker=database, database=database, topics=[])  # type: ignore[arg-type]
TransactionProducer("g", broker=broker, database=database, topics=[])  # type: ignore[call-arg]

# Form A
with producer.transaction() as txn:
    assert_type(txn.execute("UPDATE account SET n = n - %s", (1,)), int)
    assert_type(txn.execute("UPDATE account SET n = %(n)s", {"n": 1}), int)
    assert_type(txn.executemany("INSERT INTO t VALUES (%s)", [(1,), (2,)]), int)
    assert_type(txn.fetchone(), tuple[Any, ...] | None)
    assert_type(txn.fetchall(), list[tuple[Any, ...]])
    assert_type(txn.txn_id, str)
    txn.publish("transfer", {"user": "alice", "nested": {"list": [1, 2.5, None, True]}}, key="k", tag="t")
    txn.publish("transfer", b"bytes", properties={"a": "1"})
    txn.publish("transfer", "text")  # type: ignore[arg-type]
    txn.publish("transfer", {"when": object()})  # type: ignore[dict-item]
    txn.publish("transfer", b"x", "key")  # type: ignore[call-arg]
    txn.commit()  # type: ignore[attr-defined]
    txn.rollback()  # type: ignore[attr-defined]
assert_type(txn.receipt, Receipt[None])
assert_type(txn.receipt.txn_id, str)
assert_type(txn.receipt.message_ids, tuple[str, ...])


# Form B: the receipt knows what the work returned.
def debit(txn: Transaction) -> int:
    """Return a number."""
    return txn.execute("UPDATE account SET n = n - 1")


def debit_or_none(txn: Transaction) -> str | None:
    """Return an optional text."""
    row = txn.fetchone()
    return str(row[0]) if row else None


message = Message("transfer", {"user": "alice"}, key="k")
assert_type(producer.send_in_transaction(message, debit), Receipt[int])
assert_type(producer.send_in_transaction([message, message], debit_or_none).value, str | None)
assert_type(producer.send_in_transaction(message, lambda txn: txn.txn_id), Receipt[str])
producer.send_in_transaction(message, lambda: None)  # type: ignore[misc, arg-type]
producer.send_in_transaction("transfer", debit)  # type: ignore[arg-type]


# On an event loop: work may be plain or async, and the block's transaction is awaited.
async def adebit(txn: AsyncTransaction) -> int:
    """Return a number."""
    return await txn.execute("UPDATE account SET n = n - 1")


async def on_a_loop() -> None:
    """Use a producer as a task does."""
    assert_type(await producer.asend_in_transaction(message, debit), Receipt[int])
    assert_type(await producer.asend_in_transaction(message, adebit), Receipt[int])
    await producer.asend_in_transaction("transfer", debit)  # type: ignore[arg-type]
    async with producer.atransaction() as txn:
        assert_type(await txn.execute("UPDATE account SET n = n - %s", (1,)), int)
        assert_type(txn.fetchone(), tuple[Any, ...] | None)
        assert_type(await txn.run(debit), int)
        await txn.run(adebit)  # type: ignore[arg-type, unused-coroutine]
        txn.publish("transfer", {"user": "alice"})
        _ = txn.connection  # type: ignore[attr-defined]
    assert_type(txn.receipt, Receipt[None])
    with producer.atransaction():  # type: ignore[attr-defined]
        pass


producer.send_in_transaction(message, adebit)  # type: ignore[arg-type]

# What can be joined is a session for threads, also to a block of a task.
with producer.transaction(join=joined(Session())) as txn:
    assert_type(txn.session, Any)
joined(AsyncSession())  # type: ignore[arg-type]
joins(sessionmaker(class_=Session))
joins(async_sessionmaker())  # type: ignore[arg-type]
producer.transaction(join=Session())  # type: ignore[arg-type]
IdempotentConsumer(group="c", broker=broker, database=database, join=joined(Session()))  # type: ignore[arg-type]

# A value stays what it is.
message.topic = "other"  # type: ignore[misc]
producer.send_in_transaction(message, debit).value = 2  # type: ignore[misc]

# Handlers keep their own type.
consumer = IdempotentConsumer(group="c", broker=broker, database=database, dedup_key=lambda d: d.message_id)
IdempotentConsumer(group="c", broker=broker, database=database, dedup_key=lambda d: 1)  # type: ignore[arg-type, return-value]


@consumer.handles("transfer", tag="paid")
def award(txn: Transaction, delivery: Delivery) -> int:
    """Return anything; it is ignored."""
    assert_type(delivery.json(), Any)
    assert_type(delivery.body, bytes)
    assert_type(delivery.txn_id, str | None)
    assert_type(delivery.key, str | None)
    assert_type(delivery.dedup_key, str)
    return txn.execute("INSERT INTO points VALUES (1)")


handled: Callable[[Transaction, Delivery], int] = award


@consumer.handles("transfer", tag="async")
async def aaward(txn: AsyncTransaction, delivery: Delivery) -> int:
    """Run on the consumer's loop."""
    return await txn.execute("INSERT INTO points VALUES (1)")


ahandled: Callable[[AsyncTransaction, Delivery], Coroutine[Any, Any, int]] = aaward


@consumer.handles("transfer")  # type: ignore[type-var]
def plain_with_async_transaction(txn: AsyncTransaction, delivery: Delivery) -> None:
    """Could await nothing."""


@consumer.handles("transfer")  # type: ignore[type-var]
def wrong(delivery: Delivery) -> None:
    """Take too little."""


def outcome(error: InDoubtError) -> str:
    """Read what an outcome carries."""
    return error.txn_id


# What the tests of a service use: the memory broker is a transport, the plugin's fixtures are callables.
def crash_test(memory: MemoryBroker, crash_at: Callable[..., None]) -> None:
    """Use the broker in memory as any other."""
    TransactionProducer(group="g", broker=memory, database=database, topics=["t"])
    IdempotentConsumer(group="c", broker=memory, database=database)
    assert_type(memory.advance(60), None)
    assert_type(memory.story(), str)
    assert_type(memory.dead_letters("c"), tuple[Delivery, ...])
    crash_at("after_commit")
    memory.crash_at("after_commit")
    memory.crash_at("after_lunch")  # type: ignore[arg-type]
    memory.refuse_send(1, True)  # type: ignore[call-arg]
    MemoryBroker(topics=["t"], new_group_from="yesterday")  # type: ignore[arg-type]
    TransactionProducer(
        group="g",
        broker=Wrapped(memory, CrashPoints()),
        database=database,
        topics=["t"],
    )
