"""Old rows of the log and the inbox are deleted, and nothing that somebody may still ask for."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pymysql
import pytest

from rmq_txn import Database, IdempotentConsumer, RocketMQ, TransactionProducer, pruning
from rmq_txn.cli import exit_codes, main
from rmq_txn.database.pool import parse_url
from rmq_txn.database.session import Session
from rmq_txn.database.sideline import Sideline
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.identity import new_txn_id
from rmq_txn.pruning import BATCH_ROWS, ClockError, PrunedInbox, PrunedLog, Pruning
from tests.kit.desk import Desk
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = pytest.mark.servers

WEEK = 7 * 86_400.0
OLD, YOUNG = 8 * 86_400.0, 6 * 86_400.0
OPEN, COMMITTED, ROLLED_BACK = 0, 1, 2


class Tables:
    """Rows of a given age, and what is left of them."""

    def __init__(self, url: str) -> None:
        self.url = url

    @contextmanager
    def cursor(self) -> Any:
        with closing(pymysql.connect(**parse_url(self.url), autocommit=True)) as connection:
            yield connection.cursor()

    def log(self, age_seconds: float, state: int = COMMITTED, count: int = 1) -> list[str]:
        ids = [new_txn_id(time.time() - age_seconds) for _ in range(count)]
        with self.cursor() as cursor:
            cursor.executemany(STATEMENTS["insert_log_row"], [(id_, state, "M") for id_ in ids])
        return ids

    def copy(self, txn_id: str) -> None:
        with self.cursor() as cursor:
            values = (txn_id, 0, "M", "transfer", None, None, b"{}", b"body")
            cursor.execute(STATEMENTS["insert_outbox_rows"], values)

    def inbox(self, group: str, age_seconds: float, *keys: str) -> None:
        sql = (
            "INSERT INTO rmq_txn_inbox (consumer_group, dedup_key, handled_at) "
            "VALUES (%s, %s, NOW() - INTERVAL %s SECOND)"
        )
        with self.cursor() as cursor:
            cursor.executemany(sql, [(group, key, int(age_seconds)) for key in keys])

    def parked(self, group: str, key: str) -> None:
        with self.cursor() as cursor:
            cursor.execute(STATEMENTS["insert_parked_row"], (group, key, 2, 1, "no", b"transfer", b"M"))

    def logged(self) -> set[str]:
        return {id_.decode() for (id_,) in rows(self.url, "SELECT txn_id FROM rmq_txn_log")}

    def remembered(self, group: str) -> set[str]:
        sql = "SELECT dedup_key FROM rmq_txn_inbox WHERE consumer_group = %s"
        return {key.decode() for (key,) in rows(self.url, sql, (group,))}


@pytest.fixture
def tables(database_url: str) -> Tables:
    return Tables(database_url)


def prune(database: Database, pruned: pruning.Pruned) -> list[int]:
    with closing(database.sideline("pruning")) as sideline:
        return list(pruning.batches(pruned, sideline))


def test_of_the_log_goes_what_is_old_and_neither_open_nor_in_the_outbox(
    tables: Tables, database: Database
) -> None:
    (young,) = tables.log(YOUNG)
    (open_,) = tables.log(OLD, OPEN)
    (copied,) = tables.log(OLD)
    tables.copy(copied)
    tables.log(OLD, COMMITTED, 3)
    tables.log(OLD, ROLLED_BACK, 2)
    assert prune(database, PrunedLog(WEEK)) == [5]
    assert tables.logged() == {young, open_, copied}


def test_of_the_inbox_goes_what_is_old_of_this_group_and_not_parked(
    tables: Tables, database: Database
) -> None:
    tables.inbox("points", OLD, "old", "parked", "order/7")
    tables.inbox("points", YOUNG, "young")
    tables.inbox("mails", OLD, "old")
    tables.parked("points", "parked")
    assert prune(database, PrunedInbox("points", WEEK)) == [2]
    assert tables.remembered("points") == {"parked", "young"}
    assert tables.remembered("mails") == {"old"}


def test_a_row_that_is_as_old_as_the_retention_stays_an_hour_more(tables: Tables, database: Database) -> None:
    """A check-back or a delivery that was found young enough a moment ago must still find its row."""
    (just,) = tables.log(WEEK + 60)
    tables.inbox("points", WEEK + 60, "just")
    assert prune(database, PrunedLog(WEEK)) == []
    assert prune(database, PrunedInbox("points", WEEK)) == []
    assert tables.logged() == {just}


def test_many_rows_go_in_small_batches_that_walk_over_what_stays_once(
    tables: Tables, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statements: two a batch and the clock, however many rows stay in the way."""
    tables.log(OLD, OPEN, 2 * BATCH_ROWS)
    tables.log(OLD, COMMITTED, 3 * BATCH_ROWS + 1)
    sent: list[str] = []
    execute = Session.execute
    monkeypatch.setattr(
        Session, "execute", lambda session, sql, args=None: sent.append(sql) or execute(session, sql, args)
    )
    with closing(database.sideline("pruning")) as sideline:
        assert list(pruning.batches(PrunedLog(WEEK), sideline)) == [BATCH_ROWS] * 3 + [1]
        assert len(sent) == 1 + 2 * 4
        with sideline.session() as session:
            session.execute("SHOW SESSION STATUS LIKE 'Handler_read_next'")
            ((_, walked),) = session.cursor.fetchall()
    assert int(walked) <= 5 * BATCH_ROWS + 100  # each row once
    assert len(tables.logged()) == 2 * BATCH_ROWS


