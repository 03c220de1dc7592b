"""A failed block whose transaction the server had ended: its caller is told, whatever the block raised."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pymysql
import pymysql.cursors
import pytest

from devstack import LocalStack
from rmq_txn import Database, Message, Transaction
from rmq_txn.errors import FencedError, SettingsError, TransactionLostError
from tests.kit.administrator import administer
from tests.kit.desk import Desk
from tests.kit.rows import rows

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

WRITE = "INSERT INTO effect (id) VALUES ('before')"

ENDINGS = [
    "CREATE TABLE more (id INT)",
    "TRUNCATE TABLE effect",
    "COMMIT",
    "COMMIT AND CHAIN",
    "BEGIN",
    "SET autocommit = 1",
    "LOCK TABLES effect WRITE",
    "CALL commits()",
    "CREATE TABLE effect (id INT)",  # fails, and has committed
]


class OfTheBlock(Exception):
    """What business code raises."""


def deadlock() -> None:
    """Raise what the server would."""
    raise pymysql.err.OperationalError(1213, "Deadlock found when trying to get lock")


@pytest.fixture
def url(stack: LocalStack, database_url: str) -> str:
    """Return a database with procedures that commit, and that fail late."""
    name = database_url.rpartition("/")[2]
    insert = f"INSERT INTO {name}.effect (id, n) VALUES"
    for procedure in (
        f"commits() BEGIN {insert} ('inside', 70); COMMIT; {insert} ('open', 71); END",
        f"fails_late() BEGIN SELECT 1; {insert} ('late', 7); {insert} ('late', 7); END",
    ):
        administer(stack, f"CREATE PROCEDURE {name}.{procedure}")
    administer(stack, f"GRANT EXECUTE, LOCK TABLES ON {name}.* TO '{name}'@'127.0.0.1'")
    return database_url


def end_with(txn: Transaction, sql: str) -> None:
    """Write, let the server end the transaction, and go on as if nothing was."""
    txn.execute(WRITE)
    with suppress(pymysql.err.OperationalError):  # 1050, the table exists
        txn.execute(sql)


@pytest.mark.parametrize("sql", ENDINGS)
def test_a_block_that_raises_after_the_server_ended_its_transaction_is_told_as_lost(
    url: str, open_database: Callable[..., Database], sql: str
) -> None:
    """What was written before is durable: `ValueError` alone would say it is not."""
    database = open_database(url, pool_size=1)

    def block() -> None:
        with database.transaction() as txn:
            end_with(txn, sql)
            raise OfTheBlock

    with pytest.raises(TransactionLostError) as caught:
        block()
    assert isinstance(caught.value.__cause__, OfTheBlock)
    with database.transaction(read_only=True) as txn:
        txn.execute("SELECT dedup_key FROM rmq_txn_inbox")  # no lock of a table is left, nor autocommit
        assert txn.execute("SELECT @@autocommit") == 1
        assert txn.fetchone() == (0,)


@pytest.mark.parametrize(
    "sql", [sql for sql in ENDINGS if not sql.startswith(("CALL", "CREATE TABLE effect"))]
)
@pytest.mark.parametrize("fails", ["by a deadlock", "by its connection"])
def test_a_deadlock_or_a_lost_connection_after_the_end_is_no_reason_to_try_again(
    url: str, open_database: Callable[..., Database], sql: str, fails: str
) -> None:
    """The server can't be asked then; its earlier answers have said it."""
    database = open_database(url)

    def block() -> None:
        with database.transaction() as txn:
            end_with(txn, sql)
            if fails == "by a deadlock":
                deadlock()
            txn.execute("KILL CONNECTION CONNECTION_ID()")

    with pytest.raises(TransactionLostError):
        block()


def test_a_deadlock_alone_stays_a_deadlock(url: str, open_database: Callable[..., Database]) -> None:
    """Nothing is durable then, and trying again is right."""
    database = open_database(url)

    def block() -> None:
        with database.transaction() as txn:
            txn.execute(WRITE)
            deadlock()

    with pytest.raises(pymysql.err.OperationalError, match="Deadlock"):
        block()
    assert rows(url, "SELECT id FROM effect") == []


