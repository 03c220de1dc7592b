"""What an error of the log's statements means: a duplicate is a row that was faster, nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pymysql
import pytest

from rmq_txn import FencedError, TransactionLostError
from rmq_txn.database.session import Session as RealSession
from rmq_txn.identity import new_txn_id
from rmq_txn.producer import txlog
from rmq_txn.producer.txlog import LogRow, LogState

DUPLICATE = pymysql.err.IntegrityError(1062, "Duplicate entry")
Answer = int | tuple[int, bytes] | None | Exception


class Session:
    """FAKE. Answers statements in turn: a count, or an error; or the row that the next fetch finds."""

    def __init__(self, *answers: Answer) -> None:
        self.txn_id = new_txn_id()
        self.statements: list[str] = []
        self._answers = list(answers)
        self._row: Any = None
        self.cursor = SimpleNamespace(fetchone=lambda: self._row)
        self.connection = SimpleNamespace(unsettled=False)

    insert_new = RealSession.insert_new  # over this class's execute

    def execute(self, sql: str, _args: object = None) -> int:
        """Give the next answer."""
        self.statements.append(sql.split()[0])
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return answer
        self._row = answer
        return 1


def session(*answers: Answer) -> Any:
    """Make a fake session."""
    return Session(*answers)


def test_a_duplicate_log_row_means_that_a_check_back_was_faster() -> None:
    """The transaction is refused, by a name that a caller can retry on."""
    with pytest.raises(FencedError, match="safe to retry"):
        txlog.insert(session(DUPLICATE), LogState.COMMITTED, ["ID"])


@pytest.mark.parametrize(
    "use", [lambda s: txlog.insert(s, LogState.COMMITTED, ["ID"]), txlog.fence], ids=["insert", "fence"]
)
@pytest.mark.parametrize(
    "error",
    [
        pymysql.err.IntegrityError(1048, "Column cannot be null"),
        pymysql.err.IntegrityError(1452, "Cannot add or update a child row"),
        pymysql.err.IntegrityError("1062"),
        pymysql.err.OperationalError(1205, "Lock wait timeout"),
        pymysql.err.DataError(1406, "Data too long"),
    ],
    ids=lambda error: str(error.args[0]),
)
def test_any_other_error_of_the_log_is_no_row(use: Callable[[Any], object], error: Exception) -> None:
    """ "A check-back was faster" would be a lie, and a fence that is none would roll back what commits."""
    with pytest.raises(type(error)) as caught:
        use(session(error))
    assert caught.value is error


def test_an_open_row_that_is_gone_is_a_lost_transaction() -> None:
    """Its COMMIT would have made only the rest durable."""
    with pytest.raises(TransactionLostError, match="the open log row of this transaction is gone"):
        txlog.mark_committed(session(0))
    txlog.mark_committed(session(1))


def test_a_fence_that_was_inserted_says_that_there_was_no_row() -> None:
    """Then the answer is ROLLBACK, once it is committed."""
    assert txlog.fence(session(1)) is None


def test_a_fence_that_meets_a_row_returns_it() -> None:
    """It decides, by the id that won."""
    row = txlog.fence(session(DUPLICATE, (LogState.COMMITTED, b"A,B")))
    assert row == LogRow(LogState.COMMITTED, ("A", "B"))


def test_a_row_that_goes_away_between_two_statements_is_fenced_again() -> None:
    """Its transaction rolled back just then: the absence of a row alone would prove nothing."""
    made = session(DUPLICATE, None, 1)
    assert txlog.fence(made) is None
    assert made.statements == ["INSERT", "SELECT", "INSERT"]


@pytest.mark.parametrize(
    ("row", "proves"),
    [
        (LogRow(LogState.COMMITTED, ("A", "B")), True),
        (LogRow(LogState.COMMITTED, ("A", "OTHER")), False),
        (LogRow(LogState.COMMITTED, ("B", "A")), False),
        (LogRow(LogState.COMMITTED, ("A",)), False),
        (LogRow(LogState.COMMITTED, ("",)), False),
        (LogRow(LogState.OPEN, ("A", "B")), False),
        (LogRow(LogState.ROLLED_BACK, ("A", "B")), False),
    ],
)
def test_a_row_proves_the_commit_of_the_half_message_that_won(row: LogRow, proves: bool) -> None:
    """Of position 1, stored as B; the losers of a retried send, and other positions, are not delivered."""
    assert row.proves_commit_of(1, "B") is proves
