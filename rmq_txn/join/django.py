"""
Django's connection in a transaction of ours: `producer.transaction(join=joined())`.

For the length of the block the ORM works on our connection, in our transaction, as inside of
`atomic(durable=True)`: the tripwire is its first statement, and log row, copies and COMMIT follow the
last query. Extra `django`; Django 5.2 or newer, on PyMySQL or mysqlclient (docs/decisions/0062).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pymysql
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.utils import typecast_time
from django.db.transaction import Atomic
from django.db.utils import DatabaseError, DatabaseErrorWrapper
from pymysql.constants import FIELD_TYPE
from pymysql.converters import decoders

from rmq_txn.database.database import READ_ISOLATION
from rmq_txn.database.matched_rows import MatchedRowsCursor
from rmq_txn.database.pool import LOST_CONNECTION, ConnectionPool
from rmq_txn.database.transaction import Transaction
from rmq_txn.errors import DatabaseUnavailableError, LifecycleError, SettingsError
from rmq_txn.join.same_database import READ_IDENTITY, is_same

T = TypeVar("T")

_BACKEND = "django.db.backends.mysql.base"
_ENDS = ("commit", "rollback", "set_autocommit", "close", "connect")
"""Calls of the connection that would end the transaction, or leave it."""
_ABSENT = object()

_vouched: weakref.WeakKeyDictionary[ConnectionPool, set[str]] = weakref.WeakKeyDictionary()
"""Pools of ours, and Django's settings that were found to lead to the same database; asked once a process."""


def joined(using: str = DEFAULT_DB_ALIAS) -> ConnectionJoin:
    """
    Let Django's connection of this thread share one transaction.

    Inside the block everything that uses `using` is a part of it: the ORM, cursors, `atomic()` for a part.
    `transaction.commit()`, `rollback()`, `set_autocommit()` and `atomic(durable=True)` are refused: leave the
    block to commit, raise to roll back. `on_commit()` hooks run when the COMMIT is known to have happened,
    after the block and on its thread; never after a rollback, and not if the process dies before. What one
    raises reaches the caller: the transaction is committed all the same, and its messages are delivered.

    Not a part of it: what goes over another alias, such as that of a router for reading.

    Args:
        using: the alias, as of `atomic(using=...)`; it must lead to the database of the producer or consumer.

    Raises, when the block begins:
        LifecycleError: the connection is in an atomic block, as of `ATOMIC_REQUESTS` or a `TestCase`, or in
            a transaction by `AUTOCOMMIT = False`.
        SettingsError: it leads to another database, has another isolation level, or is none of MySQL.
        DatabaseUnavailableError: that can't be asked now.
    """
    return ConnectionJoin(using, closes=False)


def joins(using: str = DEFAULT_DB_ALIAS) -> Callable[[], ConnectionJoin]:
    """
    Let the ORM of each handler work in its transaction: `IdempotentConsumer(join=joins())`.

    After each, the thread's own connection, which a hook may have opened, is closed by Django's rules
    (`CONN_MAX_AGE`), as after a request. `txn.session` is Django's connection.
    """
    return lambda: ConnectionJoin(using, closes=True)


