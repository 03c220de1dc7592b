"""Every statement of ours on each database that we name: MariaDB of this machine, MariaDB 11 and MySQL 9."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pymysql
import pytest

from devstack import LocalStack, StackError, StackSettings
from devstack.software import DATABASES
from rmq_txn import Database, schema
from rmq_txn.database.session import Session
from rmq_txn.database.sql import STATEMENTS, UPGRADES
from rmq_txn.errors import DatabaseUnavailableError
from tests.kit.rows import rows

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

TXN, OTHER = "0" * 31 + "1", "0" * 31 + "2"
KEY = ("points", "key-1")
MEMBER = ("accounts", "1234@host")
PARKED = ("points", "key-1", 0, 1, "ValueError: no", "transfer", "ID-1")

# In the order of a life: arguments, then how many rows the server says it changed or found.
CASES: Final[dict[str, tuple[Sequence[Any], int]]] = {
    "set_tripwire": ((), 0),
    "undo_probe": ((), 0),
    "read_uptime": ((), 1),
    "list_tables_without_transactions": ((), 0),
    "list_columns_and_indexes": ((["rmq_txn_log"], ["rmq_txn_log"]), 4),
    "insert_producer": ((*MEMBER, 0, 0), 1),
    "note_producer": ((0, 1, *MEMBER), 1),
    "read_producers": (MEMBER[:1], 1),
    "count_producers": ((40, 40), 1),
    "delete_producer": (MEMBER, 1),
    "insert_log_row": ((TXN, 0, "ID-1,ID-2"), 1),
    "commit_log_row": ((TXN,), 1),
    "decide_open_row": ((1, TXN), 0),  # it is committed
    "read_log_row": ((TXN,), 1),
    "insert_outbox_rows": ((TXN, 0, "ID-1", "transfer", "key", "tag", "{}", b"body"), 1),
    "read_overdue_rows": ((86_400, 0, 10), 1),
    "look_up_log_row": ((TXN,), 1),
    "look_up_copies": ((TXN,), 1),
    "note_attempts": ((1, 0, [TXN], [(TXN, 0)]), 1),
    "count_outbox": ((10,), 1),
    "count_outbox_by_topic": ((), 1),
    "delete_outbox_rows": (([TXN, OTHER], [(TXN, 0), (OTHER, 0)]), 1),
    "delete_outbox_transactions": (([TXN, OTHER],), 0),
    "elect": (("relay", "relay"), 1),
    "read_old_log_rows": ((b"", OTHER, 10), 1),
    "count_old_log_rows": ((OTHER,), 1),
    "count_recent_log_rows": ((TXN,), 1),
    "count_newest_log_rows": ((10,), 1),
    "delete_log_rows": (([TXN, OTHER],), 1),
    "claim_inbox_row": (KEY, 1),
    "list_inbox_groups": ((b"",), 1),
    "list_newest_inbox_keys": ((KEY[0], 10), 1),
    "look_up_inbox_rows": ((KEY[0], "key-", "key."), 1),
    "count_recent_inbox_rows": ((KEY[0], 1_700_000_000), 1),
    "count_old_inbox_rows": ((KEY[0], 1_700_000_000), 1),
    "read_old_inbox_rows": ((KEY[0], 1_700_000_000, 10), 0),  # it is young
    "delete_inbox_rows": ((KEY[0], [KEY[1]], 1_700_000_000), 0),
    "read_table_sizes": ((), 2),
    "insert_parked_row": (PARKED, 1),
    "list_parked_groups": ((), 1),
    "look_up_failures": (("key-", "key."), 1),
    "count_failure": (("ValueError: again", *KEY), 1),
    "read_attempts": (KEY, 1),
    "count_parked_rows": (KEY[:1], 0),  # as the next one
    "list_parked_rows": (("", "", 10), 0),  # its inbox row says that it was handled
    "park_row": ((1, b"tag", b"key", 3, 1_700_000_000_000, b"{}", b"body", *KEY), 1),
    "read_parked_row": (KEY, 1),
    "forget_failures": (KEY, 0),  # parked: no success forgets it
    "unpark": (KEY, 1),
    "release_inbox_row": (KEY, 1),
    "read_schema_version": ((), 1),
    "read_identity": ((), 1),
    "read_compatible_from": ((), 1),
    "read_clock": ((), 1),
    "raise_schema_version": ((b"secret", schema.VERSION, 4, schema.VERSION), 0),
    "insert_identity": ((schema.VERSION, "id", b"secret", 4), 1),
    "read_server_settings": ((["version", "read_only"],), 2),
    "try_select": ((), 1),
    "try_update": ((), 0),
    "try_delete": ((), 0),
    "try_insert_log": ((), 0),
    "try_insert_outbox": ((), 0),
    "try_insert_producers": ((), 0),
    "try_insert_inbox": ((), 0),
    "try_insert_parked": ((), 0),
    "try_insert_audit": ((), 0),
    "insert_audit_row": (("ID", "dropped", KEY[1], KEY[0], "me@here", "why"), 1),
    "look_up_audit_rows": (("key-", "key."), 1),
    "list_audit_rows": ((10,), 1),
    "read_uncommitted": ((), 0),
    "release_tripwire": ((), 0),
}
# The server ends the connection that asks: its answer is an error, and the connection is gone.
KILL: Final = "kill_connection"


def run_all(session: Session) -> dict[str, int]:
    """Send each statement with its arguments; return how many rows each changed or found."""
    found = {}
    for name, (arguments, _) in CASES.items():
        if name == "insert_identity":
            session.execute("DELETE FROM rmq_txn_identity")
        try:
            if name == "insert_outbox_rows":
                found[name] = session.executemany(STATEMENTS[name], [arguments])
            else:
                found[name] = session.execute(STATEMENTS[name], arguments)
        except Exception as error:
            raise AssertionError(f"{name}: {error}") from error
    return found


def test_every_statement_has_a_case() -> None:
    """A new one is run on each server, too."""
    assert set(STATEMENTS) == {*CASES, KILL}


@pytest.mark.parametrize("name", DATABASES)
def test_every_statement_runs_on(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, open_database: Callable[..., Database]
) -> None:
    """Tables made and upgraded, each statement sent once, with what it should find."""
    stack = LocalStack(StackSettings.for_tests(tmp_path, database=name))
    try:
        stack.database.start()
    except StackError as error:
        if request.config.getoption("--require-servers"):
            raise
        pytest.skip(f"{name} can't be started here: {error}")
    try:
        url = stack.database_url("statements")
        database = open_database(url)
        assert schema.apply(database).created
        for script in UPGRADES.values():
            schema.run_script(database, script)  # each may run again
        assert schema.check(database).database_id
        with database.check_session("statements") as session:
            found = run_all(session)
            session.commit()
        assert found == {case: count for case, (_, count) in CASES.items()}
        assert rows(url, "SELECT schema_version FROM rmq_txn_identity") == [(schema.VERSION,)]
        with database.check_session("killed") as session:
            with suppress(pymysql.err.MySQLError, DatabaseUnavailableError):  # 1317 or 2013, by the server
                session.execute(STATEMENTS[KILL], (session.connection_id,))
            # Gone already, which is fine; or the server is too young to say.
            database.kill(session.server_thread)
    finally:
        stack.database.end()
