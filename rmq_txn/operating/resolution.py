"""
One transaction decided by a person, where nobody else can: its row changes, and who did it is written down.

A person may say no where there is no row: that is a fence, as a check-back sets it. He may say yes only
where a row is proof, and that needs him only if the server committed the row in the middle (`open`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import pymysql

from rmq_txn import audit
from rmq_txn.audit import Action
from rmq_txn.database import Database
from rmq_txn.database.pool import LOCK_ERRORS, error_code
from rmq_txn.database.session import Session
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.errors import DatabaseUnavailableError, RmqTxnError, SettingsError
from rmq_txn.identity import age_seconds, require_txn_id
from rmq_txn.producer import txlog
from rmq_txn.producer.checkback import longest_seconds
from rmq_txn.producer.txlog import LogRow, LogState


class Choice(enum.Enum):
    """What a person may say of a transaction."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled-back"


@dataclass(frozen=True, slots=True)
class Resolution:
    """
    What became of a transaction.

    Attributes:
        state: of its row now; None if it has none.
        changed: by this call.
        next: what follows, or what may be chosen; empty if nothing is left to do.
    """

    state: LogState | None
    changed: bool
    next: str = ""

    @property
    def decided(self) -> bool:
        """Whether it is as it will stay."""
        return self.state in (LogState.COMMITTED, LogState.ROLLED_BACK)


def resolve(
    database: Database,
    txn_id: str,
    choice: Choice | None,
    *,
    by: str,
    reason: str,
    retention_seconds: float,
) -> Resolution:
    """
    Decide a transaction, or say how it stands.

    Args:
        choice: None changes nothing.
        by, reason: for the audit.
        retention_seconds: for how long log rows are kept: that there is none proves nothing of older ones.

    Raises:
        SettingsError: `txn_id` has not the form of one, or the choice is none that may be taken; nothing
            was changed.
        RmqTxnError: the transaction still runs.
        DatabaseUnavailableError: the database can't be asked, or refuses writes.
    """
    require_txn_id(txn_id)
    try:
        with database.check_session(txn_id) as session:
            resolution = _resolve(session, choice, by, reason, retention_seconds, longest_seconds(database))
            session.commit()
    except pymysql.MySQLError as error:
        if error_code(error) in LOCK_ERRORS:
            raise RmqTxnError(
                f"transaction {txn_id} still runs: a connection holds its row; it ends by itself, or the "
                "server ends it when its client is silent: try again, rmq-txn explain says how it stands"
            ) from error
        raise DatabaseUnavailableError(
            f"transaction {txn_id} can't be resolved: {error.args[-1]} (error {error_code(error)})"
        ) from error
    return resolution


def _resolve(
    session: Session,
    choice: Choice | None,
    by: str,
    reason: str,
    retention_seconds: float,
    longest_seconds: float,
) -> Resolution:
    txn_id, age = session.txn_id, _age(session)
    row = None if choice is Choice.ROLLED_BACK and age <= retention_seconds else txlog.read(session)
    if row is None and age > retention_seconds:
        raise SettingsError(
            f"transaction {txn_id} is {age / 86_400:.1f} days old and has no row, rows are kept for "
            f"{retention_seconds / 86_400:.1f} days: it proves nothing; look at its business rows"
        )
    if choice is None:
        return _as_it_stands(row)
    if row is None and choice is Choice.COMMITTED:
        raise SettingsError(
            f"transaction {txn_id} has no row, so nothing proves that it committed, and nobody knows its "
            "messages; --as rolled-back makes sure that it never will, then do its work again"
        )
    row = row or txlog.fence(session)
    if row is not None and row.state is not LogState.OPEN:
        return _decided(row.state, choice, txn_id)
    if row is not None:
        _decide_open(session, choice, age, longest_seconds)
    before = "no row" if row is None else "an open row"
    note = f"{choice.value}, there was {before}: {reason}"
    audit.write(session, Action.RESOLVED, txn_id, by=by, note=note)
    return _after(choice, of_open=row is not None)


def _age(session: Session) -> float:
    session.execute(STATEMENTS["read_clock"])
    ((now,),) = session.cursor.fetchall()
    return age_seconds(session.txn_id, float(now))


def _decide_open(session: Session, choice: Choice, age: float, longest_seconds: float) -> None:
    txn_id = session.txn_id
    if age < longest_seconds:
        raise RmqTxnError(
            f"transaction {txn_id} is {age:.0f} s old and may still run in its process, which then tells its "
            f"caller; try again in {longest_seconds - age:.0f} s"
        )
    state = LogState.COMMITTED if choice is Choice.COMMITTED else LogState.ROLLED_BACK
    if session.execute(STATEMENTS["decide_open_row"], (int(state), txn_id)) != 1:
        raise RmqTxnError(f"transaction {txn_id} was decided at this moment: ask again")


def _decided(state: LogState, choice: Choice, txn_id: str) -> Resolution:
    same = {LogState.COMMITTED: Choice.COMMITTED, LogState.ROLLED_BACK: Choice.ROLLED_BACK}[state]
    if choice is not same:
        raise SettingsError(
            f"transaction {txn_id} is {same.value} by its row, which is proof and stays; rmq-txn explain "
            "says what became of its messages"
        )
    return Resolution(state, changed=False)


def _as_it_stands(row: LogRow | None) -> Resolution:
    if row is None:
        return Resolution(
            None,
            changed=False,
            next="it was rolled back, never came so far, or published nothing, then it has none: look at its "
            "business rows; --as rolled-back makes sure that it never commits",
        )
    if row.state is not LogState.OPEN:
        return Resolution(row.state, changed=False)
    return Resolution(
        row.state,
        changed=False,
        next="the server committed it in the middle: look at its business rows. If all of them stand, or you "
        "completed them: --as committed; if you undid them: --as rolled-back",
    )


def _after(choice: Choice, *, of_open: bool) -> Resolution:
    if choice is Choice.COMMITTED:
        return Resolution(
            LogState.COMMITTED,
            changed=True,
            next="its check-backs answer commit from now on; what brokers dropped before: rmq-txn recover",
        )
    safe = "" if of_open else "; if its business rows are not there, it is safe to do again"
    return Resolution(
        LogState.ROLLED_BACK, changed=True, next=f"its check-backs answer rollback from now on{safe}"
    )