class ConnectionJoin:
    """See `rmq_txn.database.transaction.Join`; made by `joined` and `joins`."""

    def __init__(self, using: str, *, closes: bool) -> None:
        self._using = using
        self._closes = closes
        self._wrapper: Any = None
        self._line: _Line | None = None
        self._block: Any = None
        self._replaced: dict[str, Any] = {}
        self._hooks: list[Any] = []

    @property
    def session(self) -> Any:
        """See `Join.session`: Django's connection."""
        return self._wrapper

    def begin(self, txn: Transaction) -> None:
        """See `Join.begin`."""
        wrapper = connections[self._using]
        _require_joinable(wrapper)
        _require_same_database(wrapper, txn)
        self._wrapper = wrapper
        self._line = _Line(txn)
        self._block = Atomic(self._using, savepoint=True, durable=True)  # so that no other one is durable
        # Of the object, not of its class: so other threads have theirs, and to drop these is to undo it.
        during = _state_of_a_block(wrapper, self._line, self._block)
        self._replaced = {name: vars(wrapper).get(name, _ABSENT) for name in during}
        vars(wrapper).update(during)

    def flush(self) -> None:
        """See `Join.flush`: Django holds nothing back."""
        self._require_whole()

    def commit(self, commit: Callable[[], None]) -> None:
        """See `Join.commit`."""
        self._require_whole()
        commit()

    def _require_whole(self) -> None:
        """Raise LifecycleError if Django would roll back what the server still holds."""
        wrapper = self._wrapper
        if wrapper.needs_rollback:
            raise LifecycleError(
                "the block is marked for rollback, by an error of a query that was caught in it or by "
                "set_rollback(True); nothing is committed: raise to roll back, put what may fail into an "
                "atomic() of its own"
            ) from wrapper.rollback_exc
        unended = wrapper.atomic_blocks != [self._block] or not wrapper.in_atomic_block
        if unended or wrapper.savepoint_ids or wrapper.connection is not self._line:
            raise LifecycleError(
                "an atomic() inside the block was not left, or the connection was replaced; nothing is "
                "committed: leave each atomic() inside the block"
            )

    def end(self) -> None:
        """See `Join.end`."""
        line, self._line = self._line, None
        if line is None:
            return  # it never began
        line.close_for_good()
        state = vars(self._wrapper)
        self._hooks = self._wrapper.run_on_commit
        for name, value in self._replaced.items():
            if value is _ABSENT:
                state.pop(name, None)
            else:
                state[name] = value
        self._close_if_due()

    def after_commit(self) -> None:
        """See `Join.after_commit`: run the hooks, as Django does, on a connection of its own."""
        hooks, self._hooks = self._hooks, []
        self._wrapper.run_on_commit = hooks
        try:
            self._wrapper.run_and_clear_commit_hooks()
        finally:
            self._close_if_due()

    def _close_if_due(self) -> None:
        if self._closes:
            self._wrapper.close_if_unusable_or_obsolete()


def _require_joinable(wrapper: Any) -> None:
    if not any(kind.__module__ == _BACKEND for kind in type(wrapper).__mro__):
        raise SettingsError(
            f"the connection {wrapper.alias!r} of Django is of {type(wrapper).__module__}, allowed is "
            "django.db.backends.mysql or what is derived from it"
        )
    if wrapper.in_atomic_block:
        raise LifecycleError(
            f"the connection {wrapper.alias!r} of Django is in an atomic block already, what was done there "
            "can't be a part of this transaction; with ATOMIC_REQUESTS put @transaction.non_atomic_requests "
            "on the view, take an atomic() around this block away (it is atomic and durable by itself), and "
            "test it in a TransactionTestCase"
        )
    if wrapper.connection is not None and not wrapper.autocommit:
        raise LifecycleError(
            f"autocommit of the connection {wrapper.alias!r} of Django is off, so it may be in a transaction"
            "; commit or roll it back and close() it before the block, or leave AUTOCOMMIT on"
        )


