"""What the package writes to the log in the life of a transaction, and what it never writes."""

from __future__ import annotations

import logging

import pytest

from devstack import LocalStack
from rmq_txn import Database, IdempotentConsumer, Message, RocketMQ, TransactionProducer
from tests.kit.transports import Wrapped, never_answers
from tests.kit.wait import until

pytestmark = pytest.mark.servers

SECRET = "s3cret-body"


def test_every_line_of_a_transaction_carries_its_txn_id_and_no_secret(
    stack: LocalStack, topic: str, database_url: str, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Commit, rollback, check-back, a failed and a successful delivery: each line can be found by id."""
    caplog.set_level(logging.DEBUG, logger="rmq_txn")
    broker = RocketMQ(stack.name_server)
    failures = [RuntimeError("try again")]
    handled: list[str] = []

    def handler(_txn: object, delivery: object) -> None:
        if failures:
            raise failures.pop()
        handled.append(delivery.txn_id)  # type: ignore[attr-defined]

    consumer = IdempotentConsumer(group=f"c-{topic}", broker=broker, database=database)
    consumer.handles(topic)(handler)
    producer = TransactionProducer(
        group=f"g-{topic}",
        broker=Wrapped(broker, around_execute=never_answers),  # so that check-back speaks, too
        database=database,
        topics=[topic],
    )
    with producer, consumer:
        with producer.transaction() as txn:
            txn.execute("INSERT INTO effect (id) VALUES (%s)", (SECRET,))
            txn.publish(topic, {"body": SECRET})
        with pytest.raises(ZeroDivisionError):
            producer.send_in_transaction(Message(topic, {"body": SECRET}), lambda _txn: 1 // 0)
        until(lambda: handled == [txn.txn_id], "the message is handled after a failure", 60)

    password = database_url.split(":")[2].split("@")[0]
    assert len(password) > 4
    outside = ("started", "closed", "new group")
    # These speak of the process: a pause of a busy machine, an election, a slow registration.
    of_the_process = ("rmq_txn.outbox", "rmq_txn.relay", "rmq_txn.registration")
    lines = [r for r in caplog.records if r.name.startswith("rmq_txn")]
    of_transactions = [
        r
        for r in lines
        if r.name not in of_the_process and not any(word in r.getMessage() for word in outside)
    ]
    assert len(of_transactions) >= 8
    for record in of_transactions:
        assert len(record.rmq_txn_fields["txn_id"]) == 32, record.getMessage()  # type: ignore[attr-defined]
        assert record.rmq_txn_fields["txn_id"] in record.getMessage()  # type: ignore[attr-defined]
    text = "\n".join(
        caplog.handler.format(record) for record in lines
    )  # with tracebacks, as a handler writes them
    assert SECRET not in text
    assert password not in text
    said = " ".join(r.getMessage() for r in of_transactions if txn.txn_id in r.getMessage())
    for event in ("half message stored", "transaction committed", "check-back answered", "handled"):
        assert event in said
