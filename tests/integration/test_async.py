"""Transactions of tasks: an event loop that goes on meanwhile, and cancellations that tell the truth."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from typing import Any
from unittest import mock

import pymysql
import pytest
import sqlalchemy
from sqlalchemy.orm import sessionmaker

from rmq_txn import Delivery, Message, Reject, Transaction, TransactionProducer
from rmq_txn.aio import AsyncTransaction
from rmq_txn.consumer.parking import ParkedState
from rmq_txn.database.pool import parse_url
from rmq_txn.database.session import Session
from rmq_txn.errors import (
    CancelledTooLateError,
    DatabaseUnavailableError,
    InDoubtError,
    LifecycleError,
    LocalTimeoutError,
    SettingsError,
)
from rmq_txn.join.sqlalchemy import joined, joins
from rmq_txn.producer import on_a_loop
from rmq_txn.producer.checkback import Oracle
from rmq_txn.verdict import Verdict
from tests.kit.desk import Desk
from tests.kit.rows import rows
from tests.kit.statements import BEGIN, COMMIT, Killer, hooked
from tests.kit.wait import until

pytestmark = pytest.mark.servers

INSERT = "INSERT INTO effect (id) VALUES (%s)"
SECONDS = 60.0


def run(work: Awaitable[Any]) -> Any:
    """Run a coroutine on a loop of its own; it must not hang."""

    async def limited() -> Any:
        return await asyncio.wait_for(work, SECONDS)

    return asyncio.run(limited())


async def form_a(desk: Desk, id_: str) -> None:
    """Write an effect, publish another one."""
    async with desk.producer.atransaction() as txn:
        await txn.execute(INSERT, (id_,))
        txn.publish(desk.topic, {"id": f"{id_}-arrived"})


async def form_b(desk: Desk, id_: str) -> None:
    """Do the same in plain work."""

    def work(txn: Transaction) -> None:
        txn.execute(INSERT, (id_,))

    await desk.producer.asend_in_transaction(Message(desk.topic, {"id": f"{id_}-arrived"}), work)


async def form_b_async(desk: Desk, id_: str) -> None:
    """Do the same in async work."""

    async def work(txn: AsyncTransaction) -> None:
        await txn.execute(INSERT, (id_,))

    await desk.producer.asend_in_transaction(Message(desk.topic, {"id": f"{id_}-arrived"}), work)


FORMS = {"a": form_a, "b": form_b, "b-async": form_b_async}


def test_a_task_writes_reads_and_publishes(desk: Desk) -> None:
    """All of it in one transaction, which is of no use afterwards; the producer goes into `async with`."""
    desk.consumer()

    async def transfer() -> None:
        async with desk.producer.atransaction() as txn:
            assert await txn.execute(INSERT, ("a",)) == 1
            assert await txn.executemany(INSERT, [("b",), ("c",)]) == 2
            assert await txn.insert_new(INSERT, ("d",))
            await txn.execute("SELECT id FROM effect ORDER BY n")
            assert txn.fetchone() == ("a",)
            assert txn.fetchall() == [("b",), ("c",), ("d",)]
            assert await txn.run(lambda plain: plain.txn_id) == txn.txn_id
            txn.publish(desk.topic, {"id": "arrived"})
            with pytest.raises(LifecycleError, match="has not committed"):
                _ = txn.receipt
            assert desk.effects() == []
        assert txn.receipt.txn_id == txn.txn_id
        with pytest.raises(LifecycleError, match="transaction is over"):
            await txn.execute(INSERT, ("late",))
        receipt = await desk.producer.asend_in_transaction(
            [Message(desk.topic, {"id": "one"}), Message(desk.topic, {"id": "two"})], lambda txn: txn.txn_id
        )
        assert receipt.value == receipt.txn_id

        async def work(txn: AsyncTransaction) -> str:
            await txn.execute(INSERT, ("e",))
            return "value"

        last = await desk.producer.asend_in_transaction(Message(desk.topic, {"id": "three"}), work)
        assert last.value == "value"

    run(transfer())
    desk.wait_effects("arrived", "one", "two", "three")
    assert sorted(desk.effects()) == ["a", "arrived", "b", "c", "d", "e", "one", "three", "two"]


def test_the_loop_goes_on_while_a_statement_waits(desk: Desk) -> None:
    """The statement waits for a lock that only the loop gives up: a loop that stood still would never."""
    with_unique_ids(desk)

    async def both(form: str) -> None:
        with pymysql.connect(**parse_url(desk.url)) as beside, beside.cursor() as cursor:
            cursor.execute(INSERT, (form,))
            transfer = asyncio.create_task(FORMS[form](desk, form))
            listed = "SELECT 1 FROM information_schema.processlist WHERE info LIKE %s"
            while not await asyncio.to_thread(rows, desk.url, listed, ("INSERT INTO effect%",)):
                await asyncio.sleep(0.01)
            beside.rollback()
        await transfer

    for form in FORMS:
        run(both(form))
    assert desk.effects() == list(FORMS)


def with_unique_ids(desk: Desk) -> None:
    """Let two effects of one id be an error, and wait for each other."""
    with pymysql.connect(**parse_url(desk.url)) as connection, connection.cursor() as cursor:
        cursor.execute("ALTER TABLE effect ADD UNIQUE (id)")


def test_what_the_block_raises_is_raised_and_nothing_is_committed(desk: Desk) -> None:
    """The same exception, with the way through the caller's code alone."""

    class MineError(Exception):
        pass

    async def fails() -> None:
        async with desk.producer.atransaction() as txn:
            await txn.execute(INSERT, ("a",))
            txn.publish(desk.topic, {"id": "never"})
            raise MineError

    async def work(txn: AsyncTransaction) -> None:
        await txn.execute(INSERT, ("a",))
        raise MineError

    with pytest.raises(MineError) as raised:
        run(fails())
    assert "_run" not in [entry.name for entry in raised.traceback]
    with pytest.raises(MineError):
        run(desk.producer.asend_in_transaction(Message(desk.topic, {}), work))
    with pytest.raises(SystemExit):
        run(desk.producer.asend_in_transaction(Message(desk.topic, {}), lambda _: exit_()))
    run(form_a(desk, "b"))
    assert desk.effects() == ["b"]