@pytest.mark.parametrize("table", ["log", "inbox"])
def test_a_batch_does_not_read_what_keeps_other_rows(tables: Tables, database: Database, table: str) -> None:
    """Ten minutes of copies, or many parked messages: only those of the rows of the batch are looked for."""
    kept = [new_txn_id() for _ in range(20 * BATCH_ROWS)]
    pruned: pruning.Pruned
    with tables.cursor() as cursor:
        if table == "log":
            pruned, other = PrunedLog(WEEK), "rmq_txn_outbox"
            tables.log(OLD, COMMITTED, 20 * BATCH_ROWS)
            copies = [(id_, 0, "M", "transfer", None, None, b"{}", b"body") for id_ in kept]
            cursor.executemany(STATEMENTS["insert_outbox_rows"], copies)
        else:
            pruned, other = PrunedInbox("points", WEEK), "rmq_txn_parked"
            tables.inbox("points", OLD, *(f"old-{n}" for n in range(20 * BATCH_ROWS)))
            failed = [("points", id_, 2, 1, "no", b"transfer", b"M") for id_ in kept]
            cursor.executemany(STATEMENTS["insert_parked_row"], failed)
        cursor.execute(f"ANALYZE TABLE rmq_txn_{table}, {other}")
    with closing(database.sideline("pruning")) as sideline:
        before = pruning.cutoff(pruned, sideline)
        for ask, rows_of_ours in (
            (lambda: len(pruned.old(sideline, b"", before)), BATCH_ROWS),
            (lambda: pruned.count(sideline, before), 20 * BATCH_ROWS),
        ):
            began = read_rows(sideline)
            assert ask() == rows_of_ours
            assert read_rows(sideline) - began <= 3 * rows_of_ours


def read_rows(sideline: Sideline) -> int:
    """Return how many rows this connection has read so far, of any table and index."""
    with sideline.session() as session:
        session.execute("SHOW SESSION STATUS LIKE 'Handler\\_read\\_%'")
        return sum(int(number) for _, number in session.cursor.fetchall())


