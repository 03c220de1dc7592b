"""
Connections: how they are described, lent and given back, and what a driver's error number means.

DBUtils lends them. Its own failover is switched off: it would reconnect silently in the middle of
a transaction and commit the second half alone (docs/hazards.md, H1).
"""

from __future__ import annotations

import os
import queue
import ssl
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

import pymysql
from dbutils.pooled_db import PooledDB

from rmq_txn.database import connection as driver
from rmq_txn.database.connection import SAFE_CHARACTER_SETS, WatchedConnection
from rmq_txn.errors import DatabaseUnavailableError, LifecycleError, SettingsError

DUPLICATE_KEY = 1062
SAVEPOINT_MISSING = 1305
NO_SUCH_THREAD = 1094

# Trying the whole transaction again is the cure, at once. The numbers are from MySQL's and MariaDB's lists of
# errors (perror); "Galera" and "Group Replication": what their documents add.
LOCK_ERRORS = frozenset(
    {
        1205,  # lock wait timeout; Galera: also a wait that its applier cut short
        1213,  # deadlock; Galera: the cluster certified another transaction first, also told at COMMIT
        1020,  # MariaDB: the row changed since the snapshot was taken
        1412,  # the table was altered since the transaction began, "please retry"
        1689,  # a wait was ended for an exclusive lock that others wait for
        3058,  # deadlock of GET_LOCK
        3101,  # Group Replication: rolled back at COMMIT, another member certified first
        3572,  # MySQL: NOWAIT, and the row is locked
    }
)
# The connection is gone or could not be had. 0 is PyMySQL's own "closed before".
LOST_CONNECTION = frozenset(
    {0, 1040, 1053, 1152, 1158, 1159, 1160, 1161, 1203, 1927, 2002, 2003, 2005, 2006, 2013, 2014}
    | {2055, 3159, 3169, 4031}
)
# The server answers, but does no work like this now; another one may, or the same one later. A fault of the
# statement may have the same number: 1290 is also INTO OUTFILE with secure_file_priv, 1114 also a temporary
# table that is full. `Database.is_reachable` tells: it tries a write.
REFUSALS = frozenset(
    {
        1290,  # read_only, super_read_only: demoted, or Group Replication without a majority
        1836,  # read-only mode, as MySQL's InnoDB and managed servers say it
        1874,  # innodb_read_only
        1881,  # innodb_force_recovery
        1036,  # the table can be read only: innodb_force_recovery in MariaDB, files without permission
        3989,  # MySQL: ALTER SCHEMA ... READ ONLY = 1, as in a migration
        3032,  # MySQL: offline_mode
        1047,  # Galera: "WSREP has not yet prepared node for application use", no quorum or still joining
        3100,  # Group Replication: a hook failed; the member left the group
        3796,  # Group Replication: the consistency asked for is not to be had in this member's state
        3797,  # Group Replication: waiting for the group failed, before the transaction
        3798,  # Group Replication: the same, at the beginning
        3799,  # Group Replication is stopping
        3168,  # MySQL: "Server isn't available"
        1129,  # host blocked after many connection errors
        1226,  # the account used up an hour's updates or queries
        1021,  # disk full
        1114,  # table full: how InnoDB says it
        1026,  # a file could not be written
        1037,  # out of memory
        1041,  # out of memory
        1135,  # no new thread
        1637,  # too many transactions at once
    }
)
# Also the fault of a statement after START TRANSACTION READ ONLY; a server refuses with it by default when
# transaction_read_only is set globally, as some do to demote it. `Session` tells them apart.
READ_ONLY_TRANSACTION = 1792
# Answered to COMMIT, these say that there was none. Tried: 1290 (MariaDB 10.11, MySQL 9.7), 1213 (Galera) and
# 3101 (group replication with several primaries). Any other number leaves the outcome in doubt.
REFUSED_COMMIT = frozenset({1213, 1290, 3101})

# Wrong user, password or database: a retry helps only after somebody mended it.
_REFUSED = frozenset({1044, 1045, 1049, 1698})
_NO_TLS = 2026


def driver_error(error: BaseException) -> BaseException:
    """Return the driver's error inside of what SQLAlchemy, or a join, made of it; else `error`."""
    inner = getattr(error, "orig", None)
    return inner if isinstance(inner, pymysql.MySQLError) else error


def error_code(error: BaseException) -> int | None:
    """Return the server's or the driver's error number; None when `error` has none."""
    error = driver_error(error)
    if isinstance(error, pymysql.MySQLError) and error.args and type(error.args[0]) is int:
        return error.args[0]
    return None