def exit_() -> None:
    """End the process, as business code should not."""
    raise SystemExit(3)


class Halt:
    """Stops the transaction's thread at one step, until it may go on."""

    def __init__(self, step: str) -> None:
        self._step = step
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, _session: Session, sql: str) -> None:
        if sql.startswith(self._step) and not self.reached.is_set():
            self.reached.set()
            assert self.go_on.wait(SECONDS)


async def cancelled_at(halt: Halt, task: asyncio.Task[None]) -> asyncio.CancelledError:
    """Cancel a task, twice, while its transaction stands at a step; return what it ends with."""
    await asyncio.to_thread(halt.reached.wait, SECONDS)
    assert halt.reached.is_set()
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    halt.go_on.set()
    with pytest.raises(asyncio.CancelledError) as ended:
        await task
    return ended.value


# What is sent, in order, and whether a cancellation that comes at that moment is too late.
STEPS = {
    ("after", BEGIN): False,
    ("before", "INSERT INTO effect"): False,
    ("after", "INSERT INTO effect"): False,
    ("before", "INSERT INTO rmq_txn_log"): False,
    ("after", "INSERT INTO rmq_txn_log"): False,
    ("before", "RELEASE"): True,
    ("before", COMMIT): True,
    ("after", COMMIT): True,
}


