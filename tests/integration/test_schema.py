"""Our tables in a real database: made, upgraded, never downgraded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace

import pymysql
import pytest

from devstack import LocalStack
from rmq_txn import Database, schema
from rmq_txn.cli import exit_codes, main
from rmq_txn.database.pool import parse_url
from rmq_txn.database.sql import STATEMENTS, without_comments
from rmq_txn.errors import SchemaError, TransactionLostError
from tests.kit.administrator import administer
from tests.kit.processes import together
from tests.kit.rows import rows

pytestmark = pytest.mark.servers


def _as_version_1(database: Database) -> None:
    """Leave what version 1 had: its three tables and their columns, with rows in them."""
    newer = set(re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", schema.script()))
    newer -= {"rmq_txn_identity", "rmq_txn_log", "rmq_txn_inbox"}
    schema.run_script(database, ";".join(f"DROP TABLE {table}" for table in sorted(newer)))
    schema.run_script(
        database,
        "ALTER TABLE rmq_txn_identity DROP COLUMN secret, DROP COLUMN upgraded_at, "
        "DROP COLUMN compatible_from",
    )
    with database.transaction() as txn:
        txn.execute("UPDATE rmq_txn_identity SET schema_version = 1")
        txn.execute("INSERT INTO rmq_txn_log VALUES (%s, 1, 'ID')", ("0" * 32,))


def test_tables_of_version_1_are_upgraded_and_keep_their_rows(database: Database, database_url: str) -> None:
    """Refused before; then usable, with the identity that half messages out there carry."""
    database_id = schema.check(database).database_id
    _as_version_1(database)
    with pytest.raises(SchemaError, match=r"have version 1, .* run: rmq-txn schema apply"):
        schema.check(database)
    applied = schema.apply(database)
    assert applied == schema.AppliedSchema(schema.VERSION, database_id, created=False, upgraded=True)
    identity = schema.check(database)
    assert identity.database_id == database_id
    assert len(identity.secret) == 32
    assert identity.upgraded_at is not None
    assert rows(database_url, "SELECT state, message_ids FROM rmq_txn_log") == [(1, b"ID")]
    assert rows(database_url, "SELECT COUNT(*) FROM rmq_txn_outbox") == [(0,)]
    assert schema.apply(database) == schema.AppliedSchema(schema.VERSION, database_id, created=False)
    assert schema.check(database) == identity  # nothing of it changes any more


def test_tables_of_version_2_get_the_columns_of_version_3(database: Database, database_url: str) -> None:
    """Also when a process died half way: the columns that are there already are passed over."""
    schema.run_script(
        database,
        "ALTER TABLE rmq_txn_identity DROP COLUMN upgraded_at, DROP COLUMN compatible_from;"
        "ALTER TABLE rmq_txn_parked MODIFY COLUMN properties BLOB, MODIFY COLUMN tag BLOB,"
        "MODIFY COLUMN topic VARBINARY(255) NOT NULL, MODIFY COLUMN message_id VARBINARY(255) NOT NULL",
    )
    with database.transaction() as txn:
        txn.execute("UPDATE rmq_txn_identity SET schema_version = 2, secret = ''")
    assert schema.apply(database).upgraded
    column = (
        "SELECT DISTINCT DATA_TYPE FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() "
        "AND TABLE_NAME = 'rmq_txn_parked' "
        "AND COLUMN_NAME IN ('topic', 'message_id', 'tag', 'message_key', 'properties')"
    )
    assert rows(database_url, column) == [("mediumblob",)]
    assert schema.check(database).upgraded_at is not None


def test_tables_that_were_made_new_know_of_no_upgrade(database: Database) -> None:
    """Nothing of an older version is about, so nothing has to be looked for."""
    assert schema.check(database).upgraded_at is None


def test_processes_that_start_together_may_all_apply_the_tables(
    database: Database, database_url: str, open_database: Callable[..., Database]
) -> None:
    """None waits for a lock that another holds while waiting for its own."""
    _as_version_1(database)
    databases = [open_database(database_url) for _ in range(8)]
    applied: list[schema.AppliedSchema] = []
    together(
        [lambda each=each: [applied.append(schema.apply(each)) for _ in range(10)] for each in databases]
    )
    assert len(applied) == 80
    assert [each.upgraded for each in applied].count(True) == 1


def test_the_version_of_a_newer_package_is_not_lowered(database: Database, database_url: str) -> None:
    """Its tables may be needed by processes that run already; this one goes on with them if they only add."""
    identity = schema.check(database)
    newer = schema.VERSION + 1
    update = "UPDATE rmq_txn_identity SET schema_version = %s, compatible_from = %s"
    for compatible_from in (newer, None):
        with database.transaction() as txn:
            txn.execute(update, (newer, compatible_from))
        with pytest.raises(SchemaError, match="install a newer rmq_txn"):
            schema.apply(database)
        with pytest.raises(SchemaError, match="install a newer rmq_txn"):
            schema.check(database)
    with database.transaction() as txn:
        txn.execute(update, (newer, schema.VERSION))
    assert schema.check(database) == replace(identity, version=newer)
    applied = schema.apply(database)
    assert (applied.version, applied.created, applied.upgraded) == (newer, False, False)
    assert rows(database_url, "SELECT schema_version, compatible_from FROM rmq_txn_identity") == [
        (newer, schema.VERSION)
    ]


@pytest.mark.local_stack
def test_what_will_be_no_good_is_said_at_start(
    stack: LocalStack,
    database_url: str,
    open_database: Callable[..., Database],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A table without transactions, and a server that takes no large statement; each in a sentence."""
    with pymysql.connect(**parse_url(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE counter (n INT) ENGINE = MyISAM")
    before = rows(database_url, "SELECT @@global.max_allowed_packet")[0][0]
    administer(stack, "SET GLOBAL max_allowed_packet = 1048576")
    try:
        schema.check(open_database(database_url))
    finally:
        administer(stack, f"SET GLOBAL max_allowed_packet = {before}")
    assert "counter (MyISAM)" in caplog.text
    assert "max_allowed_packet of the server is small" in caplog.text


def test_a_failed_block_that_wrote_to_a_table_without_transactions_is_told_so(
    database_url: str, open_database: Callable[..., Database]
) -> None:
    """ROLLBACK leaves it; but a temporary table of that kind is nobody's effect."""
    with pymysql.connect(**parse_url(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE counter (n INT) ENGINE = MyISAM")
    database = open_database(database_url)

    def fail_after(*statements: str) -> None:
        with database.transaction() as txn:
            for sql in statements:
                txn.execute(sql)
            raise ZeroDivisionError

    with pytest.raises(TransactionLostError, match="knows no transactions"):
        fail_after("INSERT INTO counter VALUES (1)")
    assert rows(database_url, "SELECT n FROM counter") == [(1,)]
    with pytest.raises(ZeroDivisionError):
        fail_after("INSERT INTO effect (id) VALUES ('x')")


@pytest.mark.parametrize("sql_mode", ["ANSI_QUOTES", "ORACLE", "NO_BACKSLASH_ESCAPES", ""])
def test_tables_and_statements_are_sound_in_every_sql_mode(database_url: str, sql_mode: str) -> None:
    """A server may have any as its default; `body` is a reserved word in one of them."""
    with pymysql.connect(**parse_url(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT VERSION()")
        row = cursor.fetchone()
        assert row is not None
        if sql_mode == "ORACLE" and "MariaDB" not in row[0]:
            pytest.skip("MySQL has no such mode")
        cursor.execute("SET SESSION sql_mode = %s", (sql_mode,))
        for table in re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", schema.script()):
            cursor.execute(f"DROP TABLE {table}")
        for statement in filter(None, map(str.strip, without_comments(schema.script()).split(";"))):
            cursor.execute(statement)
        for sql in STATEMENTS.values():
            if sql.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
                text = sql.replace("position) IN %s", "position) IN ((?, ?))").replace("IN %s", "IN (?)")
                text = text.replace("%s", "?").replace("%%", "%")
                cursor.execute("PREPARE ours FROM %s", (text,))


def test_what_a_migration_tool_left_out_is_named(
    database: Database, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a command for CI; a version says nothing of columns and indexes."""
    command = ["schema", "check", "--database-url", database_url]
    assert main(command) == exit_codes.OK
    database_id = schema.check(database).database_id
    assert capsys.readouterr().out == f"schema version {schema.VERSION}, database id {database_id}\n"
    schema.run_script(
        database,
        "ALTER TABLE rmq_txn_inbox DROP INDEX by_age; ALTER TABLE rmq_txn_outbox DROP COLUMN retry_at;"
        "DROP TABLE rmq_txn_parked",
    )
    named = schema.missing(database)
    assert named[:2] == ["rmq_txn_outbox.retry_at", "rmq_txn_inbox.by_age"]
    assert {name.partition(".")[0] for name in named[2:]} == {"rmq_txn_parked"}
    assert main(command) == exit_codes.NO_SCHEMA
    assert "the tables lack rmq_txn_outbox.retry_at, rmq_txn_inbox.by_age, " in capsys.readouterr().err
    schema.apply(database)
    assert schema.missing(database) == ["rmq_txn_outbox.retry_at", "rmq_txn_inbox.by_age"]


def test_how_the_tables_are_is_told_whatever_they_are(
    database: Database, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As needed, incomplete, too new, new and usable, older, none; it never fails."""

    def told() -> tuple[str, bool]:
        assert main(["schema", "status", "--json", "--database-url", database_url]) == exit_codes.OK
        said = json.loads(capsys.readouterr().out)
        return said["text"].partition(": ")[2], said["usable"]

    def set_to(version: int, compatible_from: int | None) -> None:
        with database.transaction() as txn:
            update = "UPDATE rmq_txn_identity SET schema_version = %s, compatible_from = %s"
            txn.execute(update, (version, compatible_from))

    assert told() == ("as needed", True)
    schema.run_script(database, "ALTER TABLE rmq_txn_inbox DROP INDEX by_age")
    assert told() == ("they lack rmq_txn_inbox.by_age: compare with `rmq-txn schema print`", False)
    schema.run_script(database, "ALTER TABLE rmq_txn_inbox ADD INDEX by_age (consumer_group, handled_at)")
    set_to(schema.VERSION + 1, schema.VERSION + 1)
    assert told() == ("install a newer rmq_txn", False)
    set_to(schema.VERSION + 1, schema.VERSION)
    assert told() == ("as needed", True)
    set_to(schema.VERSION - 1, None)
    assert told() == ("run: rmq-txn schema apply", False)
    for table in re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", schema.script()):
        schema.run_script(database, f"DROP TABLE {table}")
    assert told() == ("run: rmq-txn schema apply", False)