def is_duplicate(error: BaseException) -> bool:
    """Whether `error` says that a key is taken."""
    return isinstance(error, pymysql.IntegrityError) and error_code(error) == DUPLICATE_KEY


def is_lost_connection(error: BaseException) -> bool:
    """Whether `error` means that the connection is gone, whatever became of its transaction."""
    return isinstance(error, DatabaseUnavailableError) or error_code(error) in LOST_CONNECTION


def is_refusal(error: BaseException) -> bool:
    """Whether the server says that it does no such work now; the connection may stand."""
    return error_code(error) in REFUSALS


def is_unavailable(error: BaseException) -> bool:
    """Whether waiting for the server, or for another one, is what helps: `error` is not the statement's."""
    return is_lost_connection(error) or is_refusal(error)


class Renewal:
    """
    Since when connections to the database are good, by the monotonic clock. Shared by its pools, thread-safe.

    After a failover the connections in a pool lead to a server that was demoted. The first that is refused
    condemns all that were made before, so that not every borrower has to find out on one of its own.
    """

    def __init__(self) -> None:
        self.since = float("-inf")

    def renew(self) -> None:
        """Condemn all connections that exist."""
        self.since = time.monotonic()


class _NeverRaised(Exception):
    """Given to DBUtils as the only failure it may heal."""


def _close(connection: WatchedConnection) -> None:
    with suppress(pymysql.MySQLError):  # closed already
        connection.close()


class ConnectionPool:
    """
    A bounded pool; the bound is ours because the pool's own waits for ever. Thread-safe.

    Not bound to threads: a native one keeps nothing between callbacks.
    """

    def __init__(
        self,
        parameters: dict[str, Any],
        *,
        size: int,
        wait_seconds: float,
        renewal: Renewal | None = None,
    ) -> None:
        self._parameters = parameters
        self.renewal = renewal or Renewal()
        self.size = size
        self._wait_seconds = wait_seconds
        # One for each connection that may be lent. A semaphore of `threading` makes 13 function calls a loan.
        self._permits = queue.SimpleQueue[None]()
        for _ in range(size):
            self._permits.put(None)
        self._lock = threading.Lock()
        self._pool: Any = None  # made when it is used first
        self._pid = 0
        self._closed = False

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        return f"{self._parameters['host']}:{self._parameters['port']}"

    def alike(self, *, size: int, set_also: str) -> ConnectionPool:
        """Make another pool of such connections, empty; `set_also` goes on with their SET SESSION."""
        init_command = f"{self._parameters['init_command']} {set_also}"
        parameters = self._parameters | {"init_command": init_command}
        return ConnectionPool(parameters, size=size, wait_seconds=self._wait_seconds, renewal=self.renewal)

    def borrow(self) -> WatchedConnection:
        """
        Lend a connection to the caller alone; it must come back through `give_back`. It may be closed.

        Raises:
            DatabaseUnavailableError: none was free in time, or none can be made.
            LifecycleError: closed, or used in another process before.
        """
        if self._pid != os.getpid() or self._closed:
            self._open()
        try:
            self._permits.get(timeout=self._wait_seconds)
        except queue.Empty:
            raise DatabaseUnavailableError(
                f"all {self.size} connections to {self.address} were busy for "
                f"{self._wait_seconds:g} s; raise pool_size or shorten the transactions"
            ) from None
        try:
            lease = self._pool.dedicated_connection()
        except BaseException as error:
            self._permits.put(None)
            if isinstance(error, pymysql.MySQLError):
                self.unavailable(error)
            raise
        connection: WatchedConnection = lease.dbapi_connection
        connection.lease = lease
        if connection.made_at[0] <= self.renewal.since:
            _close(connection)
        return connection

    def _open(self) -> None:
        with self._lock:
            if self._closed:
                raise LifecycleError("the database is closed; make a new Database")
            if self._pid not in (0, os.getpid()):
                raise LifecycleError(
                    f"this Database was used in process {self._pid} and can't be used after a fork "
                    f"in process {os.getpid()}: they would share connections; make it after the fork"
                )
            if self._pool is None:
                self._pool = PooledDB(
                    driver,
                    maxcached=self.size,
                    reset=False,  # every session ends itself; a ROLLBACK more is a round trip
                    ping=0,  # a session's first statement finds dead connections, one round trip cheaper
                    failures=_NeverRaised,
                    **self._parameters,
                )
            self._pid = os.getpid()

    def give_back(self, connection: WatchedConnection, *, broken: bool) -> None:
        """Take a connection back, its transaction ended; who gets a broken one finds it closed."""
        try:
            if broken:
                _close(connection)
            lease, connection.lease = connection.lease, None
            lease.close()
            if self._closed:  # meanwhile: DBUtils would keep it open
                self.close()
        finally:
            self._permits.put(None)

    def unavailable(self, error: pymysql.MySQLError) -> NoReturn:
        """Raise `DatabaseUnavailableError` for what the driver said."""
        code = error_code(error)
        if code in _REFUSED:
            did = "refused the connection"
        elif isinstance(getattr(error, "original_exception", None), ssl.SSLError):
            did = "failed the TLS handshake"
        elif code == _NO_TLS:
            did = "offers no TLS, which ssl_ca demands"
        elif is_refusal(error) or code == READ_ONLY_TRANSACTION:
            did = "refuses to work now"
            self.renewal.renew()
        else:
            did = "did not answer"
        raise DatabaseUnavailableError(
            f"database {self.address} {did}: {error.args[-1]} (error {code})"
        ) from error

    def close(self) -> None:
        """Close the idle connections, refuse to lend more. Idempotent; closes none after a fork."""
        with self._lock:
            self._closed = True
            if self._pool is not None and self._pid == os.getpid():
                self._pool.close()