def _require_same_database(wrapper: Any, txn: Transaction) -> None:
    known = _vouched.setdefault(txn.pool, set())
    settings = wrapper.settings_dict
    described = repr([settings[name] for name in ("HOST", "PORT", "NAME", "USER", "OPTIONS")])
    if described in known:
        return
    try:
        with wrapper.temporary_connection() as cursor:
            cursor.execute(READ_ISOLATION)
            (isolation,) = cursor.fetchone()
            cursor.execute(READ_IDENTITY)
            found = cursor.fetchone()
    except DatabaseError as error:
        if error.args and error.args[0] in LOST_CONNECTION:
            raise DatabaseUnavailableError(f"Django's database can't be asked: {error}") from error
        raise SettingsError(
            f"the connection {wrapper.alias!r} of Django leads to a database without our tables: {error}; it "
            "must be the one of the producer or consumer"
        ) from error
    if not is_same(txn, found):
        raise SettingsError(
            f"the connection {wrapper.alias!r} of Django leads to {settings['NAME']!r} on "
            f"{settings['HOST'] or 'localhost'}:{settings['PORT'] or 3306}, which is not the database of the "
            "producer or consumer: its database_id is another"
        )
    txn.execute(READ_ISOLATION)
    ((ours,),) = txn.fetchall()
    if ours != isolation:
        raise SettingsError(
            f"the connection {wrapper.alias!r} of Django has isolation level {isolation}, transactions of "
            f"this Database have {ours}; give Database.mysql() isolation_level="
            f"{isolation.lower().replace('-', ' ')!r}, or Django's OPTIONS another isolation_level"
        )
    known.add(described)


def _state_of_a_block(wrapper: Any, line: _Line, block: Any) -> dict[str, Any]:
    """Return the attributes of Django's connection inside of an atomic block on `line`."""
    return {
        "connection": line,
        "autocommit": False,
        "in_atomic_block": True,
        "atomic_blocks": [block],
        "savepoint_ids": [],
        "commit_on_exit": True,
        "needs_rollback": False,
        "rollback_exc": None,
        "closed_in_transaction": False,
        "errors_occurred": False,
        "health_check_enabled": False,
        "run_on_commit": [],
        "run_commit_hooks_on_set_autocommit_on": False,
        # Whatever Django's driver is, what is raised is PyMySQL's.
        "Database": pymysql,
        "wrap_database_errors": _Errors(wrapper),
        **{name: _refused(name) for name in _ENDS},
    }


def _refused(name: str) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise LifecycleError(
            f"{name}() of Django's connection would end or leave the transaction that it was joined to; "
            "leave the block to commit, raise to roll back, use atomic() for a part"
        )

    return refuse


class _Errors(DatabaseErrorWrapper):  # type: ignore[misc]  # Django ships no types
    """Makes Django's errors of PyMySQL's, and keeps those as `orig`, where we look for them."""

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            super().__exit__(kind, error, traceback)
        except Exception as wrapped:
            wrapped.orig = error  # type: ignore[attr-defined]
            raise


class _Line:
    """The DB-API connection that Django sees: ours, whose end is not its business."""

    def __init__(self, txn: Transaction) -> None:
        self._connection = txn.connection
        self._over = False

    def close_for_good(self) -> None:
        """Be of no use any more."""
        self._over = True

    def cursor(self, *kind: Any) -> Any:
        """Return a cursor with the types and errors that Django expects, unless another kind is asked for."""
        self._require_running()
        return self._connection.cursor(*kind or (_DjangoCursor,))

    def _require_running(self) -> None:
        if self._over:
            raise LifecycleError("the transaction that Django's connection was joined to is over")

    def __getattr__(self, name: str) -> Any:
        self._require_running()
        return getattr(self._connection, name)


class _DjangoCursor(MatchedRowsCursor):
    """What Django makes of a cursor of MySQLdb: a TIME is a time, and some errors are about integrity."""

    _DECODERS = decoders | {FIELD_TYPE.TIME: typecast_time}
    _ABOUT_INTEGRITY = frozenset({1048, 1690, 3819, 4025})  # as in Django's backend

    def _query(self, q: str | bytes) -> int:
        return self._with_types(partial(super()._query, q))

    def nextset(self) -> bool | None:
        """See PyMySQL."""
        return self._with_types(super().nextset)

    def _with_types(self, run: Callable[[], T]) -> T:
        connection: Any = self.connection
        if connection is None:
            return run()  # says that the cursor is closed
        kept, connection.decoders = connection.decoders, self._DECODERS
        try:
            return run()
        except pymysql.OperationalError as error:
            if error.args[0] in self._ABOUT_INTEGRITY:
                raise pymysql.IntegrityError(*error.args) from error
            raise
        finally:
            connection.decoders = kept
