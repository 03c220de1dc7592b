"""
What business code gets to see of a running transaction: statements, and no way to end it.

And the seam to somebody else's unit of work, such as an ORM's session, that shares it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import pymysql
import pymysql.cursors

from rmq_txn.database.connection import ServerThread
from rmq_txn.database.pool import ConnectionPool
from rmq_txn.database.session import Session
from rmq_txn.database.session_state import SessionState
from rmq_txn.errors import LifecycleError
from rmq_txn.message import JSON, Message

_ENDS_TRANSACTION = frozenset(
    {"commit", "rollback", "begin", "autocommit", "close", "ping", "select_db", "connect"}
    | {"kill", "autocommit_mode", "set_charset", "set_character_set"}
)


class ConnectionProxy:
    """
    The DB-API connection of a running transaction, without what would end it.

    `commit`, `rollback`, `begin`, `autocommit`, `close` and the like raise `LifecycleError`: an
    early COMMIT would make the business writes durable without log row and message (docs/hazards.md, H5).
    The same as SQL text is caught later, by the tripwire. Of no use after its block.
    """

    __slots__ = ("_open",)

    def __init__(self, open_: Callable[[], Session]) -> None:
        self._open = open_

    def cursor(self, *kind: type[pymysql.cursors.Cursor]) -> pymysql.cursors.Cursor:
        """Return a new cursor, of PyMySQL's class `kind` if given; closed when the block ends."""
        return self._open().lend_cursor(*kind)

    def __getattr__(self, name: str) -> Any:
        if name in _ENDS_TRANSACTION:
            raise LifecycleError(
                f"connection.{name} would end the transaction or the connection; leave the block "
                "to commit, raise to roll back"
            )
        return getattr(self._open().lend_connection(), name)


class Join(Protocol):
    """
    A session that works on the connection of one transaction of ours. For one thread, used once.

    Its statements run between our first and our last one, so all that is promised of a transaction
    holds for them: we begin, we end, and it is told.
    """

    @property
    def session(self) -> Any:
        """What business code works with."""

    def begin(self, txn: Transaction) -> None:
        """
        Take the connection of `txn` for the session.

        Raises:
            LifecycleError, SettingsError: the session can't be joined; nothing of it was changed.
        """

    def flush(self) -> None:
        """Send what the session holds back; before the half messages, so that what fails costs nothing."""

    def commit(self, commit: Callable[[], None]) -> None:
        """
        Commit the session; `commit` is what ends the transaction, and is called once.

        When this raises after `commit` returned, the transaction is committed all the same.
        """

    def end(self) -> None:
        """Give the session back, rolled back unless it was committed; after the transaction ended."""

    def after_commit(self) -> None:
        """
        Do what waits for a commit, when it is known to have happened; after `end`, outside of it all.

        Also after a COMMIT whose lost answer was looked up. What this raises reaches the caller.
        """


class Transaction:
    """
    A running local transaction, given to business code. For one thread; of no use after its block.

    Neither commits nor rolls back: leaving the block commits, an exception rolls back.
    """

    def __init__(
        self,
        session: Session,
        publish: Callable[[Message], None] | None = None,
        join: Join | None = None,
    ) -> None:
        self._session = session
        self._publish = publish
        self._join = join

    @property
    def txn_id(self) -> str:
        """Id of this transaction on every row, message and log line."""
        return self._session.txn_id

    @property
    def session(self) -> Any:
        """
        What was joined to this transaction: the SQLAlchemy session, say.

        Raises:
            LifecycleError: nothing was.
        """
        self._open()
        if self._join is None:
            raise LifecycleError("nothing was joined to this transaction; give join= to what began it")
        return self._join.session

    @property
    def connection(self) -> ConnectionProxy:
        """The DB-API connection, for code that insists on one; it refuses to end the transaction."""
        self._open()
        return ConnectionProxy(self._open)

    def cursor(self) -> pymysql.cursors.Cursor:
        """Return a new PyMySQL cursor inside this transaction; it is closed when the block ends."""
        return self._open().lend_cursor()

    def execute(self, sql: str, args: Sequence[Any] | Mapping[str, Any] | None = None) -> int:
        """
        Run one statement; `%s` and `%(name)s` are the placeholders.

        Returns:
            The number of rows changed, or found by a SELECT.

        Raises:
            DatabaseUnavailableError: the connection is lost; nothing of this transaction stays.
            pymysql.MySQLError: any other answer of the server, unchanged.
        """
        return self._open().execute(sql, args)

    def insert_new(self, sql: str, args: Sequence[Any] | Mapping[str, Any]) -> bool:
        """
        Run an INSERT of one row; return False if a row with its key is there, which changes nothing.

        If that row belongs to a transaction that runs still, wait for its end.

        Raises: as `execute`, for everything but a duplicate key.
        """
        return self._open().insert_new(sql, args)

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Run one statement for each row of arguments; return the number of rows changed."""
        return self._open().executemany(sql, rows)

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row of the last `execute`, None after the last one."""
        return self._open().cursor.fetchone()

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the remaining rows of the last `execute`."""
        return list(self._open().cursor.fetchall())

    def publish(
        self,
        topic: str,
        body: Mapping[str, JSON] | bytes,
        *,
        key: str | None = None,
        tag: str | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        """
        Publish a message if, and only if, this transaction commits.

        Nothing is sent before the block ends; then the half messages go out, in no promised order.

        Args: those of `Message`, which see.

        Raises:
            InvalidMessageError: the message could not be sent; raised here, before anything is.
            LifecycleError: this transaction can't publish.
        """
        self._open()
        if self._publish is None:
            raise LifecycleError(
                "this transaction can't publish; use the block of TransactionProducer.transaction, or "
                "give the consumer a producer"
            )
        self._publish(Message(topic, body, key=key, tag=tag, properties=properties or {}))

    @property
    def server_thread(self) -> ServerThread:
        """The connection on the server; for the consumer, which ends one that went silent under it."""
        return self._session.server_thread

    @property
    def stands(self) -> bool:
        """Whether it began on the server; for the consumer."""
        return self._session.stands

    @property
    def pool(self) -> ConnectionPool:
        """The pool of its `Database`: the same for all transactions of one; for joins."""
        return self._session.pool

    def _open(self) -> Session:
        if self._session.state is not SessionState.OPEN:
            raise LifecycleError(
                f"transaction {self.txn_id} is {self._session.state.value}; use it inside its block"
            )
        return self._session
