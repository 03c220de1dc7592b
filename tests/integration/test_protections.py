"""Protections that only real servers show: take one away, and what is told here is no longer true."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pymysql
import pytest

from devstack import LocalStack
from rmq_txn import (
    Database,
    DatabaseUnavailableError,
    Delivery,
    IdempotentConsumer,
    Message,
    RocketMQ,
    Transaction,
    TransactionProducer,
)
from rmq_txn.database.pool import parse_url
from rmq_txn.message import Outbound
from rmq_txn.producer.upkeep import OutboxTimes
from rmq_txn.verdict import Verdict
from tests.conftest import prepared_url
from tests.kit.processes import child, outcome
from tests.kit.proxy import Line, proxied, through
from tests.kit.rows import rows
from tests.kit.transports import RecordChecks, Wrapped, never_answers
from tests.kit.wait import until

pytestmark = pytest.mark.servers


def test_who_shares_a_group_with_another_service_leaves_its_copies_to_the_relay(
    stack: LocalStack, topic: str, unique: str, database_url: str, open_database: Callable[..., Database]
) -> None:
    """The other is asked about our half messages, too, and can't answer: that it was quiet proves nothing."""
    published_again: list[Outbound] = []
    with ExitStack() as resources:
        asked = RecordChecks()
        times = OutboxTimes(
            relay_margin_seconds=3.0, settle_seconds=1.0, pause_seconds=60.0, round_seconds=0.5
        )
        ours = resources.enter_context(
            TransactionProducer(
                group=f"g-{topic}",
                broker=Wrapped(
                    RocketMQ(stack.name_server),
                    around_check=asked,
                    on_send_plain=published_again.append,
                    shows_messages=False,
                ),
                database=open_database(database_url),
                topics=[topic],
                check_budget_seconds=8.0,
                outbox_times=times,
            )
        )
        other = resources.enter_context(
            TransactionProducer(
                group=f"g-{topic}",
                broker=Wrapped(RocketMQ(stack.name_server), around_execute=never_answers),
                database=open_database(prepared_url(stack, f"{unique}x")),
                topics=[topic],
            )
        )
        for n in range(6):
            with other.transaction() as txn:
                txn.publish(topic, {"n": n})
        committed: list[bytes] = []

        def goes_on_until_health_names_it() -> bool:
            with ours.transaction() as txn:
                txn.publish(topic, b"%d" % len(committed))
            committed.append(b"%d" % len(committed))
            return any("shares this producer group" in problem for problem in ours.health().problems)

        until(goes_on_until_health_names_it, "health names it", 60)
        assert ours.health().foreign_checks > 0
        # The last one may have come after the disturbance; the one before it came before.
        until(lambda: committed[-2] in [message.body for message in published_again], "the relay has it", 40)
        verdicts = {verdict for _check, verdict in asked.seen}
        assert Verdict.UNKNOWN in verdicts
        assert verdicts <= {Verdict.UNKNOWN, Verdict.COMMIT}  # a busy broker asks about one of ours, too


def test_after_a_silently_cut_line_the_lock_is_gone_and_the_outcome_is_told(
    stack: LocalStack, topic: str, database_url: str, open_database: Callable[..., Database]
) -> None:
    """The server is not told of the cut: for a minute it would keep the transaction, and its locks."""
    with pymysql.connect(**parse_url(database_url), autocommit=True) as other, other.cursor() as cursor:
        cursor.execute("INSERT INTO effect (id) VALUES ('row')")
        cursor.execute("SET innodb_lock_wait_timeout = 1")
        with proxied(database_url) as proxy:
            database = open_database(
                through(database_url, proxy), statement_timeout_seconds=2.0, lock_wait_seconds=1
            )

            def swallow_commit(line: Line, data: bytes) -> None:
                if data[4:] == b"\x03COMMIT":
                    proxy.on_request = lambda _line, _data: None  # the fence has a COMMIT, too
                    line.silence(to_client=True, to_server=True)

            with TransactionProducer(
                group=f"g-{topic}", broker=RocketMQ(stack.name_server), database=database, topics=[topic]
            ) as producer:

                def transfer() -> None:
                    with producer.transaction() as txn:
                        txn.execute("UPDATE effect SET note = 'ours' WHERE id = 'row'")
                        txn.publish(topic, {"id": "cut"})
                        with pytest.raises(pymysql.err.OperationalError, match="1205"):
                            cursor.execute("UPDATE effect SET note = 'theirs' WHERE id = 'row'")
                        proxy.on_request = swallow_commit

                with pytest.raises(DatabaseUnavailableError, match="nothing was committed, safe to retry"):
                    transfer()
                assert cursor.execute("UPDATE effect SET note = 'theirs' WHERE id = 'row'") == 1
    assert rows(database_url, "SELECT note FROM effect") == [("theirs",)]


def test_a_helper_that_closes_over_what_still_runs_leaves_its_client_open(
    stack: LocalStack, topic: str, database_url: str
) -> None:
    """The native shutdown under a running call crashes or hangs; what runs ends well, long after close()."""
    process = child(closes_over_what_runs, name_server=stack.name_server, url=database_url, topic=topic)
    status, said = outcome(process, 120)
    assert status == 0
    assert json.loads(said) == {"producer": "Receipt", "consumer": "closed before its handler ended"}
    assert rows(database_url, "SELECT id FROM effect ORDER BY n") == [("sent",), ("handled",)]


def closes_over_what_runs(name_server: str, url: str, topic: str) -> None:
    """Close a producer and a consumer that wait for nothing, while each is in the middle of something."""
    broker, database = RocketMQ(name_server), Database.mysql(url)
    producer = TransactionProducer(
        group=f"g-{topic}",
        broker=broker,
        database=database,
        topics=[topic],
        close_timeout_seconds=0.1,
    )
    consumer = IdempotentConsumer(
        group=f"c-{topic}",
        broker=broker,
        database=database,
        drain_seconds=0.0,
        close_timeout_seconds=0.1,
    )
    inside, leave, handled, told = threading.Event(), threading.Event(), threading.Event(), dict[str, str]()

    def stay(txn: Transaction, id_: str) -> None:
        inside.set()
        assert leave.wait(60)
        txn.execute("INSERT INTO effect (id) VALUES (%s)", (id_,))

    @consumer.handles(topic)
    def handle(txn: Transaction, _delivery: Delivery) -> None:
        stay(txn, "handled")
        told["consumer"] = f"{consumer.state.value} before its handler ended"
        handled.set()

    def send() -> None:
        receipt = producer.send_in_transaction(Message(topic, b"x"), lambda txn: stay(txn, "sent"))
        told["producer"] = type(receipt).__name__

    producer.start()
    sender = threading.Thread(target=send)
    sender.start()
    assert inside.wait(60)
    producer.close()
    leave.set()
    sender.join(60)
    for event in (inside, leave):
        event.clear()
    consumer.start()
    assert inside.wait(60)  # the verdict arrived although the producer was closed
    consumer.close()
    leave.set()
    assert handled.wait(60)
    until(lambda: len(rows(url, "SELECT id FROM effect")) == 2, "the handler's COMMIT", 30)
    print(json.dumps(told))