@pytest.mark.parametrize("table", ["log", "inbox"])
def test_what_a_batch_deletes_locks_nobody_else(tables: Tables, database: Database, table: str) -> None:
    """Between the keys that it deletes others insert theirs, before it committed."""
    first, second = new_txn_id(time.time() - OLD), new_txn_id(time.time() - OLD + 10)
    between = new_txn_id(time.time() - OLD + 5)
    with tables.cursor() as cursor:
        if table == "log":
            cursor.executemany(STATEMENTS["insert_log_row"], [(first, 1, "M"), (second, 1, "M")])
            insert, values = STATEMENTS["insert_log_row"], (between, 1, "M")
            delete: tuple[str, tuple[Any, ...]] = STATEMENTS["delete_log_rows"], ([first, second],)
        else:
            tables.inbox("points", OLD, first, second)
            insert, values = STATEMENTS["claim_inbox_row"], ("points", between)
            delete = STATEMENTS["delete_inbox_rows"], ("points", [first, second], time.time() - WEEK)
        cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")
        with closing(database.sideline("pruning")) as sideline, sideline.session() as session:
            assert session.execute(*delete) == 2
            cursor.execute(insert, values)  # 1205 if it had to wait


def test_the_batches_use_the_keys_that_are_meant_for_them(tables: Tables) -> None:
    """Else a batch would walk over the whole table."""
    tables.inbox("points", OLD, *(f"old-{n}" for n in range(2000)))
    tables.inbox("points", YOUNG, *(f"young-{n}" for n in range(2000)))
    tables.log(OLD, COMMITTED, 2000)
    tables.log(YOUNG, COMMITTED, 2000)
    before = time.time() - WEEK
    wanted: dict[str, tuple[str, tuple[Any, ...]]] = {
        "read_old_inbox_rows": ("by_age", ("points", before, BATCH_ROWS)),
        "delete_inbox_rows": ("PRIMARY", ("points", [f"old-{n}" for n in range(BATCH_ROWS)], before)),
        "read_old_log_rows": ("PRIMARY", (b"", pruning.least_txn_id(before), BATCH_ROWS)),
        "delete_log_rows": ("PRIMARY", (sorted(tables.logged())[:BATCH_ROWS],)),
    }
    with tables.cursor() as cursor:
        cursor.execute("ANALYZE TABLE rmq_txn_inbox, rmq_txn_log")
        for statement, (key, arguments) in wanted.items():
            cursor.execute(f"EXPLAIN FORMAT=TRADITIONAL {STATEMENTS[statement]}", arguments)
            # MySQL 9 draws a tree by default.
            columns = [column for column, *_ in cursor.description]
            plan = dict(zip(columns, cursor.fetchone(), strict=True))
            assert plan["key"] == key, (statement, plan)
            assert int(plan["rows"]) <= 2100, (statement, plan)


@pytest.mark.parametrize("hours", [-100, 100])
def test_nothing_goes_while_the_clocks_disagree(
    tables: Tables, database: Database, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """A clock that is days ahead makes every row look old."""
    (old,) = tables.log(OLD)
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + hours * 3600)
    side = "ahead of" if hours > 0 else "behind"
    with pytest.raises(ClockError, match=rf"is 3(600|599)\d\d s {side} that of the database"):
        prune(database, PrunedLog(WEEK))
    assert tables.logged() == {old}


def test_one_process_prunes_at_a_time_and_another_one_when_it_is_gone(
    tables: Tables, database: Database
) -> None:
    """The lock goes with the connection, as by kill -9."""
    ((database_id,),) = rows(tables.url, "SELECT database_id FROM rmq_txn_identity")
    name = database_id.decode()
    (old,) = tables.log(OLD)
    with ExitStack() as resources:
        first = resources.enter_context(closing(database.sideline("pruning")))
        assert first.elect(PrunedLog(WEEK).lock(name))
        second = Pruning(database, name, PrunedLog(WEEK), round_seconds=0.05)
        resources.callback(second.close, 10.0)
        with closing(database.sideline("pruning")) as beside:
            assert not beside.elect(PrunedLog(WEEK).lock(name))
        second.start()
        until(lambda: _locks_waited_for(database, name), "some rounds of the second one")
        assert tables.logged() == {old}
        first.close()
        until(lambda: not tables.logged(), "the second one takes over")


