"""Volume, with every message delivered at least twice."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from devstack import LocalStack
from rmq_txn import (
    Database,
    Delivery,
    IdempotentConsumer,
    RocketMQ,
    Transaction,
    TransactionProducer,
    schema,
)
from tests.kit.rows import rows
from tests.kit.transports import DeliverTwice, Wrapped
from tests.kit.wait import until

pytestmark = pytest.mark.servers

TRANSFERS, THREADS, USERS, START = 1000, 8, 10, 1_000_000


def test_points_are_right_to_the_last_one_when_every_message_comes_twice(
    stack: LocalStack, topic: str, database_url: str, database: Database
) -> None:
    """1,000 transfers from 8 threads: money is conserved and each payer has exactly their points."""
    schema.run_script(
        database,
        "CREATE TABLE account (name INT PRIMARY KEY, balance BIGINT NOT NULL);"
        "CREATE TABLE points (transfer VARCHAR(32) PRIMARY KEY, name INT, points BIGINT)",
    )
    with database.transaction() as txn:
        txn.executemany("INSERT INTO account VALUES (%s, %s)", [(n, START) for n in range(USERS)])
    twice = DeliverTwice()
    broker = RocketMQ(stack.name_server)
    producer = TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic])
    consumer = IdempotentConsumer(
        group=f"c-{topic}", broker=Wrapped(broker, around_deliver=twice), database=database, threads=4
    )

    @consumer.handles(topic)
    def award(txn: Transaction, delivery: Delivery) -> None:
        body = delivery.json()
        txn.execute(
            "INSERT INTO points VALUES (%s, %s, %s)", (body["transfer"], body["payer"], body["fen"] // 100)
        )

    def transfer(n: int) -> tuple[str, int, int]:
        chance = random.Random(n)
        payer, payee = chance.sample(range(USERS), 2)
        fen = chance.randrange(1, 2_000)
        with producer.transaction() as txn:
            # In the order of names, so that two transfers wait for each other instead of deadlocking.
            for name, change in sorted([(payer, -fen), (payee, fen)]):
                txn.execute("UPDATE account SET balance = balance + %s WHERE name = %s", (change, name))
            txn.publish(topic, {"transfer": txn.txn_id, "payer": payer, "fen": fen})
        return txn.txn_id, payer, fen

    with producer, consumer:
        with ThreadPoolExecutor(THREADS) as pool:
            transfers = list(pool.map(transfer, range(TRANSFERS)))
        until(lambda: twice.delivered_twice() >= TRANSFERS, "every message handled twice", 120)

    (total,) = rows(database_url, "SELECT SUM(balance) FROM account")[0]
    assert total == START * USERS
    expected = {txn_id: (payer, fen // 100) for txn_id, payer, fen in transfers}
    got = {
        row[0]: (row[1], row[2]) for row in rows(database_url, "SELECT transfer, name, points FROM points")
    }
    missing, extra = expected.keys() - got.keys(), got.keys() - expected.keys()
    assert (missing, extra) == (set(), set())
    assert got == expected
