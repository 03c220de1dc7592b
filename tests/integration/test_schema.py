"""Our tables in a real database: made, upgraded, never downgraded."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from rmq_txn import Database, schema
from rmq_txn.errors import SchemaError
from tests.kit.processes import together
from tests.kit.rows import rows

pytestmark = pytest.mark.servers


def _as_version_1(database: Database) -> None:
    """Leave what version 1 had: its three tables and their columns, with rows in them."""
    newer = set(re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", schema.script()))
    newer -= {"rmq_txn_identity", "rmq_txn_log", "rmq_txn_inbox"}
    schema.run_script(database, ";".join(f"DROP TABLE {table}" for table in sorted(newer)))
    schema.run_script(database, "ALTER TABLE rmq_txn_identity DROP COLUMN secret, DROP COLUMN upgraded_at")
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
        "ALTER TABLE rmq_txn_identity DROP COLUMN upgraded_at;"
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
    """Its tables may be needed by processes that run already."""
    with database.transaction() as txn:
        txn.execute("UPDATE rmq_txn_identity SET schema_version = %s", (schema.VERSION + 1,))
    with pytest.raises(SchemaError, match="install a newer rmq_txn"):
        schema.apply(database)
    assert rows(database_url, "SELECT schema_version FROM rmq_txn_identity") == [(schema.VERSION + 1,)]
