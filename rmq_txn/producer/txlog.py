"""The log table: the evidence by which a half message is decided."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rmq_txn.database.session import Session
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.errors import FencedError, TransactionLostError
from rmq_txn.identity import new_txn_id

MAX_MESSAGES = 32
"""Messages of one transaction; their ids share one column, their sends one native stack."""


class LogState(enum.IntEnum):
    """What a log row says; the numbers are stored."""

    OPEN = 0
    COMMITTED = 1
    ROLLED_BACK = 2


@dataclass(frozen=True, slots=True)
class LogRow:
    """The row of one transaction, and the ids of its half messages by position."""

    state: LogState
    message_ids: tuple[str, ...]

    def proves_commit_of(self, position: int, message_id: str) -> bool:
        """
        Whether the transaction committed and this half message is the one that won.

        The client retries a send under a new id each time; the losers must not be delivered.
        """
        return (
            self.state is LogState.COMMITTED
            and position < len(self.message_ids)
            and self.message_ids[position] == message_id
        )


def insert(session: Session, state: LogState, message_ids: Sequence[str]) -> None:
    """
    Insert the log row of the session's own transaction.

    Raises:
        FencedError: a check-back was faster.
        pymysql.MySQLError: a late error of business code, see `Session.settle`.
    """
    if not _insert(session, state, message_ids):
        raise _fenced(session)


def _insert(session: Session, state: LogState, message_ids: Sequence[str]) -> bool:
    row = (session.txn_id, int(state), ",".join(message_ids))
    return session.insert_new(STATEMENTS["insert_log_row"], row)


def _fenced(session: Session) -> FencedError:
    return FencedError(
        "a check-back answered rollback before the local transaction could commit; "
        "nothing was written, safe to retry",
        txn_id=session.txn_id,
    )


def insert_committed(
    session: Session, message_ids: Sequence[str], copies: Iterator[str], *, release: bool
) -> None:
    """
    Insert the log row and the copies of the messages: what comes right before COMMIT.

    Args:
        release: see `Session.write_last`.

    Raises: as `insert`; what `Session.write_last` raises.
    """
    row = (session.txn_id, int(LogState.COMMITTED), ",".join(message_ids))
    if not session.write_last(STATEMENTS["insert_log_row"], row, copies, release=release):
        raise _fenced(session)


def mark_committed(session: Session, copies: Iterator[str], *, release: bool) -> None:
    """
    Turn the session's own open row into a committed one, and insert the copies; see `insert_committed`.

    Raises:
        TransactionLostError: the row is gone, so the server ended the transaction that inserted it.
    """
    row = (session.txn_id,)
    if not session.write_last(STATEMENTS["commit_log_row"], row, copies, release=release):
        raise TransactionLostError(
            "the open log row of this transaction is gone: the database server ended the "
            "transaction before COMMIT",
            txn_id=session.txn_id,
        )


def fence(session: Session) -> LogRow | None:
    """
    Make sure that the session's `txn_id` can never commit any more, unless it did.

    Returns:
        None if the fence row was inserted (commit the session to make it last), else the row that
        was there.
    """
    if _insert(session, LogState.ROLLED_BACK, ()):
        return None
    # None: deleted between the two statements, so there is none to go by.
    return read(session) or fence(session)


def read(session: Session) -> LogRow | None:
    """Return the row of the session's `txn_id`, with a lock: one that is being written is waited for."""
    session.execute(STATEMENTS["read_log_row"], (session.txn_id,))
    return _row(session, errors="strict")


def look_up(session: Session, txn_id: str) -> LogRow | None:
    """Return the row of a transaction for people: it waits for nobody, and bears a damaged one."""
    session.execute(STATEMENTS["look_up_log_row"], (txn_id,))
    return _row(session, errors="replace")


def _row(session: Session, *, errors: str) -> LogRow | None:
    row = session.cursor.fetchone()
    if row is None:
        return None
    state, message_ids = row
    return LogRow(
        LogState(state), tuple(message_ids.decode("ascii", errors).split(",")) if message_ids else ()
    )


def probe(session: Session) -> None:
    """
    Do what a fence does, and undo it, at the beginning of a transaction: can answers be written?

    Reading proves nothing: a server that was demoted, a table that somebody locked, a missing
    privilege and a full disk are met by writing only.
    """
    session.execute(STATEMENTS["insert_log_row"], (new_txn_id(), int(LogState.ROLLED_BACK), ""))
    session.execute(STATEMENTS["undo_probe"])
