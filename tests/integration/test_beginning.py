"""
The tripwire goes out with the first statement where that is ours: an inbox row, a log row.

Whatever becomes of that write, nothing of it stays but what COMMIT made durable, and a connection that was
dead in the pool is replaced in silence.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pymysql
import pymysql.connections
import pytest

from rmq_txn import Database, Delivery, Transaction
from rmq_txn.consumer import inbox
from rmq_txn.consumer.handling import Handling
from rmq_txn.consumer.routes import ANY_TAG, Routes
from rmq_txn.database import beginning
from rmq_txn.database.connection import ServerThread, WatchedConnection
from rmq_txn.database.pool import parse_url
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.errors import DatabaseUnavailableError, TransactionLostError
from rmq_txn.verdict import Answer
from tests.kit.commands import break_after, commands_of, names_of
from tests.kit.kills import kill
from tests.kit.pooled import SoftTimeLimit, assert_in_step, connection_of, interrupt
from tests.kit.proxy import Line, proxied, through
from tests.kit.rows import rows

pytestmark = pytest.mark.servers

WRITE = "INSERT INTO effect (id) VALUES (%s)"
CLAIM = "INSERT INTO rmq_txn_inbox (consumer_group, dedup_key) VALUES ('g', %s)"
TOGETHER = ["SAVEPOINT rmq_txn_tripwire", "INSERT INTO rmq_txn_inbox"]


@pytest.fixture
def database(database_url: str, open_database: Callable[..., Database]) -> Database:
    """Return a database whose transactions all use the same connection, and wait a second for a lock."""
    return open_database(database_url, pool_size=1, lock_wait_seconds=1)


def deliver(database: Database, key: str) -> bool:
    """Do what a delivery does; return whether it was the first with this key."""
    with database.transaction(ours_first=True) as txn:
        if not inbox.claim(txn, "g", key, None):
            return False
        txn.execute(WRITE, (key,))
        return True


def durable(url: str) -> tuple[set[str], set[str]]:
    """Return the keys of effects and of inbox rows, read past the SDK."""
    effects = rows(url, "SELECT id FROM effect")
    claims = rows(url, "SELECT dedup_key FROM rmq_txn_inbox")
    return {id_ for (id_,) in effects}, {bytes(key).decode() for (key,) in claims}


def test_a_duplicate_is_told_and_its_connection_goes_on(database: Database, database_url: str) -> None:
    """The tripwire before it stands; both are rolled back, or committed."""
    assert [deliver(database, key) for key in ("one", "one", "two")] == [True, False, True]
    assert durable(database_url) == ({"one", "two"}, {"one", "two"})
    assert_in_step(database)


def test_a_connection_that_died_in_the_pool_is_replaced_with_nobody_told(
    database: Database, database_url: str
) -> None:
    """Both statements are sent again; the transaction knows its new connection."""
    dead = connection_of(database)
    kill(database_url, dead)
    with database.transaction(ours_first=True) as txn:
        assert inbox.claim(txn, "g", "after", None)
        assert txn.server_thread.id == txn.connection.thread_id() != dead
        txn.execute(WRITE, ("after",))
    assert durable(database_url) == ({"after"}, {"after"})


@pytest.mark.parametrize("arrive", [0, 1, 2])
@pytest.mark.parametrize("how", ["cut", "silent"])
def test_wherever_the_line_breaks_in_the_first_write_it_begins_again(
    database_url: str, open_database: Callable[..., Database], arrive: int, how: str
) -> None:
    """So many of the two reach the server. A claim that no answer came to is ended: it would hold its key."""
    seen: list[list[str]] = []
    with proxied(database_url) as proxy:
        database = open_database(
            through(database_url, proxy), pool_size=1, statement_timeout_seconds=2, lock_wait_seconds=1
        )
        assert_in_step(database)

        def break_it(line: Line, data: bytes) -> None:
            commands = commands_of(data)
            if len(commands) == 2:
                seen.append(names_of(commands))
                proxy.on_request = lambda _line, _data: None
                break_after(line, commands, arrive, how)

        proxy.on_request = break_it
        assert deliver(database, "one")
    assert [sql[: len(start)] for sql, start in zip(seen[0], TOGETHER, strict=True)] == TOGETHER
    assert durable(database_url) == ({"one"}, {"one"})


def test_a_database_that_is_away_is_told_at_the_first_statement(
    database_url: str, open_database: Callable[..., Database]
) -> None:
    """And not taken for a duplicate."""
    with proxied(database_url) as proxy:
        database = open_database(through(database_url, proxy), pool_size=1, connect_timeout_seconds=1)
        assert_in_step(database)
        proxy.cut()
        with pytest.raises(DatabaseUnavailableError):
            deliver(database, "one")
        proxy.heal()
        assert deliver(database, "one")
    assert durable(database_url) == ({"one"}, {"one"})


def test_nobody_looks_on_the_server_for_a_delivery_that_never_began_there(
    database_url: str, open_database: Callable[..., Database]
) -> None:
    """While the database is away that would cost each try a connection more, of those of check-backs."""
    closing, routes = threading.Event(), Routes()
    with proxied(database_url) as proxy:
        database = open_database(through(database_url, proxy), pool_size=1, connect_timeout_seconds=1)
        handling = Handling(
            group="g",
            routes=routes,
            dedup_key=lambda _delivery: "key",
            database=database,
            publisher=None,
            join=None,
            max_attempts=3,
            retention_seconds=86_400.0,
            closing=closing,
        )
        routes.add("topic", ANY_TAG, lambda _txn, _delivery: None)
        handling.prepare()
        assert handling.deliver(Delivery("topic", b"{}", "ID")) is Answer.ACK
        proxy.cut()
        with (
            mock.patch.object(database, "kill") as killed,
            mock.patch.object(database, "is_reachable", side_effect=lambda: closing.set()),
        ):
            answer = handling.deliver(Delivery("topic", b"{}", "ID"))
    assert closing.is_set(), "it waited for the database"
    assert (answer, killed.call_count) == (Answer.RETRY, 0)


def test_a_claim_that_waits_too_long_for_another_one_leaves_nothing(
    database: Database, database_url: str
) -> None:
    """The tripwire before it was set; both go by the rollback, and the connection stays."""
    used = connection_of(database)
    with pymysql.connect(**parse_url(database_url)) as other, other.cursor() as cursor:
        cursor.execute(CLAIM, ("one",))
        with pytest.raises(pymysql.err.OperationalError) as caught:
            deliver(database, "one")
    assert caught.value.args[0] == 1205
    assert durable(database_url) == (set(), set())
    assert connection_of(database) == used
    assert deliver(database, "one")


WAYS: dict[str, Callable[[Transaction], object]] = {
    "execute": lambda txn: txn.execute(WRITE, ("way",)),
    "executemany": lambda txn: txn.executemany(WRITE, [("way",), ("other",)]),
    "insert_new": lambda txn: txn.insert_new(WRITE, ("way",)),
    "cursor": lambda txn: txn.cursor().execute(WRITE, ("way",)),
    "connection": lambda txn: txn.connection.cursor().execute(WRITE, ("way",)),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_ours_goes_out_behind_the_tripwire(
    database: Database, database_url: str, way: str
) -> None:
    """Alone: it may be DDL, or write to a table that knows no transactions, and must not be sent twice."""
    with database.transaction(ours_first=True) as txn:
        WAYS[way](txn)
    before = durable(database_url)
    assert "way" in before[0]

    def end_early() -> None:
        with database.transaction(ours_first=True) as txn:
            WAYS[way](txn)
            txn.execute("COMMIT")

    rows(database_url, "DELETE FROM effect")
    with pytest.raises(TransactionLostError):
        end_early()


def test_a_block_without_a_statement_commits_nothing_and_fails_at_nothing(database: Database) -> None:
    """Its tripwire is set and released all the same; also where the connection tells of the one before."""
    for key in ("one", "two"):
        with database.transaction(ours_first=True):
            pass
        assert deliver(database, key)
    assert_in_step(database)


def test_what_fails_before_the_first_statement_is_told_as_it_is(database: Database) -> None:
    """Not as a transaction that the server ended: that was the one before, on the same connection."""

    def fail() -> None:
        with database.transaction(ours_first=True) as txn:
            assert not txn.stands
            raise ZeroDivisionError

    assert deliver(database, "one")
    with pytest.raises(ZeroDivisionError):
        fail()
    assert deliver(database, "two")


def test_a_server_that_refuses_the_tripwire_is_told_and_gets_no_work(
    database: Database, database_url: str
) -> None:
    """Whatever it answered to the claim behind it, which is rolled back."""
    assert_in_step(database)
    real = WatchedConnection.query_each

    def refused(self: WatchedConnection, statements: Sequence[str]) -> list[Any]:
        answers: list[Any] = real(self, statements)
        if statements[0] == STATEMENTS["set_tripwire"]:
            answers[0] = pymysql.err.ProgrammingError(1064, "what is a savepoint")
        return answers

    with (
        mock.patch.object(WatchedConnection, "query_each", refused),
        pytest.raises(pymysql.err.ProgrammingError, match="savepoint"),
    ):
        deliver(database, "one")
    assert durable(database_url) == (set(), set())
    assert deliver(database, "one")


@pytest.mark.parametrize(
    ("bears", "restarted", "killed"), [(True, False, 1), (False, False, 0), (True, True, 0)]
)
def test_the_lost_connection_is_ended_only_where_it_may_hold_something(
    database: Database, database_url: str, bears: bool, restarted: bool, killed: int
) -> None:
    """Not where the claim was not sent, nor where its id may be another's: of a proxy that began anew."""
    assert deliver(database, "one")
    lost = connection_of(database)
    kill(database_url, lost)
    with ExitStack() as patches:
        ended = patches.enter_context(mock.patch.object(beginning, "end", wraps=beginning.end))
        if not bears:
            patches.enter_context(
                mock.patch.object(WatchedConnection, "takes_together", property(lambda _self: False))
            )
        if restarted:
            patches.enter_context(mock.patch.object(ServerThread, "id", property(lambda _self: 7)))
        assert deliver(database, "two")
    assert ended.call_count == killed