def parse_url(url: str) -> dict[str, Any]:
    """Turn a URL into PyMySQL parameters. Error texts never repeat the URL: it has a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        # Not chained: Python's text repeats user and password ("netloc '...' contains invalid ...").
        raise SettingsError(
            "database url can't be parsed; percent-encode special characters of user and password"
        ) from None
    if parts.scheme not in ("mysql", "mariadb"):
        # With a driver's name it is SQLAlchemy's.
        way_out = (
            "; it names a driver, and this connection is always PyMySQL's: write mysql:// here, and leave "
            "your engine as it is, its sessions can be joined"
            if parts.scheme.startswith(("mysql+", "mariadb+"))
            else ""
        )
        raise SettingsError(
            f"database url has scheme {parts.scheme!r}, allowed is mysql://user:password@host:port/database"
            f"{way_out}"
        )
    database = parts.path.strip("/")
    if not parts.hostname or not parts.username or not database or "/" in database:
        raise SettingsError("database url lacks a part: mysql://user:password@host:port/database is needed")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        # Not chained either: behind an unencoded @ or / the "port" is a piece of the password.
        raise SettingsError(
            "database url has no usable port, allowed is 1 to 65535; percent-encode special "
            "characters of user and password"
        )
    allowed = {"charset", "unix_socket", "ssl_ca", "ssl_verify_identity"}
    options: dict[str, Any] = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(set(options) - allowed):
        raise SettingsError(f"database url has options {unknown}, allowed are {sorted(allowed)}")
    charset = options.setdefault("charset", "utf8mb4")
    if charset not in SAFE_CHARACTER_SETS:
        raise SettingsError(
            f"database url has charset {charset!r}, allowed are {', '.join(sorted(SAFE_CHARACTER_SETS))}: in "
            "others values can't be escaped safely"
        )
    identity = options.pop("ssl_verify_identity", None)
    if identity not in (None, "true", "false"):
        raise SettingsError(f"database url has ssl_verify_identity={identity!r}, allowed is true or false")
    if "ssl_ca" in options:
        options["ssl"] = _vouched_for(options.pop("ssl_ca"), identity=identity == "true")
    elif identity == "true":
        raise SettingsError(
            "database url has ssl_verify_identity without ssl_ca, which says whose word counts"
        )
    return {
        "host": parts.hostname,
        "port": port or 3306,
        "user": unquote(parts.username),
        "password": unquote(parts.password or ""),
        "database": unquote(database),
    } | options


def _vouched_for(authorities: str, *, identity: bool) -> ssl.SSLContext:
    """
    Return TLS in which the server must show a certificate of one of these authorities.

    Our own: from `ssl_ca` alone PyMySQL makes one that believes any certificate (docs/hazards.md, D3).
    """
    try:
        context = ssl.create_default_context(cafile=authorities)
    except OSError as error:  # of files and of TLS
        raise SettingsError(
            f"ssl_ca is {authorities!r}, needed is a readable file with certificates in PEM: {error}"
        ) from error
    # The authority that MySQL makes for itself lacks what Python 3.13 wants, and names no host.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = identity
    return context
