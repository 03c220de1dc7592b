"""The local database: it holds the business tables and ours, and hands out transactions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pymysql

from rmq_txn.database import beginning
from rmq_txn.database.connection import ServerThread
from rmq_txn.database.pipelining import Pipelining
from rmq_txn.database.pool import ConnectionPool, driver_error, is_unavailable, parse_url
from rmq_txn.database.session import Session
from rmq_txn.database.session_state import SessionState
from rmq_txn.database.sideline import Sideline
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.database.tracking import TRACK
from rmq_txn.database.transaction import Join, Transaction
from rmq_txn.errors import DatabaseUnavailableError, InDoubtError, SettingsError
from rmq_txn.identity import new_txn_id
from rmq_txn.logs import get_logger
from rmq_txn.quantities import positive_number, positive_whole_number

log = get_logger("database")

_WAIT_MARGIN_SECONDS = 10
# One SET for both servers: MySQL reads the first comment and MariaDB the second. MariaDB has the new
# name since 11.1, MySQL lost the old one with 8.0.
READ_ISOLATION = "SELECT /*!80000 @@transaction_isolation */ /*M! @@tx_isolation */"
_ALSO_ISOLATION = "/*!80000 , transaction_isolation = '{0}' */ /*M! , tx_isolation = '{0}' */"
_READ_COMMITTED = _ALSO_ISOLATION.format("READ-COMMITTED")
_ISOLATION_LEVELS = ("read committed", "repeatable read")


class Database:
    """
    A MySQL or MariaDB database that holds both the business tables and ours. Thread-safe.

    Make it with `Database.mysql`. Connections are opened at first use, with autocommit off. Must
    not have been used before a fork.
    """

    def __init__(
        self, pool: ConnectionPool, checks: ConnectionPool, *, local_timeout_seconds: int = 60
    ) -> None:
        self._pool = pool
        self._checks = checks
        self.local_timeout_seconds = local_timeout_seconds

    @classmethod
    def mysql(
        cls,
        url: str,
        *,
        pool_size: int = 16,
        pool_wait_seconds: float = 5.0,
        connect_timeout_seconds: float = 5.0,
        statement_timeout_seconds: float = 10.0,
        lock_wait_seconds: int = 5,
        local_timeout_seconds: int = 60,
        isolation_level: str | None = None,
    ) -> Database:
        """
        Describe a database; nothing is connected yet.

        Args:
            url: `mysql://user:password@host:port/database`, percent-encoded where needed. Query
                parameters: `charset`, `unix_socket`; `ssl_ca`, a PEM file: TLS only, and only with a
                server that shows a certificate of one of these authorities;
                `ssl_verify_identity=true`: made out to this host as well. Without `ssl_ca` PyMySQL uses
                TLS if the server offers it, and anybody in the line can be the server.
            pool_size: connections for transactions; at least the consumer's threads. Check-backs
                have up to two of their own, so a full pool does not silence them.
            pool_wait_seconds: how long a transaction waits for a free connection.
            connect_timeout_seconds: to open a connection.
            statement_timeout_seconds: the longest silence of the server inside one statement; a
                longer one counts as a lost connection.
            lock_wait_seconds: `innodb_lock_wait_timeout` of our sessions, whole seconds; must be
                below `statement_timeout_seconds`.
            local_timeout_seconds: the longest local transaction of a producer, whole seconds; a longer
                one is refused at COMMIT. With ten more it is the `wait_timeout` of our sessions: how
                long the server keeps a transaction whose client went silent.
            isolation_level: `read committed` or `repeatable read`, of the transactions; None: as the
                server has it, by default `REPEATABLE-READ`. What is promised here needs neither.

        Raises:
            SettingsError: the URL, a number or the file of `ssl_ca` is not usable.
        """
        for name, value in (
            ("pool_wait_seconds", pool_wait_seconds),
            ("connect_timeout_seconds", connect_timeout_seconds),
            ("statement_timeout_seconds", statement_timeout_seconds),
        ):
            positive_number(name, value)
        for name, value in (
            ("pool_size", pool_size),
            ("lock_wait_seconds", lock_wait_seconds),
            ("local_timeout_seconds", local_timeout_seconds),
        ):
            positive_whole_number(name, value)
        if isolation_level not in (None, *_ISOLATION_LEVELS):
            raise SettingsError(
                f"isolation_level is {isolation_level!r}, allowed are {', '.join(_ISOLATION_LEVELS)}, or None"
            )
        if lock_wait_seconds >= statement_timeout_seconds:
            raise SettingsError(
                f"lock_wait_seconds is {lock_wait_seconds}, it must be below "
                f"statement_timeout_seconds ({statement_timeout_seconds:g}): a lock wait would look "
                "like a lost connection"
            )
        parameters = parse_url(url) | {
            "connect_timeout": connect_timeout_seconds,
            "read_timeout": statement_timeout_seconds,
            "write_timeout": statement_timeout_seconds,
            "autocommit": False,
            "pipelining": Pipelining(),
        }
        # Short: the caller of a lost COMMIT waits for them, after statement_timeout_seconds.
        checks = parameters | {"read_timeout": 3.0, "write_timeout": 3.0, "connect_timeout": 1.5}
        set_session = f"SET SESSION {TRACK}, innodb_lock_wait_timeout = {{:d}}, wait_timeout = {{:d}}"
        wait_timeout = local_timeout_seconds + _WAIT_MARGIN_SECONDS
        parameters["init_command"] = set_session.format(lock_wait_seconds, wait_timeout)
        if isolation_level is not None:
            level = isolation_level.upper().replace(" ", "-")
            parameters["init_command"] += " " + _ALSO_ISOLATION.format(level)
        # The native client has one check thread: one waiting check holds up all others. UTC: ages of
        # rows must not jump by an hour in spring and autumn.
        checks["init_command"] = set_session.format(1, wait_timeout) + ", time_zone = '+00:00'"
        pool = ConnectionPool(parameters, size=pool_size, wait_seconds=pool_wait_seconds)
        return cls(
            pool,
            ConnectionPool(checks, size=2, wait_seconds=2.0, renewal=pool.renewal),
            local_timeout_seconds=local_timeout_seconds,
        )

    @property
    def pool_size(self) -> int:
        """How many transactions can be open at once."""
        return self._pool.size

    def begin(self, txn_id: str, *, ours_first: bool = False) -> Session:
        """
        Open a guarded transaction: the tripwire is set, on a live connection.

        Args:
            ours_first: it is set with the first statement; see `Session`.

        Raises:
            DatabaseUnavailableError: no connection in time.
        """
        return Session(self._pool, txn_id, guarded=True, ours_first=ours_first)

    @contextmanager
    def transaction(
        self, *, read_only: bool = False, join: Join | None = None, ours_first: bool = False
    ) -> Iterator[Transaction]:
        """
        Run a plain local transaction: COMMIT at the end of the block, ROLLBACK if it raises.

        For reading, and for writes that publish nothing; `TransactionProducer.transaction` is the
        one that can publish.

        Args:
            read_only: end with ROLLBACK in any case, so that no COMMIT can be in doubt.
            join: a session that shares the transaction (`rmq_txn.join`); it is `txn.session`.
            ours_first: for this package, whose consumers begin with a statement of its own; see `Session`.

        Raises:
            DatabaseUnavailableError: nothing was committed.
            TransactionLostError: the server ended the transaction before COMMIT.
            InDoubtError: the answer to COMMIT was lost.
        """
        session = self.begin(new_txn_id(), ours_first=ours_first)
        try:
            txn = Transaction(session, join=join)
            if join is not None:
                join.begin(txn)
            yield txn
            if read_only:
                if session.connection.ended:
                    session.release_tripwire()  # says what happened
                session.rollback()
            elif join is None:
                session.commit()
            else:
                join.flush()
                join.commit(session.commit)
        except BaseException as error:
            told = session.fail(error)
            lost = isinstance(driver_error(error), pymysql.MySQLError)
            if session.state is SessionState.COMMITTING and lost:
                raise InDoubtError("the answer to COMMIT was lost", txn_id=session.txn_id) from error
            if told is not error:
                raise told from error
            raise
        finally:
            if join is not None:
                join.end()
        if join is not None and not read_only:
            join.after_commit()

    @contextmanager
    def check_session(self, txn_id: str, *, ours_first: bool = False) -> Iterator[Session]:
        """
        Open a transaction as for check-backs: on connections of their own, with a lock wait of 1 s.

        ROLLBACK at the end of the block, explicitly: a lock wait timeout leaves the transaction open.
        Nothing is left to roll back if the block committed.

        Args:
            ours_first: see `Session`.

        Raises:
            DatabaseUnavailableError: no connection in time.
        """
        session = Session(self._checks, txn_id, guarded=False, ours_first=ours_first)
        try:
            yield session
        finally:
            session.rollback()

    def sideline(self, purpose: str) -> Sideline:
        """
        Make one connection, set up as for check-backs, for a thread that keeps it. Opened at first use.

        On READ COMMITTED, from its first statement on, also after it was made again: a DELETE must not
        lock the gap in which others insert.
        """
        return Sideline(self._checks.alike(size=1, set_also=_READ_COMMITTED), purpose)

    def kill(self, thread: ServerThread) -> bool:
        """
        End a connection of ours on the server, with its open transaction. Gone already is fine.

        Returns:
            False if the id may be another connection's: the server is another one, or was started after
            that connection was made. Then nothing was ended.

        Raises:
            DatabaseUnavailableError: the server can't be asked.
        """
        with self.check_session("kill") as session:
            try:
                return beginning.end(session.connection, thread)
            except pymysql.MySQLError as error:
                if is_unavailable(error):
                    self._checks.unavailable(error)
                raise

    def is_reachable(self) -> bool:
        """Whether the database does our work now: a connection can be had, and a row be written."""
        try:
            with self.check_session(new_txn_id()) as session:
                # Rolled back. A server that is read only or has no room refuses it as it would a real one.
                session.execute(STATEMENTS["insert_log_row"], (session.txn_id, 0, b""))
        except DatabaseUnavailableError:
            return False
        except pymysql.MySQLError as error:
            # Of the statement, not of the server: no such table, a lock. Whoever waits finds the same.
            log.warning("the database could not be tried by a write", error=str(error))
        return True

    def wait_until_reachable(self, give_up: threading.Event, longest_pause_seconds: float) -> None:
        """Block until the database does our work, with growing pauses, or until `give_up` is set."""
        pause = 0.1
        while not give_up.is_set() and not self.is_reachable():
            give_up.wait(pause)
            pause = min(pause * 2, longest_pause_seconds)

    def close(self) -> None:
        """Close the idle connections and refuse further use. Idempotent."""
        self._pool.close()
        self._checks.close()