def check_cancellation(desk: Desk, form: str, when: str, step: str, *, too_late: bool) -> None:
    """Cancel at a step; the database agrees with what the cancellation says."""
    halt, id_ = Halt(step), f"{form} {when} {step}"

    async def both() -> asyncio.CancelledError:
        return await cancelled_at(halt, asyncio.create_task(FORMS[form](desk, id_)))

    with hooked(**{when: halt}):
        error = run(both())
    committed = id_ in desk.effects()
    assert committed == isinstance(error.__cause__, CancelledTooLateError), repr(error.__cause__)
    assert committed or error.__cause__ is None
    assert committed == too_late


@pytest.mark.parametrize("form", FORMS)
def test_a_cancelled_task_says_what_became_of_its_transaction(desk: Desk, form: str) -> None:
    """At each step, and again while it waits for the end; messages arrive for what is committed alone."""
    for (when, step), too_late in STEPS.items():
        check_cancellation(desk, form, when, step, too_late=too_late)
    run(FORMS[form](desk, "last"))
    desk.consumer()  # not before: a step of its transactions would be taken for one of these
    committed = [f"{form} {when} {step}" for (when, step), too_late in STEPS.items() if too_late] + ["last"]
    desk.wait_effects(*[f"{id_}-arrived" for id_ in committed])
    assert sorted(desk.effects()) == sorted(committed + [f"{id_}-arrived" for id_ in committed])


def test_a_cancellation_that_says_nothing_was_committed_without_knowing_is_found(desk: Desk) -> None:
    """The check above is one that can fail."""

    async def wrong(cancelled: asyncio.CancelledError, *_: object) -> None:
        raise cancelled

    with mock.patch.object(on_a_loop, "_tell", wrong), pytest.raises(AssertionError):
        check_cancellation(desk, "b", "before", COMMIT, too_late=True)


def test_a_commit_whose_answer_is_lost_is_looked_up_for_a_cancelled_task_too(desk: Desk) -> None:
    """By the oracle; while it can't say either, the cancellation says so."""

    def cause(form: str) -> BaseException | None:
        halt = Halt(COMMIT)

        def lost(session: Session, sql: str) -> None:
            halt(session, sql)
            if sql == COMMIT:
                raise pymysql.err.OperationalError(2013, "Lost connection to MySQL server during query")

        async def both() -> asyncio.CancelledError:
            return await cancelled_at(halt, asyncio.create_task(FORMS[form](desk, form)))

        with hooked(after=lost):
            return run(both()).__cause__

    for form in FORMS:
        assert isinstance(cause(form), CancelledTooLateError)
        with mock.patch.object(Oracle, "resolve", return_value=Verdict.UNKNOWN):
            assert isinstance(cause(form), InDoubtError)
    assert desk.effects() == [form for form in FORMS for _ in range(2)]


@pytest.mark.parametrize("form", FORMS)
def test_a_connection_killed_between_any_two_statements_has_one_truth(desk: Desk, form: str) -> None:
    """Either all of it, and no error; or nothing, and an error that says so."""
    for at in range(7):
        killer = Killer(parse_url(desk.url), at)
        outcome: BaseException | None = None
        with hooked(before=killer):
            try:
                run(FORMS[form](desk, f"n{at}"))
            except DatabaseUnavailableError as error:
                outcome = error
        assert (outcome is None) == (f"n{at}" in desk.effects())
        # The first of form B goes out with the tripwire: nothing ran, so it begins again on a new connection.
        told = len(killer.statements) > at and not (form.startswith("b") and at == 0)
        assert (outcome is not None) == told
    assert desk.effects(), "the last one is past the last statement"


