"""Every way for a handler to fail is counted, and parked in the end. On a real database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pymysql
import pytest

from rmq_txn import Database, Delivery, Transaction
from rmq_txn.consumer.parking import ParkedState
from rmq_txn.database import connection
from rmq_txn.database.pool import parse_url
from rmq_txn.verdict import Answer
from tests.kit.bench import Bench
from tests.kit.rows import rows

pytestmark = pytest.mark.servers

ACK, RETRY = Answer.ACK, Answer.RETRY
FAILING, EXHAUSTED, LOST = ParkedState.FAILING, ParkedState.EXHAUSTED, ParkedState.LOST


class Unspeakable(Exception):
    """Its text can't be made."""

    def __str__(self) -> str:
        raise SystemExit(3)


ENDS: dict[str, BaseException] = {
    "exception": ValueError("no such user"),
    "cancelled": asyncio.CancelledError(),
    "exit": SystemExit(0),
    "generator-exit": GeneratorExit(),
    "ctrl-c": KeyboardInterrupt(),
    "no-text": Unspeakable(),
    "surrogate": ValueError("\ud800 積"),
    "huge": ValueError("x" * 5_000_000),
    "nul": ValueError("\x00\x1b[2J"),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_whatever_a_handler_ends_with_is_counted(bench: Bench, end: BaseException) -> None:
    """Also what would end the thread, and what can't be told: parked in the end, those behind go on."""
    bad = bench.message()

    def handler(txn: Transaction, delivery: Delivery) -> None:
        bench.award(txn, delivery)
        if delivery.message_id == bad.message_id:
            raise end

    consumer = bench.consumer(handler, max_attempts=2)
    assert bench.deliver(bad) is RETRY
    assert bench.parked() == [(FAILING, 1)]
    assert bench.deliver(replace(bad, redeliveries=1)) is ACK
    assert bench.parked() == [(EXHAUSTED, 2)]
    other = bench.message()
    assert bench.deliver(other) is ACK
    assert bench.effects() == [other.message_id]
    ((error,),) = rows(bench.url, "SELECT error FROM rmq_txn_parked")
    assert type(end).__name__.encode() in error
    assert consumer.health().held == 0


def test_what_dedup_key_ends_with_is_counted(bench: Bench) -> None:
    """It is business code too; the message is known by its own key then."""

    def order_of(_delivery: Delivery) -> str:
        raise asyncio.CancelledError

    bench.consumer(dedup_key=order_of, max_attempts=1)
    assert bench.deliver(bench.message()) is ACK
    assert bench.parked() == [(EXHAUSTED, 1)]
    assert bench.effects() == []


def test_a_replay_that_ends_the_thread_is_told_and_counted(bench: Bench) -> None:
    """`parked replay --all` goes on with the next one; Ctrl-C is the operator's, and counts nothing."""
    ends: list[BaseException] = [KeyboardInterrupt(), SystemExit(1), ValueError("first")]

    def handler(_txn: Transaction, _delivery: Delivery) -> None:
        raise ends.pop()

    consumer = bench.consumer(handler, max_attempts=1)
    bench.deliver(message := bench.message())
    with pytest.raises(RuntimeError, match="the handler ended with SystemExit: 1"):
        consumer.replay(message.dedup_key)
    assert bench.parked() == [(EXHAUSTED, 2)]
    with pytest.raises(KeyboardInterrupt):
        consumer.replay(message.dedup_key)
    assert bench.parked() == [(EXHAUSTED, 2)]


@pytest.fixture
def impatient(bench: Bench, open_database: Callable[..., Database]) -> Database:
    """Return a database whose statements may take a second and a bit."""
    return open_database(bench.url, statement_timeout_seconds=1.3, lock_wait_seconds=1)


def test_a_statement_that_always_takes_too_long_is_one_failure_a_delivery(
    bench: Bench, impatient: Database
) -> None:
    """To the driver it is a lost connection, and the database is there each time it is looked at."""

    def slow(txn: Transaction, delivery: Delivery) -> None:
        bench.calls.append(delivery)
        txn.execute("SELECT SLEEP(3)")

    bench.consumer(slow, database=impatient, max_attempts=2)
    message = bench.message()
    assert bench.deliver(message) is RETRY
    assert bench.parked() == [(FAILING, 1)]
    assert len(bench.calls) == 4
    assert bench.deliver(replace(message, redeliveries=1)) is ACK
    assert bench.parked() == [(EXHAUSTED, 2)]
    ((error,),) = rows(bench.url, "SELECT error FROM rmq_txn_parked")
    assert b"did not answer" in error


def test_a_connection_that_always_dies_under_its_handler_is_one_failure_a_delivery(bench: Bench) -> None:
    """A handler that is silent for longer than `wait_timeout`, for one."""

    def silent(txn: Transaction, delivery: Delivery) -> None:
        bench.calls.append(delivery)
        txn.execute("SELECT CONNECTION_ID()")
        (own,) = txn.fetchone() or (0,)
        with pymysql.connect(**parse_url(bench.url)) as other, other.cursor() as cursor:
            cursor.execute("KILL CONNECTION %s", (own,))
        bench.award(txn, delivery)

    bench.consumer(silent, max_attempts=1)
    assert bench.deliver(bench.message()) is ACK
    assert bench.parked() == [(EXHAUSTED, 1)]
    assert bench.effects() == []


@pytest.fixture
def held_row(bench: Bench) -> Iterator[str]:
    """Hold the lock of a row on another connection; return the statement that waits for it in vain."""
    with pymysql.connect(**parse_url(bench.url)) as other, other.cursor() as cursor:
        cursor.execute("CREATE TABLE staging (id INT) ENGINE=InnoDB")
        cursor.execute("INSERT INTO effect (id) VALUES ('held')")
        other.commit()
        cursor.execute("UPDATE effect SET note = 'locked' WHERE n = 1")
        yield "UPDATE effect SET note = 'mine' WHERE n = 1"
        other.rollback()


DDL = ["TRUNCATE TABLE staging", "ALTER TABLE staging ADD COLUMN n INT", "COMMIT", "LOCK TABLES effect WRITE"]


@pytest.mark.parametrize("code", [1205, 1213, 1020])
@pytest.mark.parametrize("ddl", DDL[:1])
def test_a_lock_error_after_ddl_is_not_tried_again_into_its_own_inbox_row(
    bench: Bench, impatient: Database, held_row: str, ddl: str, code: int
) -> None:
    """The second try met the durable row and acknowledged: no effect, nothing parked."""

    def handler(txn: Transaction, delivery: Delivery) -> None:
        bench.award(txn, delivery)
        txn.execute(ddl)
        if code == 1205:
            txn.execute(held_row)  # a real one
        raise pymysql.err.OperationalError(code, "as the server says it")

    bench.consumer(handler, database=impatient)
    assert bench.deliver(message := bench.message()) is ACK
    assert len(bench.calls) == 1
    assert bench.parked() == [(LOST, 1)]
    assert bench.inbox() == [message.dedup_key]


@pytest.mark.parametrize("ddl", DDL)
@pytest.mark.parametrize("fails", [True, False], ids=["fails", "returns"])
def test_a_handler_that_ended_its_transaction_is_parked_and_its_locks_are_gone(
    bench: Bench, ddl: str, fails: bool
) -> None:
    """Counting ran on the connection that held the lock, and failed; others waited for it."""
    with pymysql.connect(**parse_url(bench.url)) as other, other.cursor() as cursor:
        cursor.execute("CREATE TABLE staging (id INT) ENGINE=InnoDB")

    def handler(txn: Transaction, delivery: Delivery) -> None:
        bench.award(txn, delivery)
        txn.execute(ddl)
        if fails:
            raise ValueError("and then this")

    bench.consumer(handler)
    assert bench.deliver(bench.message()) is ACK
    assert bench.parked() == [(LOST, 1)]
    with pymysql.connect(**parse_url(bench.url)) as other, other.cursor() as cursor:
        cursor.execute("SET lock_wait_timeout = 5")
        cursor.execute("INSERT INTO effect (id) VALUES ('other')")
        other.commit()


def test_what_a_stranger_sends_fits_the_tables_whatever_it_is(bench: Bench) -> None:
    """It was never counted, never parked, and blocked the dead letters behind it."""
    long = "\ufffd" * 32_000  # what is no UTF-8 becomes this, three bytes each
    strange = Delivery(
        bench.topic,
        b"\xff" * 10,
        long,
        tag=long,
        key=long,
        redeliveries=-1,
        properties={"p": "\x03" * 32_000, "rmq_txn_id": "a" * 32, "rmq_txn_n": "1"},
    )
    mended = False

    def handler(_txn: Transaction, delivery: Delivery) -> None:
        assert mended
        bench.calls.append(delivery)

    consumer = bench.consumer(handler, max_attempts=2)
    assert bench.deliver(strange) is RETRY
    assert bench.deliver(strange) is ACK
    assert bench.parked() == [(EXHAUSTED, 2)]
    mended = True
    assert consumer.replay(strange.dedup_key)
    assert bench.calls == [replace(strange, redeliveries=0)]
    elsewhere = replace(strange, topic=long, redeliveries=2**31 - 1)
    assert bench.deliver(elsewhere) is ACK
    assert bench.parked() == [(ParkedState.UNHANDLED, 0)]


@pytest.mark.parametrize("ddl", [False, True], ids=["fails", "lost"])
def test_a_message_larger_than_the_databases_packets_is_counted_and_left_to_the_broker(
    bench: Bench, open_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch, ddl: bool
) -> None:
    """Only after DDL, where a delivery would be skipped, is it parked, without its body."""
    monkeypatch.setattr(connection, "_DESCRIBE", "SELECT 65536, 'small'")
    small = open_database(bench.url)

    def handler(txn: Transaction, _delivery: Delivery) -> None:
        if ddl:
            txn.execute("CREATE TABLE IF NOT EXISTS made_by_handler (id INT)")
        raise ValueError("no such user")

    consumer = bench.consumer(handler, database=small, max_attempts=1)
    large = bench.message(body=json.dumps({"padding": "x" * 70_000}).encode())
    if ddl:
        assert bench.deliver(large) is ACK
        assert bench.parked() == [(LOST, 1)]
        with pytest.raises(ValueError, match="was parked without its body"):
            consumer.replay(large.dedup_key, force=True)
    else:
        for attempts in (1, 2):
            assert bench.deliver(large) is RETRY
            assert bench.parked() == [(FAILING, attempts)]
        assert bench.inbox() == []
    assert bench.deliver(bench.message()) is ACK


def test_a_delivery_without_a_handler_is_given_back_to_its_last_and_then_parked(bench: Bench) -> None:
    """The schedule of the broker outlives a deployment; what is parked is found, and can be replayed."""
    consumer = bench.consumer(tag="created", max_attempts=1)
    message = bench.message(tag="paid")
    for redeliveries in (0, 1, 15):
        assert bench.deliver(replace(message, redeliveries=redeliveries)) is RETRY
    assert (bench.parked(), bench.inbox()) == ([], [])
    assert bench.deliver(replace(message, redeliveries=16)) is ACK
    assert bench.parked() == [(ParkedState.UNHANDLED, 0)]
    (problem,) = (found for found in consumer.health().problems if "no handler" in found)
    assert "with tag 'paid': 4 deliveries given back" in problem
    with pytest.raises(ValueError, match="for which this consumer has no handler"):
        consumer.replay(message.dedup_key)
    consumer.close()
    assert bench.consumer(tag="paid").replay(message.dedup_key)
    assert bench.effects() == [message.message_id]


def test_a_held_delivery_shows_in_health_and_spends_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its cause, as long as the database is away or refuses."""
    refused = [pymysql.err.OperationalError(1290, "The server is running with --read-only")]

    def handler(txn: Transaction, delivery: Delivery) -> None:
        if refused:
            raise refused.pop()
        bench.award(txn, delivery)

    seen: list[tuple[int, tuple[str, ...]]] = []

    def waited(*_: object) -> None:
        health = consumer.health()
        seen.append((health.held, health.problems))

    monkeypatch.setattr(bench.database, "is_reachable", lambda: False)
    monkeypatch.setattr(bench.database, "wait_until_reachable", waited)
    consumer = bench.consumer(handler, max_attempts=1)
    assert bench.deliver(bench.message()) is ACK
    ((held, (problem,)),) = seen
    assert held == 1
    assert problem.startswith("1 deliveries are held: DatabaseUnavailableError: database ")
    assert "refuses to work now: The server is running with --read-only" in problem
    assert (consumer.health().held, consumer.health().problems) == (0, ())
    assert (bench.parked(), len(bench.effects())) == ([], 1)
