"""What business code can't do to the connection of its transaction."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rmq_txn import Transaction
from rmq_txn.database.session_state import SessionState
from rmq_txn.errors import LifecycleError

ENDS = [
    "commit",
    "rollback",
    "begin",
    "autocommit",
    "autocommit_mode",
    "close",
    "connect",
    "ping",
    "select_db",
    "kill",
]


class Untouched:
    """FAKE. A connection that fails the test if any of those is so much as looked at."""

    def thread_id(self) -> int:
        """Be harmless."""
        return 7

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"connection.{name} was reached")


@pytest.fixture
def txn() -> Transaction:
    """Return an open transaction on a fake session."""
    connection = Untouched()
    session: Any = SimpleNamespace(
        txn_id="0" * 32,
        state=SessionState.OPEN,
        connection=connection,
        lend_connection=lambda: connection,
    )
    return Transaction(session)


@pytest.mark.parametrize("name", ENDS)
def test_what_ends_or_moves_the_transaction_is_refused(txn: Transaction, name: str) -> None:
    """By its name, before the driver hears of it."""
    with pytest.raises(LifecycleError, match=rf"connection\.{name} would end the transaction"):
        getattr(txn.connection, name)


def test_what_does_not_is_passed_on(txn: Transaction) -> None:
    """So that the tests above are not about a proxy that refuses everything."""
    assert txn.connection.thread_id() == 7


@pytest.mark.parametrize("state", [state for state in SessionState if state is not SessionState.OPEN])
def test_a_connection_that_was_kept_is_of_no_use_after_its_block(
    txn: Transaction, state: SessionState
) -> None:
    """It is somebody else's by then."""
    kept = txn.connection
    txn._session.state = state
    with pytest.raises(LifecycleError, match=f"is {state.value}; use it inside its block"):
        kept.thread_id()


def test_a_connection_is_no_context_manager(txn: Transaction) -> None:
    """PyMySQL's closes itself at the end of the block."""
    with pytest.raises((TypeError, AttributeError)), txn.connection:  # type: ignore[attr-defined]
        pass