def test_a_lost_connection_that_can_not_be_ended_is_replaced_all_the_same(
    database: Database, database_url: str
) -> None:
    """What it holds is waited for, if it holds anything."""
    assert deliver(database, "one")
    kill(database_url, connection_of(database))
    refusal = pymysql.err.OperationalError(1095, "you are not its owner")
    with mock.patch.object(beginning, "end", side_effect=refusal) as ended:
        assert deliver(database, "two")
    assert ended.call_count == 1


@pytest.mark.parametrize("unread", [2, 1])
def test_a_signal_in_the_first_write_leaves_no_connection_that_is_used_again(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, unread: int
) -> None:
    """Before the first answer, or between it and the second."""
    used = connection_of(database)
    interrupt(monkeypatch, after=2 - unread)
    with pytest.raises(SoftTimeLimit):
        deliver(database, "one")
    assert connection_of(database) != used
    assert durable(database_url) == (set(), set())
    assert deliver(database, "one")


def test_behind_what_bears_one_statement_a_write_the_claim_follows_the_tripwire(
    database_url: str, open_database: Callable[..., Database]
) -> None:
    """As two round trips."""
    sizes: list[int] = []
    with proxied(database_url) as proxy:

        def bears_one(line: Line, data: bytes) -> None:
            if data[3] == 0:  # a command; the greeting is divided otherwise
                sizes.append(len(commands_of(data)))
                if sizes[-1] > 1:
                    line.cut()

        proxy.on_request = bears_one
        database = open_database(through(database_url, proxy), pool_size=1, lock_wait_seconds=1)
        assert [deliver(database, key) for key in ("one", "one")] == [True, False]
    assert sorted(sizes)[-2:] == [1, 2], "tried once"
    assert durable(database_url) == ({"one"}, {"one"})