def _locks_waited_for(database: Database, name: str) -> bool:
    """Whether the lock is held still, asked some times: rounds take a twentieth of a second."""
    for _ in range(20):
        with closing(database.sideline("pruning")) as beside:
            assert not beside.elect(PrunedLog(WEEK).lock(name))
    return True


def test_producers_and_consumers_prune_unless_told_not_to(
    desk: Desk, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On by default, by their own retention."""
    monkeypatch.setattr(Pruning.__init__, "__kwdefaults__", {"round_seconds": 0.1})
    broker = RocketMQ(desk.stack.name_server)
    group = f"c-{desk.topic}"
    (old,) = tables.log(OLD)
    tables.inbox(group, OLD, "old")

    def make(*, prune: bool) -> tuple[TransactionProducer, IdempotentConsumer]:
        consumer = IdempotentConsumer(group=group, broker=broker, database=desk.database, prune=prune)
        consumer.handles(desk.topic)(desk.award)
        return (
            TransactionProducer(
                group=f"g2-{desk.topic}",
                broker=broker,
                database=desk.database,
                topics=[desk.topic],
                prune=prune,
            ),
            consumer,
        )

    producer, consumer = make(prune=False)
    with producer, consumer:
        desk.publish("a")
        desk.wait_effects("a")
        assert old in tables.logged()
        assert "old" in tables.remembered(group)
    producer, consumer = make(prune=True)
    with producer, consumer:
        until(lambda: old not in tables.logged(), "the producer prunes the log")
        until(lambda: "old" not in tables.remembered(group), "the consumer prunes its inbox")


def test_a_dry_run_counts_and_forecasts_and_the_command_deletes(
    tables: Tables, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.log(OLD, COMMITTED, 3)
    tables.log(60, COMMITTED, 2)
    tables.inbox("points", OLD, "a", "b")
    tables.inbox("points", 60, "c")
    command = ["prune", "--database-url", tables.url, "--older-than", "7d"]
    assert main([*command, "--dry-run"]) == exit_codes.OK
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [
        "rmq_txn_log: 3 rows would be deleted",
        "rmq_txn_inbox of group points: 2 rows would be deleted",
    ]
    assert said[2].startswith("rmq_txn_log grows by 48 rows a day, ")
    assert said[3].startswith("rmq_txn_inbox grows by 24 rows a day, ")
    assert main([*command, "--group", "points"]) == exit_codes.OK
    assert capsys.readouterr().out == "rmq_txn_inbox of group points: 2 rows deleted\n"
    assert len(tables.logged()) == 5
    assert main(command) == exit_codes.OK
    assert "rmq_txn_log: 3 rows deleted" in capsys.readouterr().out
    assert len(tables.logged()) == 2
    assert tables.remembered("points") == {"c"}


def test_deliveries_go_on_while_many_rows_are_pruned(
    desk: Desk, tables: Tables, open_database: Callable[..., Database]
) -> None:
    """Of the same inbox, and each has its effect once."""
    group = f"c-{desk.topic}"
    tables.inbox(group, OLD, *(new_txn_id(time.time() - OLD) for _ in range(5000)))
    desk.consumer()
    ids = [f"m-{n}" for n in range(30)]
    pruner = Pruning(open_database(tables.url), "d", PrunedInbox(group, WEEK), round_seconds=0.01)
    pruner.start()
    try:
        desk.publish(*ids)
        desk.wait_effects(*ids)
        until(lambda: len(tables.remembered(group)) == len(ids), "the old rows are gone", 60)
    finally:
        pruner.close(10.0)
    assert sorted(desk.effects()) == sorted(ids)