@pytest.mark.parametrize("form", ["A", "B"])
def test_a_producers_block_that_raises_after_ddl_is_told_as_lost(desk: Desk, form: str) -> None:
    """Both forms; the message is never delivered, the write before the DDL stands."""
    producer = desk.producer

    def work(txn: Transaction) -> None:
        end_with(txn, "CREATE TABLE more (id INT)")
        raise OfTheBlock

    def publish() -> None:
        if form == "B":
            producer.send_in_transaction(Message(desk.topic, {"id": form}), work)
        with producer.transaction() as txn:
            txn.publish(desk.topic, {"id": form})
            work(txn)

    with pytest.raises(TransactionLostError) as caught:
        publish()
    assert isinstance(caught.value.__cause__, OfTheBlock)
    assert desk.effects() == ["before"]


@pytest.mark.parametrize("form", ["A", "B"])
@pytest.mark.parametrize("how", ["execute", "cursor", "unbuffered"])
def test_a_late_error_of_a_procedure_is_an_error_of_business_code(
    url: str, desk: Desk, form: str, how: str
) -> None:
    """Its duplicate key is none of our log's: never `FencedError`, which says that a retry is safe."""
    producer = desk.producer

    def work(txn: Transaction) -> None:
        if how == "execute":
            txn.execute("CALL fails_late()")
        else:
            kind = pymysql.cursors.SSCursor if how == "unbuffered" else pymysql.cursors.Cursor
            txn.connection.cursor(kind).execute("CALL fails_late()")

    def publish() -> None:
        if form == "B":
            producer.send_in_transaction(Message(desk.topic, {"id": form}), work)
        with producer.transaction() as txn:
            txn.publish(desk.topic, {"id": form})
            work(txn)

    with pytest.raises(pymysql.err.IntegrityError, match="'7' for key") as caught:
        publish()
    assert not isinstance(caught.value, FencedError)
    assert desk.effects() == []


@pytest.mark.parametrize("form", ["A", "B"])
def test_after_use_of_another_database_log_row_and_copy_go_to_ours(
    stack: LocalStack, url: str, desk: Desk, form: str
) -> None:
    """With the same tables there, they went there, check-back said ROLLBACK, and the message was lost."""
    mine = url.rpartition("/")[2]
    other = f"{mine}x"
    administer(stack, f"CREATE DATABASE {other}")
    administer(stack, f"GRANT ALL ON {other}.* TO '{mine}'@'127.0.0.1'")
    for table in ("rmq_txn_log", "rmq_txn_outbox"):
        administer(stack, f"CREATE TABLE {other}.{table} LIKE {mine}.{table}")
    producer = desk.producer

    def work(txn: Transaction) -> None:
        txn.execute(WRITE)
        txn.execute(f"USE {other}")

    if form == "B":
        producer.send_in_transaction(Message(desk.topic, {"id": form}), work)
    else:
        with producer.transaction() as txn:
            work(txn)
            txn.publish(desk.topic, {"id": form})
    for table in ("rmq_txn_log", "rmq_txn_outbox"):
        assert len(rows(url, f"SELECT txn_id FROM {mine}.{table}")) == 1
        assert rows(url, f"SELECT txn_id FROM {other}.{table}") == []


@pytest.mark.parametrize("character_set", ["gbk", "big5", "sjis"])
def test_a_character_set_in_which_escaping_is_unsafe_is_refused_after_set_names_as_text(
    url: str, open_database: Callable[..., Database], character_set: str
) -> None:
    """The next statement is not sent: there a quote in a value could end the value."""
    database = open_database(url, pool_size=1)

    def block() -> None:
        with database.transaction() as txn:
            txn.cursor().execute(f"SET NAMES {character_set}")
            txn.execute("INSERT INTO effect (id) VALUES (%s)", ("縗' OR 1 -- ",))

    with pytest.raises(SettingsError, match=f"character set '{character_set}', allowed are"):
        block()
    with database.transaction() as txn:
        assert txn.execute("SELECT id FROM effect") == 0
