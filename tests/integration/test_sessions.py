"""What a session makes of a connection that somebody used before."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import suppress

import pymysql
import pymysql.connections
import pymysql.cursors
import pytest

from rmq_txn import Database, Transaction
from rmq_txn.database.database import READ_ISOLATION
from rmq_txn.database.pool import parse_url
from rmq_txn.errors import LifecycleError, SettingsError, TransactionLostError
from tests.kit.pooled import SoftTimeLimit, connection_of, interrupt
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = pytest.mark.servers

Leave = Callable[[Transaction], object]


@pytest.fixture
def database(database_url: str, open_database: Callable[..., Database]) -> Database:
    """Return a database whose transactions all use the same connection."""
    return open_database(database_url, pool_size=1)


def write(txn: Transaction, id_: str) -> None:
    """Write one effect."""
    txn.execute("INSERT INTO effect (id) VALUES (%s)", (id_,))


def fail_after(database: Database, sql: str) -> None:
    """Run one statement in a transaction whose block then raises."""

    def block() -> None:
        with database.transaction() as txn:
            txn.execute(sql)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()


def effects(url: str) -> set[str]:
    """Return what is durable, read past the SDK."""
    return {row[0] for row in rows(url, "SELECT id FROM effect")}


def test_a_connection_that_died_in_the_pool_is_replaced_before_anything_ran(
    database: Database, database_url: str
) -> None:
    """The first statement finds it dead; nobody gets an error."""
    idle = connection_of(database)
    with pymysql.connect(**parse_url(database_url)) as other, other.cursor() as cursor:
        cursor.execute("KILL CONNECTION %s", (idle,))
    alive = "SELECT 1 FROM information_schema.processlist WHERE id = %s"
    until(lambda: not rows(database_url, alive, (idle,)), "the killed connection is gone")
    with database.transaction() as txn:
        write(txn, "after")
    assert effects(database_url) == {"after"}
    assert connection_of(database) != idle


def test_autocommit_that_a_former_borrower_switched_on_splits_no_transaction(
    database: Database, database_url: str
) -> None:
    """On a connection with autocommit a savepoint holds nothing together: it is replaced."""
    used = connection_of(database)
    with pytest.raises(TransactionLostError):
        fail_after(database, "SET autocommit = 1")
    fail_after(database, "INSERT INTO effect (id) VALUES ('half')")
    assert effects(database_url) == set()
    assert connection_of(database) != used


@pytest.mark.parametrize(
    "sql", ["INSERT INTO effect (id) VALUES ('stray')", "SELECT id FROM effect"], ids=["write", "read"]
)
def test_a_cursor_used_after_its_block_is_closed(database: Database, database_url: str, sql: str) -> None:
    """Else its write would be committed with the next transaction, which would read what its read saw."""
    with database.transaction() as txn:
        cursors = [txn.cursor(), txn.connection.cursor(pymysql.cursors.DictCursor)]
        connection = txn.connection
    for cursor in cursors:
        with pytest.raises(pymysql.err.ProgrammingError, match="closed"):
            cursor.execute(sql)
    with pytest.raises(LifecycleError, match="use it inside its block"):
        connection.query(sql)
    assert effects(database_url) == set()


def test_a_write_on_the_connection_between_two_transactions_is_no_part_of_the_next(
    database: Database, database_url: str
) -> None:
    """Whoever kept a method of the connection: its open transaction dies with the connection."""
    with database.transaction() as txn:
        query = txn.connection.query
    query("INSERT INTO effect (id) VALUES ('stray')")
    with database.transaction() as txn:
        write(txn, "mine")
    assert effects(database_url) == {"mine"}


def test_a_connection_whose_answer_was_not_read_is_not_used_again(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next statement would read the answer of the one before, and a COMMIT believe it."""

    def block() -> None:
        with database.transaction() as txn:
            interrupt(monkeypatch)
            write(txn, "interrupted")

    used = connection_of(database)
    with pytest.raises(SoftTimeLimit):
        block()
    assert connection_of(database) != used
    with database.transaction() as txn:
        assert txn.execute("SELECT id FROM effect WHERE id = 'interrupted'") == 0
        write(txn, "after")
    assert effects(database_url) == {"after"}


def test_bad_arguments_cost_no_connection(database: Database) -> None:
    """They are found before anything is sent."""
    used = connection_of(database)
    with pytest.raises(KeyError), database.transaction() as txn:
        txn.execute("SELECT %(there)s", {"here": 1})
    assert connection_of(database) == used


# What business code may leave on a session, as SQL text, and how the next borrower would see it.
LEFTOVERS = {
    "USE information_schema": "SELECT DATABASE()",
    "SET @left = 1": "SELECT @left",
    "SET SESSION sql_mode = 'ANSI_QUOTES'": "SELECT @@sql_mode",
    "SET NAMES latin1": "SELECT @@character_set_client",
    "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE": "SHOW VARIABLES LIKE '%isolation'",
    "SET SESSION TRANSACTION READ ONLY": "SHOW VARIABLES LIKE '%_read_only'",
    "SET time_zone = '+05:00'": "SELECT @@time_zone",
    "SET foreign_key_checks = 0": "SELECT @@foreign_key_checks",
    "SET innodb_lock_wait_timeout = 49": "SELECT @@innodb_lock_wait_timeout",
    "SET wait_timeout = 4949": "SELECT @@wait_timeout",
    "PREPARE left_over FROM 'SELECT 1'": "EXECUTE left_over",
    "LOCK TABLES effect WRITE": "SELECT dedup_key FROM rmq_txn_inbox",
}


def answer(txn: Transaction, question: str) -> object:
    """Return the rows of a question, or the number of its error."""
    try:
        txn.execute(question)
    except pymysql.err.MySQLError as error:
        return error.args[0]
    return txn.fetchall()