def test_a_swallowed_cancellation_of_a_statement_commits_nothing(desk: Desk) -> None:
    """Whoever went on could not know whether the statement took effect."""
    halt = Halt("INSERT INTO effect")

    async def swallows(txn: AsyncTransaction) -> None:
        statement = asyncio.create_task(txn.execute(INSERT, ("a",)))
        await asyncio.to_thread(halt.reached.wait, SECONDS)
        statement.cancel()
        with suppress(asyncio.CancelledError):
            await statement
        halt.go_on.set()

    async def block() -> None:
        async with desk.producer.atransaction() as txn:
            await swallows(txn)
            with pytest.raises(LifecycleError, match="was cancelled"):
                await txn.execute(INSERT, ("b",))

    for attempt in (block(), desk.producer.asend_in_transaction(Message(desk.topic, {}), swallows)):
        halt.__init__("INSERT INTO effect")  # type: ignore[misc]
        with (
            hooked(before=halt),
            pytest.raises(LifecycleError, match="an await of a statement was cancelled"),
        ):
            run(attempt)
    assert desk.effects() == []


def test_a_block_that_takes_too_long_or_is_thrown_away_holds_nothing(desk: Desk) -> None:
    """A thread waits for the next statement no longer than a local transaction may take."""
    with_unique_ids(desk)

    async def endless(inside: asyncio.Event) -> None:
        async with desk.producer.atransaction() as txn:
            await txn.execute(INSERT, ("a",))
            inside.set()
            await asyncio.sleep(SECONDS)

    async def work(txn: AsyncTransaction) -> None:
        await txn.execute(INSERT, ("a",))
        await asyncio.sleep(SECONDS)

    loop, inside = asyncio.new_event_loop(), asyncio.Event()
    task = loop.create_task(endless(inside))
    loop.run_until_complete(asyncio.wait_for(inside.wait(), SECONDS))
    coroutine = task.get_coro()
    assert coroutine is not None
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine.close()
    loop.close()
    with mock.patch.object(desk.database, "local_timeout_seconds", 1):
        with pytest.raises(LocalTimeoutError, match="longer than local_timeout_seconds, 1"):
            run(desk.producer.asend_in_transaction(Message(desk.topic, {}), work))

        async def both() -> None:
            inside = asyncio.Event()
            block = asyncio.create_task(endless(inside))
            await inside.wait()
            while block_holds(desk):
                await asyncio.sleep(0.05)
            block.cancel()
            with pytest.raises(asyncio.CancelledError) as ended:
                await block
            assert isinstance(ended.value.__cause__, LocalTimeoutError)

        run(both())
    run(form_a(desk, "a"))
    assert desk.effects() == ["a"]


def block_holds(desk: Desk) -> bool:
    """Whether somebody holds the row "a"."""
    with pymysql.connect(**parse_url(desk.url)) as beside, beside.cursor() as cursor:
        cursor.execute("SET innodb_lock_wait_timeout = 1")
        try:
            cursor.execute(INSERT, ("a",))
        except pymysql.err.OperationalError:
            return True
        beside.rollback()
    return False


def test_blocks_of_tasks_run_side_by_side_and_not_inside_each_other(desk: Desk) -> None:
    async def nested() -> None:
        async with desk.producer.atransaction(), desk.producer.atransaction():
            raise AssertionError("the inner block began")

    async def beside() -> None:
        async with desk.producer.atransaction() as txn:
            await txn.execute(INSERT, ("outer",))
            await asyncio.gather(*[form_a(desk, f"n{n}") for n in range(4)])

    with pytest.raises(LifecycleError, match=r"atransaction\(\) inside transaction"):
        run(nested())
    run(beside())
    assert sorted(desk.effects()) == ["n0", "n1", "n2", "n3", "outer"]


def test_a_joined_session_is_used_on_the_transactions_thread_and_refuses_the_loop(desk: Desk) -> None:
    """In a block and in a handler; what it did goes with the message, or not at all."""
    sessions = sessionmaker(autoflush=False)
    insert = sqlalchemy.text("INSERT INTO effect (id) VALUES (:id)")

    async def handle(txn: AsyncTransaction, delivery: Delivery) -> None:
        await txn.run(lambda plain: plain.session.execute(insert, {"id": delivery.json()["id"]}) and None)

    async def joins_it(*, on_the_loop: bool) -> None:
        with sessions() as session:
            async with desk.producer.atransaction(join=joined(session)) as txn:
                await txn.run(lambda plain: plain.session.execute(insert, {"id": "a"}) and None)
                if on_the_loop:
                    session.execute(insert, {"id": "b"})
                txn.publish(desk.topic, {"id": "arrived"})

    desk.consumer(handle, join=joins(sessions))
    with pytest.raises(sqlalchemy.exc.StatementError, match=r"use await txn\.run\(function\)"):
        run(joins_it(on_the_loop=True))
    assert desk.effects() == []
    run(joins_it(on_the_loop=False))
    desk.wait_effects("arrived")
    assert desk.effects() == ["a", "arrived"]


