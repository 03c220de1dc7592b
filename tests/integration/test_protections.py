"""Protections that only real servers show: take one away, and what is told here is no longer true."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pymysql
import pytest

from devstack import LocalStack
from rmq_txn import Database, DatabaseUnavailableError, RocketMQ, TransactionProducer
from rmq_txn.message import Outbound
from rmq_txn.pool import parse_url
from rmq_txn.upkeep import OutboxTimes
from rmq_txn.verdict import Verdict
from tests.conftest import prepared_url
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
                    RocketMQ(stack.name_server), around_check=asked, on_send_plain=published_again.append
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
    assert {verdict for _check, verdict in asked.seen} == {Verdict.UNKNOWN}


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
