"""
A child that was forked inside a transaction and leaves its block: it refuses, and the parent goes on.

Child and parent share one connection to the database. A byte that the child sends on it, ROLLBACK
included, would end the transaction of its parent, and an answer it reads is missing there.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

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
from rmq_txn.errors import RmqTxnError
from rmq_txn.verdict import Answer
from tests.kit.processes import child, outcome
from tests.kit.rows import rows

pytestmark = pytest.mark.servers

CASES = [
    # block, how the child leaves it, what it is told
    ("form A", "end", "LifecycleError"),
    ("form A", "raise", "ZeroDivisionError"),
    ("form A", "exit", "SystemExit"),
    ("form A without a message", "end", "LifecycleError"),
    ("form B", "end", "LifecycleError"),
    ("form B", "exit", "SystemExit"),
    ("plain transaction", "end", "LifecycleError"),
    ("plain transaction", "raise", "ZeroDivisionError"),
    ("handler", "end", "retry"),  # the inbox stays that of the parent
]


def test_a_child_that_leaves_the_block_of_its_parent_ends_nothing_there(
    stack: LocalStack, topic: str, database_url: str
) -> None:
    """The child is told, and does not hang; the parent's transaction commits whole."""
    process = child(
        forks_inside_blocks,
        name_server=stack.name_server,
        url=database_url,
        topic=topic,
        cases=[case[:2] for case in CASES],
    )
    status, said = outcome(process, 180)
    assert status == 0
    told = [(block, leaves, *outcomes) for block, leaves, outcomes in json.loads(said)]
    assert told == [(*case, "committed") for case in CASES]
    effects = rows(database_url, "SELECT id, note FROM effect ORDER BY n")
    assert effects == [(str(n), when) for n in range(len(CASES)) for when in ("before", "after")]


def forks_inside_blocks(name_server: str, url: str, topic: str, cases: list[tuple[str, str]]) -> None:
    """Fork in the middle of each block; let the child leave it, then the parent; tell what both got."""
    broker, database = RocketMQ(name_server), Database.mysql(url)
    producer = TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic])
    producer.start()
    told, tell = os.pipe()
    parent, outcomes = os.getpid(), list[tuple[str, str, tuple[str, str]]]()
    for n, (block, leaves) in enumerate(cases):

        def work(txn: Transaction, n: int = n, leaves: str = leaves) -> None:
            txn.execute("INSERT INTO effect (id, note) VALUES (%s, 'before')", (n,))
            forked = os.fork()
            if forked:
                _, status = os.waitpid(forked, 0)
                assert status == 0, "the child hung"
                txn.execute("INSERT INTO effect (id, note) VALUES (%s, 'after')", (n,))
                return
            signal.alarm(20)
            if leaves == "raise":
                raise ZeroDivisionError
            if leaves == "exit":
                raise SystemExit(0)

        try:
            said = run_block(
                block,
                work,
                producer,
                IdempotentConsumer(group=f"c-{topic}", broker=broker, database=database),
                topic,
            )
        except (RmqTxnError, ZeroDivisionError, SystemExit) as error:
            said = type(error).__name__
        if os.getpid() != parent:
            os.write(tell, said.encode())
            os._exit(0)
        outcomes.append((block, leaves, (os.read(told, 100).decode(), said)))
    print(json.dumps(outcomes))
    producer.close()


def run_block(
    block: str,
    work: Callable[[Transaction], None],
    producer: TransactionProducer,
    consumer: IdempotentConsumer,
    topic: str,
) -> str:
    """Run `work` inside a block of some kind; return what became of it."""
    if block == "form B":
        producer.send_in_transaction(Message(topic, {"id": "m"}), work)
    elif block == "plain transaction":
        with producer.database.transaction() as txn:
            work(txn)
    elif block == "handler":
        consumer.handles(topic)(lambda txn, _delivery: work(txn))
        answer = consumer._handling.deliver(Delivery(topic, b"x", "ID", None, None, 0, 0, {}))
        return "committed" if answer is Answer.ACK else answer.value
    else:
        with producer.transaction() as txn:
            work(txn)
            if block == "form A":
                txn.publish(topic, {"id": "m"})
                txn.publish(topic, {"id": "m"})
    return "committed"