@pytest.mark.parametrize("how", ["execute", "cursor", "connection"])
@pytest.mark.parametrize("ends", ["commits", "raises"])
def test_what_business_code_leaves_on_a_session_is_not_lent_to_the_next(
    open_database: Callable[..., Database], database_url: str, how: str, ends: str
) -> None:
    """Schema, variables, isolation, character set, statements, locks; by whatever way it was said."""
    database = open_database(database_url, pool_size=1)
    with database.transaction(read_only=True) as txn:
        fresh = {question: answer(txn, question) for question in LEFTOVERS.values()}
    for leave, question in LEFTOVERS.items():
        with suppress(ZeroDivisionError, TransactionLostError), database.transaction() as txn:
            run = {
                "execute": txn.execute,
                "cursor": txn.cursor().execute,
                "connection": txn.connection.query,
            }[how]
            run(leave)
            if ends == "raises":
                raise ZeroDivisionError
        with database.transaction(read_only=True) as txn:
            assert (leave, answer(txn, question)) == (leave, fresh[question])


def test_who_leaves_nothing_keeps_the_connection(database: Database, database_url: str) -> None:
    """Writes, reads, a swallowed duplicate, a raising block: none of them costs a new connection."""
    used = connection_of(database)
    with database.transaction() as txn:
        write(txn, "one")
        txn.executemany("INSERT INTO effect (id) VALUES (%s)", [("two",), ("three",)])
        txn.execute("SELECT LAST_INSERT_ID(), COUNT(*) FROM effect FOR UPDATE")
        with suppress(pymysql.err.IntegrityError):
            txn.execute("INSERT INTO effect (id, n) VALUES ('twice', 1)")
    fail_after(database, "DELETE FROM effect")
    assert connection_of(database) == used


def test_a_connection_is_killed_only_if_its_id_is_surely_its_own(
    database: Database, database_url: str
) -> None:
    """After a restart, or on another server, the id may be somebody else's."""
    session = database.begin("old")
    thread = session.server_thread
    long_ago = (thread.made_at[0] - 1e9, thread.made_at[1] - 1e9)

    def is_there() -> bool:
        return bool(
            rows(database_url, "SELECT 1 FROM information_schema.processlist WHERE id = %s", thread[:1])
        )

    assert database.kill(thread._replace(made_at=long_ago)) is False  # older than the server's start
    assert database.kill(thread._replace(made_at=(thread.made_at[0], long_ago[1]))) is False
    assert database.kill(thread._replace(server="another/3306/1")) is False
    assert is_there()
    until(lambda: database.kill(thread), "the server has been up for longer than the connection")
    until(lambda: not is_there(), "the connection is gone")
    assert database.kill(thread) is True  # gone already is fine
    assert session.rollback() is False


@pytest.mark.parametrize("level", ["read committed", "repeatable read"])
def test_transactions_have_the_isolation_level_that_was_asked_for(
    database_url: str, open_database: Callable[..., Database], level: str
) -> None:
    """From the first transaction on, and it costs no connection."""
    database = open_database(database_url, isolation_level=level, pool_size=1)
    used = connection_of(database)
    with database.transaction() as txn:
        txn.execute(READ_ISOLATION)
        assert txn.fetchone() == (level.upper().replace(" ", "-"),)
        before = txn.execute("SELECT id FROM effect")
        with pymysql.connect(**parse_url(database_url), autocommit=True) as beside, beside.cursor() as cursor:
            cursor.execute("INSERT INTO effect (id) VALUES ('beside')")
        assert txn.execute("SELECT id FROM effect") - before == (level == "read committed")
    assert connection_of(database) == used
    with pytest.raises(SettingsError, match="isolation_level is 'serial', allowed are read committed"):
        Database.mysql(database_url, isolation_level="serial")


def test_errors_are_known_where_django_put_others_in_their_place(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `install_as_MySQLdb()` its backend makes `pymysql.err` a module whose classes nobody raises."""
    spec = importlib.util.find_spec("pymysql.err")
    assert spec is not None
    assert spec.loader is not None
    strange = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(strange)
    monkeypatch.setattr(pymysql, "err", strange)
    with database.transaction() as txn:
        for new in (True, False):
            insert = "INSERT INTO effect (n, id) VALUES (%s, %s)"
            assert txn.insert_new(insert, (1, "a")) is new


def test_a_statement_larger_than_the_server_takes_is_named(database: Database) -> None:
    """Sent, it would look like a lost connection, and a consumer would wait for the database for ever."""
    with database.transaction(read_only=True) as txn:
        txn.execute("SELECT @@max_allowed_packet")
        row = txn.fetchone()
    assert row is not None

    def block() -> None:
        with database.transaction() as txn:
            txn.execute("INSERT INTO effect (id) VALUES (%s)", ("x" * row[0],))

    with pytest.raises(
        pymysql.err.OperationalError, match=rf"max_allowed_packet of the server is {row[0]} bytes"
    ):
        block()


def test_the_outbox_has_its_isolation_again_after_its_connection_was_lost(
    database: Database, database_url: str
) -> None:
    """At another level its DELETE would lock the gap in which others insert their copies."""
    sideline = database.sideline("outbox")

    def isolation() -> tuple[int, str]:
        with sideline.session() as session:
            # MariaDB 10.11 has only the older name.
            session.execute("SHOW VARIABLES WHERE Variable_name IN ('tx_isolation', 'transaction_isolation')")
            return session.connection_id, {value for _, value in session.cursor.fetchall()}.pop()

    first, level = isolation()
    assert level == "READ-COMMITTED"
    rows(database_url, f"KILL CONNECTION {first}")
    second, level = isolation()
    assert second != first
    assert level == "READ-COMMITTED"
    sideline.close()
