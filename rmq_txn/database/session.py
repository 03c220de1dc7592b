"""One database transaction, from its first statement to the server's answer to COMMIT or ROLLBACK."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import pymysql
import pymysql.cursors

from rmq_txn.database import beginning
from rmq_txn.database.connection import ServerThread, WatchedConnection
from rmq_txn.database.pool import (
    LOCK_ERRORS,
    READ_ONLY_TRANSACTION,
    REFUSALS,
    REFUSED_COMMIT,
    SAVEPOINT_MISSING,
    ConnectionPool,
    driver_error,
    error_code,
    is_duplicate,
    is_unavailable,
)
from rmq_txn.database.session_state import SessionState
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.errors import DatabaseUnavailableError, SettingsError, TransactionLostError

_OURS = frozenset(STATEMENTS.values())


class Session:
    """
    One transaction on one pooled connection: tripwire, statements, COMMIT or ROLLBACK.

    Autocommit is off, so the tripwire, a savepoint, is also the beginning: there is no BEGIN
    (docs/decisions/0016). For one thread. Ends once; the connection goes back to the pool then.

    Args:
        guarded: COMMIT only if the tripwire still stands.
        ours_first: begin with the first statement. If that is an `insert_new` of ours, the tripwire goes out
            in the same write, else before it. A database that is away is told there then.

    Attributes:
        committing_since: when COMMIT was sent, by the monotonic clock.
        stands: whether the server set the tripwire; without it nothing can be committed.
    """

    def __init__(self, pool: ConnectionPool, txn_id: str, *, guarded: bool, ours_first: bool = False) -> None:
        self.txn_id = txn_id
        self.state = SessionState.OPEN
        self.committing_since = 0.0
        self._pool = pool
        self._guarded = guarded
        self._lent: list[pymysql.cursors.Cursor] = []
        self._business = False  # whether statements may have run that are not ours
        self._whole = False  # whether the tripwire was found standing, and released
        self._begun = self.stands = False
        self.began = time.monotonic()
        self.connection: WatchedConnection = pool.borrow()
        self._borrowed = True
        try:
            self.server_thread: ServerThread = self.connection.server_thread
            self.cursor: pymysql.cursors.Cursor = self.connection.cursor()
            self.connection.watch_transaction()  # else what it says is of the last one
            if not ours_first:
                self._begin()
        except BaseException:
            self._give_back(broken=True)
            raise

    def _begin(self, ours: str | None = None) -> int | pymysql.MySQLError:
        self._begun = True
        try:
            answer = beginning.begin(self.connection, self._pool, ours)
        finally:
            self.server_thread = self.connection.server_thread  # it may have been replaced
        self.stands = True
        return answer

    @property
    def pool(self) -> ConnectionPool:
        """Where its connection is from."""
        return self._pool

    @property
    def connection_id(self) -> int:
        """The server's id of this session's connection."""
        return self.server_thread.id

    def execute(self, sql: str, args: Any = None) -> int:
        """
        Run one statement and return the number of rows it changed or found.

        Raises:
            DatabaseUnavailableError: the connection is lost, or the server does no such work now; COMMIT
                was not sent.
            pymysql.MySQLError: anything else the server says, unchanged.
        """
        if not self._begun:
            self._begin()
        if sql not in _OURS:
            self._business = True
        elif self.connection.unsettled:
            self.settle()
        statement = self.cursor.mogrify(sql, args)  # before: bad arguments are no lost answer
        try:
            return self.cursor.execute(statement)
        except pymysql.MySQLError as error:
            self._raise(error)

    def insert_new(self, sql: str, args: Any) -> bool:
        """
        Insert one row; return False if its key is taken. Insert and catch, never look first.

        The row that is there may be of a transaction that runs: then this waits for its end.

        Raises: as `execute`.
        """
        if not self._begun and sql in _OURS:
            answer = self._begin(self.cursor.mogrify(sql, args))
            if isinstance(answer, pymysql.MySQLError) and not is_duplicate(answer):
                self._raise(answer)
            return isinstance(answer, int)
        if self.connection.unsettled:
            self.settle()  # a duplicate key of business code, told late, is none of ours
        try:
            self.execute(sql, args)
        except pymysql.IntegrityError as error:
            if not is_duplicate(error):
                raise
            return False
        return True

    def lend_cursor(self, *kind: type[pymysql.cursors.Cursor]) -> pymysql.cursors.Cursor:
        """Return a new cursor for business code; it is closed when the session ends."""
        if not self._begun:
            self._begin()
        self._business = True
        cursor: pymysql.cursors.Cursor = self.connection.cursor(*kind)
        self._lent.append(cursor)
        return cursor

    def lend_connection(self) -> WatchedConnection:
        """Return the connection for business code."""
        if not self._begun:
            self._begin()
        self._business = True
        return self.connection

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Run one statement of business code for each row of arguments; errors as `execute`."""
        if not self._begun:
            self._begin()
        self._business = True
        try:
            return self.cursor.executemany(sql, rows) or 0
        except pymysql.MySQLError as error:
            self._raise(error)

    def write_last(self, sql: str, args: Any, copies: Iterator[str], *, release: bool) -> bool:
        """
        Change one row, run `copies` and release the tripwire, the first two or three of them in one write.

        One that fails does not keep those behind it from running: the transaction must be rolled back.

        Args:
            copies: statements of ours, one at least; up to a megabyte each.
            release: see `release_tripwire`. With several copies it is left to `commit`.

        Returns:
            Whether the row was changed; not if its key is taken, or it is gone.

        Raises: as `execute`, for the first that failed; as `release_tripwire`.
        """
        if self.connection.unsettled:
            self.settle()
        statements = [self.cursor.mogrify(sql, args), next(copies)]
        more = next(copies, None)
        if release := release and more is None:
            statements.append(STATEMENTS["release_tripwire"])
        answers = self._query_each(statements)
        self._whole = release and answers[2:] == [0] and not self.connection.ended
        for answer in answers[:2]:
            if isinstance(answer, pymysql.MySQLError):
                if answer is answers[0] and is_duplicate(answer):
                    return False
                self._raise(answer)
        if not answers[0]:
            return False
        if release and not self._whole:
            self._tell_lost(answers[2])
        while more is not None:
            self.execute(more)
            more = next(copies, None)
        return True

    def _query_each(self, statements: Sequence[str]) -> list[int | pymysql.MySQLError]:
        return self.connection.query_each(statements)

    def settle(self) -> None:
        """
        Clear away what business code left, before a statement of ours; for a connection that is `unsettled`.

        Left-over results, and `USE` as text: tables of our names may be there too, but check-back looks here.

        Raises:
            DatabaseUnavailableError: as `execute`.
            pymysql.MySQLError: a late error of the last statement of business code, of a procedure
                with several results.
        """
        try:
            self.connection.settle()
        except pymysql.MySQLError as error:
            self._raise(error)

    def _raise(self, error: pymysql.MySQLError) -> NoReturn:
        self._tell_if_unavailable(error)
        raise error

    def _tell_if_unavailable(self, error: pymysql.MySQLError) -> None:
        if self._is_unavailable(error):
            self._pool.unavailable(error)

    def _is_unavailable(self, error: BaseException) -> bool:
        # A transaction is read only because business code said so, or else because the server refuses writes.
        own_doing = self.connection.changed or self.connection.ended
        return is_unavailable(error) or (error_code(error) == READ_ONLY_TRANSACTION and not own_doing)

    def commit(self) -> None:
        """
        Release the tripwire and COMMIT.

        Raises:
            TransactionLostError: the server ended the transaction before; the session is still open
                and must be rolled back.
            pymysql.MySQLError: if `state` is COMMITTING then, the outcome is not known; if it is OPEN,
                the server refused to commit.
        """
        if self._guarded and not self._whole:
            self.release_tripwire()
        self.committing_since = time.monotonic()
        self.state = SessionState.COMMITTING
        try:
            self._send_commit()
        except pymysql.MySQLError as error:
            if error_code(error) in REFUSED_COMMIT:
                self.state = SessionState.OPEN  # the ROLLBACK that follows makes sure
            raise
        self.state = SessionState.COMMITTED
        self._give_back(broken=False)

    def release_tripwire(self) -> None:
        """
        Make sure that the server has not ended the transaction so far. Once, then COMMIT or ROLLBACK.

        Raises: TransactionLostError, and those of `execute`.
        """
        answer: int | pymysql.MySQLError = 0
        if not self.connection.ended:
            try:
                if not self._begun:
                    self._begin()
                elif self.connection.unsettled:
                    self.settle()
                (answer,) = self._query_each((STATEMENTS["release_tripwire"],))
            except pymysql.MySQLError as error:
                answer = error
        # Asked again: the results read before the release may have told of the end. With autocommit on, as
        # text, a savepoint that is found proves nothing.
        self._whole = answer == 0 and not self.connection.ended
        if not self._whole:
            self._tell_lost(answer)

    def _tell_lost(self, answer: int | pymysql.MySQLError) -> NoReturn:
        """Raise what `answer` to the release, or what the server told before it, means."""
        cause = answer if isinstance(answer, pymysql.MySQLError) else None
        if cause is not None and error_code(cause) != SAVEPOINT_MISSING:
            self._raise(cause)
        raise TransactionLostError(
            "the database server ended the transaction before COMMIT: a statement that commits implicitly "
            "(DDL, LOCK TABLES), transaction control or autocommit as SQL text, or a deadlock that was "
            "caught and ignored",
            txn_id=self.txn_id,
        ) from cause

    def fail(self, error: BaseException) -> BaseException:
        """
        Roll back after `error`, and say what the caller is to be told: `error`, or what is true instead.

        It costs a round trip more than `rollback` if business code ran.

        Returns:
            `TransactionLostError` if the server had ended the transaction before: what was written until
            then is durable, though `error` says "rolled back". `DatabaseUnavailableError` for an error
            of a lent cursor that means it. Else `error`.
        """
        try:
            return self._outcome_of(error)
        finally:
            self.rollback()

    def _outcome_of(self, error: BaseException) -> BaseException:
        if self.state is not SessionState.OPEN or not isinstance(error, Exception):
            return error
        if isinstance(error, TransactionLostError):
            return error
        unavailable = self._is_unavailable(error)
        # After a lock error the tripwire may be gone though nothing is durable, and a connection that is gone
        # can't be asked: then only what was seen on the way counts.
        ask = self.connection.usable and not (unavailable or error_code(error) in LOCK_ERRORS)
        try:
            if self._guarded and not self._whole and (self.connection.ended or (self._business and ask)):
                self.release_tripwire()
            # Not if something was changed: that may be a temporary table, which may be of any kind.
            if self.connection.untransactional and not self.connection.changed:
                raise TransactionLostError(  # noqa: TRY301 - one way to tell it
                    "a statement wrote to a table that knows no transactions, such as MyISAM: that stays, "
                    "though the rest is rolled back; ALTER TABLE ... ENGINE = InnoDB",
                    txn_id=self.txn_id,
                )
        except TransactionLostError as lost:
            lost.__cause__ = error
            return lost
        except (pymysql.MySQLError, DatabaseUnavailableError, SettingsError):
            pass  # `error` came first; the ROLLBACK will say whether the connection still works
        cause = driver_error(error)
        if unavailable and isinstance(cause, pymysql.MySQLError):
            try:
                self._pool.unavailable(cause)
            except DatabaseUnavailableError as told:
                return told
        return error

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
        if not self.connection.usable:
            self.state = SessionState.LOST
            self._give_back(broken=True)
            return False
        ended = self._guarded and self.connection.ended  # locks of tables, say, would outlive the ROLLBACK
        try:
            with suppress(pymysql.MySQLError):  # a late error of a statement that is rolled back
                self.connection.read_results()
            self.connection.rollback()
        except BaseException as error:
            self.state = SessionState.LOST
            self._give_back(broken=True)
            if not isinstance(error, pymysql.MySQLError):
                raise  # Ctrl-C in the middle of an answer
            return False
        self.state = SessionState.ROLLED_BACK
        self._give_back(broken=ended)
        return True

    def _give_back(self, *, broken: bool) -> None:
        if not self._borrowed:
            return
        # A cursor used after its block would read and write in the next borrower's transaction.
        for cursor in self._lent:
            if not self.connection.usable:
                # Closed without reading its unread rows, of a line that is not ours.
                cursor.connection = None  # type: ignore[assignment]
                continue
            with suppress(pymysql.MySQLError):  # unread rows on a broken line
                cursor.close()
        self._borrowed = False
        self._pool.give_back(self.connection, broken=broken or self._is_spoiled())

    def _is_spoiled(self) -> bool:
        """Whether the next borrower would not get the session as the pool set it up."""
        connection = self.connection
        if connection.failures & (REFUSALS | {READ_ONLY_TRANSACTION}):
            return True
        return self._guarded and connection.changed  # the outbox sets up its own as it needs it