def test_wrong_uses_are_refused_before_anything_happens(desk: Desk) -> None:
    async def deferred() -> None:
        await desk.producer.asend_in_transaction(Message(desk.topic, {}), lambda _txn: asyncio.sleep(0))

    async def deferred_in_a_block() -> None:
        async with desk.producer.atransaction() as txn:
            await txn.execute(INSERT, ("never",))
            await txn.run(deferred)  # type: ignore[arg-type, unused-coroutine]

    async def closed() -> None:
        async with TransactionProducer(
            group=f"x-{desk.topic}",
            broker=desk.consumer(start=False).broker,
            database=desk.database,
            topics=["t"],
        ).atransaction():
            raise AssertionError("the block began")

    async def blocks() -> None:
        with desk.producer.transaction():
            raise AssertionError("the block began")

    with pytest.raises(SettingsError, match="work returned a coroutine"):
        run(deferred())
    with pytest.raises(SettingsError, match="function 'deferred' is an async function"):
        run(deferred_in_a_block())
    assert desk.effects() == []
    with pytest.raises(LifecycleError, match=r"is new, atransaction\(\) needs it running"):
        run(closed())
    with pytest.raises(LifecycleError, match="event loop's thread"):
        run(blocks())


def test_async_handlers_share_one_loop_and_commit_with_the_inbox_row(desk: Desk) -> None:
    """At the same time; duplicates, failures and rejections are what they are of plain handlers."""
    loops: set[asyncio.AbstractEventLoop] = set()
    inside: set[str] = set()
    failed: list[str] = []

    async def handle(txn: AsyncTransaction, delivery: Delivery) -> None:
        id_ = delivery.json()["id"]
        loops.add(asyncio.get_running_loop())
        await txn.execute(INSERT, (id_,))
        if id_ == "rejected":
            raise Reject("no")
        if id_ in ("exits", "cancelled") and id_ not in failed:
            failed.append(id_)
            if id_ == "exits":
                exit_()
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(SECONDS)
        if id_ in ("left", "right"):
            inside.add(id_)
            while len(inside) < 2:  # each waits for the other
                await asyncio.sleep(0.01)

    def twice(deliver: Any) -> Any:
        return lambda delivery: (deliver(delivery), deliver(delivery))[1]

    desk.consumer(handle, around_deliver=twice)
    desk.publish("rejected", "exits", "cancelled", "left", "right")
    desk.wait_effects("left", "right", "exits", "cancelled")
    assert sorted(desk.effects()) == ["cancelled", "exits", "left", "right"]
    assert len(loops) == 1
    assert sorted(failed) == ["cancelled", "exits"]
    until(lambda: rows(desk.url, "SELECT state FROM rmq_txn_parked"), "the rejected one is parked")
    assert (int(ParkedState.REJECTED),) in rows(desk.url, "SELECT state FROM rmq_txn_parked")
    desk.resources.close()
    assert not any(loop.is_running() for loop in loops)


@pytest.fixture(autouse=True)
def no_thread_is_left(desk: Desk) -> Iterator[None]:
    """After a close nothing of a producer's threads or a consumer's loop goes on."""
    yield
    desk.resources.close()
    mine = f"-{desk.topic}"
    until(lambda: not [t for t in threading.enumerate() if mine in t.name], "all threads have ended")
