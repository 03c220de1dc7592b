"""
A SQLAlchemy session in a transaction of ours: `producer.transaction(join=joined(session))`.

For the length of the block the session works on our connection, in our transaction: the tripwire is
its first statement, and log row, copies and COMMIT follow its last flush. So what is promised of a
transaction holds for what the session does, and nothing has to be believed about its own connections.
Extra `sqlalchemy`; SQLAlchemy 2.0 or newer, `Session` and not `AsyncSession` (docs/decisions/0053).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import sqlalchemy
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from rmq_txn.database.matched_rows import MatchedRowsCursor
from rmq_txn.database.transaction import Transaction
from rmq_txn.errors import LifecycleError, SettingsError
from rmq_txn.join.same_database import READ_IDENTITY, is_same
from rmq_txn.lifecycle import refuse_event_loop

_ENDS = ("commit", "rollback", "close", "reset", "invalidate", "prepare")
"""Calls of the session that would end the transaction."""

_ROLLED_BACK = (
    "the session was rolled back inside the block, nothing is committed; raise to roll back, use "
    "begin_nested() for a part"
)
_REFUSED_COMMIT = (
    "the session's transaction was committed inside the block, by `with session.begin()` or its commit(): "
    "refused, nothing is committed; leave begin() out, the block of producer or consumer begins and commits, "
    "and use begin_nested() for a part"
)

_vouched: weakref.WeakKeyDictionary[sqlalchemy.Engine, weakref.WeakSet[Any]] = weakref.WeakKeyDictionary()
"""Engines, and the pools of ours that were found to lead to the same database; asked once a process."""


def joined(session: Session | scoped_session[Session]) -> SessionJoin:
    """
    Let a session share one transaction.

    Inside the block use it as ever: ORM and Core, `flush`, `begin_nested`. Its `commit`, `rollback` and
    `close` raise `LifecycleError`: leave the block to commit, raise to roll back. Afterwards it is as
    after its own `commit`, or `rollback`, and works with its own engine again.

    Args:
        session: one without a transaction: what it did before could be neither undone nor vouched for.
            Pending objects are flushed with the others. Its engine, if it has one, must lead to the
            database of the producer or consumer.

    Raises, when the block begins:
        LifecycleError: it has a transaction already; commit it or roll it back first.
        SettingsError: it is bound to another database, to a connection, or to several engines.
    """
    return SessionJoin(session() if isinstance(session, scoped_session) else session, closes=False)


def joins(sessions: sessionmaker[Session]) -> Callable[[], SessionJoin]:
    """
    Give each handler a session of its own: `IdempotentConsumer(join=joins(SessionLocal))`.

    The handler finds it as `txn.session`; it is closed after the handler's transaction.
    """
    return lambda: SessionJoin(sessions(), closes=True)


class SessionJoin:
    """See `rmq_txn.database.transaction.Join`; made by `joined` and `joins`."""

    def __init__(self, session: Session, *, closes: bool) -> None:
        if not isinstance(session, Session):
            raise SettingsError(
                f"to be joined is a {type(session).__name__}, allowed is a Session of sqlalchemy.orm; "
                "an AsyncSession can't be joined: join a Session, and use it in `await txn.run(function)`"
            )
        self._session = session
        self._closes = closes
        self._line: _Line | None = None
        self._connection: sqlalchemy.Connection | None = None
        self._bind = session.bind
        self._commit: Callable[[], None] = session.commit
        self._rollback: Callable[[], None] = session.rollback

    @property
    def session(self) -> Session:
        """See `Join.session`."""
        return self._session

    def begin(self, txn: Transaction) -> None:
        """See `Join.begin`."""
        session = self._session
        if session.in_transaction():
            raise LifecycleError(
                "the session has a transaction already, what it did there can't be a part of this one; "
                "commit it or roll it back before the block"
            )
        if session.twophase or getattr(session, "_Session__binds", None):
            raise SettingsError(
                "the session is bound to several engines or commits in two phases; use another one"
            )
        self._require_same_database(txn)
        line = _Line(txn)
        session.bind = self._connection = _connection_over(line)
        self._line = line
        for name in _ENDS:
            if hasattr(session, name):
                setattr(session, name, _refused(name))

    def _require_same_database(self, txn: Transaction) -> None:
        engine = self._session.bind
        if engine is None:
            return
        if not isinstance(engine, sqlalchemy.Engine):
            raise SettingsError("the session is bound to a connection; bind it to an engine, or to nothing")
        known = _vouched.setdefault(engine, weakref.WeakSet())
        if txn.pool in known:
            return
        with engine.connect() as connection:
            try:
                found = connection.exec_driver_sql(READ_IDENTITY).fetchone()
            except sqlalchemy.exc.DBAPIError as error:
                raise SettingsError(
                    f"the engine of the session leads to a database without our tables: {error.orig}; it "
                    "must be the one of the producer or consumer"
                ) from error
        if not is_same(txn, found):
            raise SettingsError(
                f"the engine of the session leads to {engine.url.render_as_string()}, which is not the "
                "database of the producer or consumer: its database_id is another"
            )
        known.add(txn.pool)

    def flush(self) -> None:
        """See `Join.flush`."""
        self._running.require_whole()  # SQLAlchemy's own words are no help
        self._session.flush()
        self._running.require_whole()

    def commit(self, commit: Callable[[], None]) -> None:
        """See `Join.commit`."""
        self._running.require_whole()
        if self._session.in_transaction():
            self._running.commit_with(commit)
            self._commit()
        else:  # nothing was done with it
            commit()

    @property
    def _running(self) -> _Line:
        if self._line is None:
            raise LifecycleError("this session was joined to no transaction yet; it is joined by the block")
        return self._line

    def end(self) -> None:
        """See `Join.end`."""
        line, self._line = self._line, None
        if line is None:
            return  # it never began
        for name in _ENDS:
            self._session.__dict__.pop(name, None)
        line.close_for_good()
        try:
            self._rollback()  # of the session's own state: the transaction ended
            if self._closes:
                self._session.close()
            if self._connection is not None:
                self._connection.close()
        finally:
            self._session.bind = self._bind

    def after_commit(self) -> None:
        """Do nothing: SQLAlchemy calls its hooks itself."""


def _refused(name: str) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise LifecycleError(
            f"session.{name}() would end the transaction that the session was joined to; leave the block to "
            "commit, raise to roll back, use begin_nested() for a part"
        )

    return refuse


class _Line:
    """
    The DB-API connection that SQLAlchemy sees: ours, whose end is not its business.

    Its `rollback` sends nothing and is remembered. SQLAlchemy calls it when a flush failed, or when a
    transaction object of its own is rolled back, and forgets work that the server still holds: such a
    block can only fail. So can one whose transaction object was committed, which is refused.
    """

    def __init__(self, txn: Transaction) -> None:
        self._connection = txn.connection
        self._commit: Callable[[], None] | None = None
        self._over = False
        self.undone = ""  # else what to say of it

    def commit_with(self, commit: Callable[[], None]) -> None:
        """Let the next `commit` be this one."""
        self._commit = commit

    def close_for_good(self) -> None:
        """Be of no use any more."""
        self._over = True

    def commit(self) -> None:
        commit, self._commit = self._commit, None
        if commit is None:
            self.undone = _REFUSED_COMMIT
            raise LifecycleError(_REFUSED_COMMIT)
        commit()

    def rollback(self) -> None:
        """Send nothing, but remember: what SQLAlchemy took back must not be committed."""
        self.undone = self.undone or _ROLLED_BACK

    def require_whole(self) -> None:
        """Raise LifecycleError if SQLAlchemy took back, or thinks committed, what the server still holds."""
        if self.undone:
            raise LifecycleError(self.undone)

    def cursor(self, *kind: Any) -> Any:
        """Return a cursor that counts the rows an UPDATE matched, unless another kind is asked for."""
        self._require_running()
        return self._connection.cursor(*kind or (MatchedRowsCursor,))

    def close(self) -> None:
        """Do nothing: the connection is lent."""

    def _require_running(self) -> None:
        if self._over:
            raise LifecycleError("the transaction that this session was joined to is over")
        refuse_event_loop("a statement of a joined session")

    def __getattr__(self, name: str) -> Any:
        self._require_running()
        return getattr(self._connection, name)


class _Lines(threading.local):
    """An engine a thread, whose dialect has met the server, and the line that it connects with next."""

    line: _Line

    def __init__(self) -> None:
        # No reset when a connection comes back: its transaction has ended by then.
        self.engine = sqlalchemy.create_engine(
            "mysql+pymysql://", creator=lambda: self.line, poolclass=NullPool, pool_reset_on_return=None
        )


_lines = _Lines()


def _connection_over(line: _Line) -> sqlalchemy.Connection:
    _lines.line = line
    connection = _lines.engine.connect()
    line.undone = ""  # the dialect's first look at a server ends in a rollback
    return connection
