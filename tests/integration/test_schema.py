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
    """Leave what version 1 had: its three tables, with rows in them."""
    newer = set(re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", schema.script()))
    newer -= {"rmq_txn_identity", "rmq_txn_log", "rmq_txn_inbox"}
    schema.run_script(database, ";".join(f"DROP TABLE {table}" for table in sorted(newer)))
    with database.transaction() as txn:
        txn.execute("UPDATE rmq_txn_identity SET schema_version = 1")
        txn.execute("INSERT INTO rmq_txn_log VALUES (%s, 1, 'ID')", ("0" * 32,))


def test_tables_of_version_1_are_upgraded_and_keep_their_rows(database: Database, database_url: str) -> None:
    """Refused before; then usable, with the identity that half messages out there carry."""
    identity = schema.check(database)
    _as_version_1(database)
    with pytest.raises(SchemaError, match=r"have version 1, .* run: rmq-txn schema apply"):
        schema.check(database)
    applied = schema.apply(database)
    assert applied == schema.AppliedSchema(schema.VERSION, identity, created=False, upgraded=True)
    assert schema.check(database) == identity
    assert rows(database_url, "SELECT state, message_ids FROM rmq_txn_log") == [(1, b"ID")]
    assert rows(database_url, "SELECT COUNT(*) FROM rmq_txn_outbox") == [(0,)]
    assert schema.apply(database) == schema.AppliedSchema(schema.VERSION, identity, created=False)


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
