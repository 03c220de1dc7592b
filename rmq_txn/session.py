"""One database transaction, from its first statement to the server's answer to COMMIT or ROLLBACK."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pymysql
import pymysql.cursors
from pymysql.constants import SERVER_STATUS

from rmq_txn.errors import TransactionLostError
from rmq_txn.logs import get_logger
from rmq_txn.pool import SAVEPOINT_MISSING, ConnectionPool, error_code, is_lost_connection
from rmq_txn.sql import STATEMENTS

log = get_logger("session")

# What the last answer on a connection says if somebody was here before us and left something.
_LEFT_OVER = SERVER_STATUS.SERVER_STATUS_IN_TRANS | SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT


class SessionState(enum.Enum):
    """How far a session got. Set only after the server answered, except COMMITTING."""

    OPEN = "open"
    COMMITTING = "committing"
    """COMMIT was sent; until its answer is read nobody here knows."""
    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    LOST = "lost"
    """The connection broke or is out of step, COMMIT not sent. Never committed, rollback not confirmed."""


class Session:
    """
    One transaction on one pooled connection: tripwire, statements, COMMIT or ROLLBACK.

    Autocommit is off, so the tripwire, a savepoint, is also the beginning: there is no BEGIN
    (docs/decisions/0016). For one thread. Ends once; the connection goes back to the pool then.

    Args:
        guarded: COMMIT only if the tripwire still stands.

    Attributes:
        committing_since: when COMMIT was sent, by the monotonic clock.
    """

    def __init__(self, pool: ConnectionPool, txn_id: str, *, guarded: bool) -> None:
        self.txn_id = txn_id
        self.state = SessionState.OPEN
        self.committing_since = 0.0
        self._pool = pool
        self._guarded = guarded
        self._lent: list[pymysql.cursors.Cursor] = []
        self._unanswered = False
        self.began = time.monotonic()
        self._pooled = pool.borrow()
        try:
            self._begin()
        except BaseException:
            self._give_back(broken=True)
            raise

    def _begin(self) -> None:
        self.connection: pymysql.Connection[Any] = self._pooled.dbapi_connection
        self.cursor: pymysql.cursors.Cursor = self.connection.cursor()
        if not self._set_tripwire():
            # Nothing of this transaction ran yet: a new connection is safe, here and never later.
            try:
                with suppress(pymysql.err.MySQLError):  # closed already
                    self.connection.close()
                self.connection.connect()
                self.cursor.execute(STATEMENTS["set_tripwire"])
            except pymysql.err.MySQLError as error:
                self._pool.unavailable(error)
        self.connection_id = int(self.connection.thread_id())

    def _set_tripwire(self) -> bool:
        """Send the first statement; return False if this connection can't carry a transaction."""
        if not self.connection.open:
            return False  # it broke in its last transaction
        # Read before: a cluster that registers its log at a savepoint reports a transaction by then.
        if self.connection.server_status & _LEFT_OVER:  # type: ignore[attr-defined]  # not in the stubs
            # BEGIN would have committed what is open; a savepoint would take it for its own, and
            # with autocommit on it would hold nothing together.
            log.warning(
                "a connection came back with a transaction open or autocommit on, it is replaced: "
                "business code switched autocommit, or used the connection after its block"
            )
            return False
        try:
            self.cursor.execute(STATEMENTS["set_tripwire"])
        except pymysql.err.MySQLError as error:
            if not is_lost_connection(error):
                raise
            return False  # idle connections die of old age
        return True

    def execute(self, sql: str, args: Any = None) -> int:
        """
        Run one statement and return the number of rows it changed or found.

        Raises:
            DatabaseUnavailableError: the connection is lost; COMMIT was not sent.
            pymysql.err.MySQLError: anything else the server says, unchanged.
        """
        statement = self.cursor.mogrify(sql, args)  # before: bad arguments are no lost answer
        return self._answered(lambda: self.cursor.execute(statement))

    def lend_cursor(self, *kind: type[pymysql.cursors.Cursor]) -> pymysql.cursors.Cursor:
        """Return a new cursor for business code; it is closed when the session ends."""
        cursor: pymysql.cursors.Cursor = self.connection.cursor(*kind)
        self._lent.append(cursor)
        return cursor

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Run one statement for each row of arguments; errors as `execute`."""
        return self._answered(lambda: self.cursor.executemany(sql, rows) or 0)

    def _answered(self, run: Callable[[], int]) -> int:
        # What a signal handler raises may fall between a statement and its answer. The next
        # statement would then read this one's answer, and a COMMIT believe it.
        self._unanswered = True
        try:
            result = run()
        except pymysql.err.MySQLError as error:
            self._unanswered = False
            if is_lost_connection(error):
                self._pool.unavailable(error)
            raise
        self._unanswered = False
        return result

    def commit(self) -> None:
        """
        Release the tripwire and COMMIT.

        Raises:
            TransactionLostError: the server ended the transaction before; the session is still open
                and must be rolled back.
            pymysql.err.MySQLError: if `state` is COMMITTING then, the outcome is not known.
        """
        if self._guarded:
            self.release_tripwire()
        self.state = SessionState.COMMITTING
        self._send_commit()
        self.state = SessionState.COMMITTED
        self._give_back(broken=False)

    def release_tripwire(self) -> None:
        """
        Make sure that the server has not ended the transaction so far. Once, then COMMIT or ROLLBACK.

        Raises: TransactionLostError, and those of `execute`.
        """
        try:
            self.execute(STATEMENTS["release_tripwire"])
        except pymysql.err.MySQLError as error:
            if error_code(error) != SAVEPOINT_MISSING:
                raise
            raise TransactionLostError(
                "the database server ended the transaction before COMMIT: a statement that "
                "commits implicitly (DDL), or a deadlock that was caught and ignored",
                txn_id=self.txn_id,
            ) from error

    def _send_commit(self) -> None:
        self.connection.commit()

    def rollback(self) -> bool:
        """
        Roll back unless the outcome is settled or in doubt; return whether the server confirmed.

        False: the connection is gone. Before COMMIT was sent that still means "never committed",
        but the server may hold the locks for a while.
        """
        if self.state in (SessionState.COMMITTED, SessionState.ROLLED_BACK, SessionState.LOST):
            return self.state is SessionState.ROLLED_BACK
        if self.state is SessionState.COMMITTING:
            self._give_back(broken=True)
            return False
        if self._unanswered:
            self.state = SessionState.LOST
            self._give_back(broken=True)
            return False
        try:
            self.connection.rollback()
        except BaseException as error:
            self.state = SessionState.LOST
            self._give_back(broken=True)
            if not isinstance(error, pymysql.err.MySQLError):
                raise  # Ctrl-C in the middle of an answer
            return False
        self.state = SessionState.ROLLED_BACK
        self._give_back(broken=False)
        return True

    def _give_back(self, *, broken: bool) -> None:
        if self._pooled is None:
            return
        # A cursor used after its block would read and write in the next borrower's transaction.
        for cursor in self._lent:
            with suppress(pymysql.err.MySQLError):  # unread rows on a broken line
                cursor.close()
        pooled, self._pooled = self._pooled, None
        self._pool.give_back(pooled, broken=broken)
