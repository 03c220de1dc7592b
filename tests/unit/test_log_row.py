"""What an error of the log's statements means: a duplicate is a row that was faster, nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
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
DEADLOCK = pymysql.err.OperationalError(1213, "Deadlock found")
NO_SAVEPOINT = pymysql.err.OperationalError(1305, "SAVEPOINT rmq_txn_tripwire does not exist")
COPIES = partial(iter, ["COPY"])
Answer = int | tuple[int, bytes] | None | Exception


class Session:
    """FAKE. Answers statements in turn: a count, or an error; or the row that the next fetch finds."""

    def __init__(self, *answers: Answer) -> None:
        self.txn_id = new_txn_id()
        self.statements: list[str] = []
        self._answers = list(answers)
        self._row: Any = None
        self.cursor = SimpleNamespace(fetchone=lambda: self._row, mogrify=lambda sql, _args: sql)
        self.connection = SimpleNamespace(unsettled=False, ended=False)
        self._begun = True

    insert_new = RealSession.insert_new  # over this class's execute
    write_last = RealSession.write_last
    _raise = RealSession._raise
    _tell_lost = RealSession._tell_lost

    def _tell_if_unavailable(self, error: pymysql.MySQLError) -> None:
        """Say that the server is there."""

    def _query_each(self, statements: Sequence[str]) -> list[Answer]:
        """Give the next answers."""
        self.statements.extend(sql.split()[0] for sql in statements)
        return [self._answers.pop(0) for _ in statements]

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
        txlog.insert(session(DUPLICATE), LogState.OPEN, ["ID"])


@pytest.mark.parametrize(
    "use", [lambda s: txlog.insert(s, LogState.OPEN, ["ID"]), txlog.fence], ids=["insert", "fence"]
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
        txlog.mark_committed(session(0, 1, NO_SAVEPOINT), COPIES(), release=True)
    txlog.mark_committed(session(1, 1, 0), COPIES(), release=True)


@pytest.mark.parametrize(
    ("answers", "raises"),
    [
        ((DUPLICATE, 1, 0), FencedError),
        ((DUPLICATE, 1, NO_SAVEPOINT), FencedError),
        ((DEADLOCK, 1, NO_SAVEPOINT), pymysql.err.OperationalError),
        ((1, DUPLICATE, 0), pymysql.err.IntegrityError),
        ((1, DEADLOCK, NO_SAVEPOINT), pymysql.err.OperationalError),
        ((1, 1, NO_SAVEPOINT), TransactionLostError),
        ((1, 1, DEADLOCK), pymysql.err.OperationalError),
    ],
)
def test_of_statements_that_were_sent_together_the_first_that_failed_is_told(
    answers: tuple[Answer, ...], raises: type[Exception]
) -> None:
    """What comes behind it is its consequence: a deadlock takes the savepoint away, too."""
    made = session(*answers)
    with pytest.raises(raises) as caught:
        txlog.insert_committed(made, ["ID"], COPIES(), release=True)
    first = next(answer for answer in answers if isinstance(answer, Exception))
    assert first in (caught.value, caught.value.__cause__) or raises is FencedError
    assert made.statements == ["INSERT", "COPY", "RELEASE"]
    assert made._whole == (answers[2] == 0)


def test_several_copies_go_alone_and_leave_the_release_to_the_commit() -> None:
    """They are large: no more than one lies in memory, and none is sent before the log row is there."""
    made = session(1, 1, 1, 1)
    txlog.insert_committed(made, ["ID"], iter(["COPY 1", "COPY 2", "COPY 3"]), release=True)
    assert made.statements == ["INSERT", "COPY", "COPY", "COPY"]
    assert not made._whole


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
