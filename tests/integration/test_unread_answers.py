"""
A signal handler that raises between a statement and its answer; nobody may read that answer later.

The next statement on the connection would read it in the place of its own, and a COMMIT believe it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rmq_txn import Database, DatabaseUnavailableError, Transaction
from tests.kit.pooled import SoftTimeLimit, assert_in_step, interrupt
from tests.kit.rows import rows

pytestmark = pytest.mark.servers

Statement = Callable[[Transaction, str], object]
THROUGH: dict[str, Statement] = {
    "execute": lambda txn, sql: txn.execute(sql),
    "executemany": lambda txn, sql: txn.executemany(sql.replace("1", "%s"), [(1,)]),
    "cursor": lambda txn, sql: txn.cursor().execute(sql),
    "connection": lambda txn, sql: txn.connection.cursor().execute(sql),
}
# Of the first the answer says "no transaction is open", as that to ROLLBACK does: nothing else gives it away.
CASES = [(through, "DO 1") for through in THROUGH]
CASES += [("execute", "SELECT 1"), ("execute", "INSERT INTO effect (n) VALUES (1)")]


@pytest.fixture
def database(database_url: str, open_database: Callable[..., Database]) -> Database:
    """Return a database whose transactions all use the same connection."""
    return open_database(database_url, pool_size=1)


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after which the next answer is not read: the signal comes before it."""
    return lambda: interrupt(monkeypatch)


@pytest.mark.parametrize(("through", "sql"), CASES)
def test_a_connection_whose_answer_was_not_read_is_not_used_again(
    database: Database, database_url: str, arm: Callable[[], None], through: str, sql: str
) -> None:
    """However the statement was sent, and whatever its answer looks like."""

    def block() -> None:
        with database.transaction() as txn:
            arm()
            THROUGH[through](txn, sql)

    with pytest.raises(SoftTimeLimit):
        block()
    assert_in_step(database)
    assert rows(database_url, "SELECT id FROM effect") == []


@pytest.mark.parametrize("through", THROUGH)
def test_a_block_that_goes_on_after_an_unread_answer_does_not_commit(
    database: Database, database_url: str, arm: Callable[[], None], through: str
) -> None:
    """It caught what the signal raised; the server may have refused the statement, and nobody knows."""

    def block() -> None:
        with database.transaction() as txn:
            txn.execute("INSERT INTO effect (id) VALUES ('before')")
            arm()
            with pytest.raises(SoftTimeLimit):
                THROUGH[through](txn, "DO 1")
            txn.execute("INSERT INTO effect (id) VALUES ('after')")

    with pytest.raises(DatabaseUnavailableError):
        block()
    assert_in_step(database)
    assert rows(database_url, "SELECT id FROM effect") == []
