"""
Connections: how they are described, lent and given back, and what a driver's error number means.

DBUtils lends them. Its own failover is switched off: it would reconnect silently in the middle of
a transaction and commit the second half alone (docs/hazards.md, H1).
"""

from __future__ import annotations

import os
import ssl
import threading
from contextlib import suppress
from typing import Any, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

import pymysql
from dbutils.pooled_db import PooledDB

from rmq_txn.errors import DatabaseUnavailableError, LifecycleError, SettingsError

DUPLICATE_KEY = 1062
SAVEPOINT_MISSING = 1305
NO_SUCH_THREAD = 1094
# Lock wait timeout, deadlock, and MariaDB's snapshot conflict: trying again is the cure.
LOCK_ERRORS = frozenset({1205, 1213, 1020})
# The connection is gone or could not be had. 0 is PyMySQL's own "closed before".
LOST_CONNECTION = frozenset(
    {0, 1040, 1053, 1152, 1158, 1159, 1160, 1161, 1203, 1927, 2002, 2003, 2005, 2006, 2013, 2014}
    | {2055, 3159, 3169, 4031}
)

# Wrong user, password or database: a retry helps only after somebody mended it.
_REFUSED = frozenset({1044, 1045, 1049, 1698})
_NO_TLS = 2026


def error_code(error: BaseException) -> int | None:
    """Return the server's or the driver's error number; None when `error` has none."""
    if isinstance(error, pymysql.err.MySQLError) and error.args and type(error.args[0]) is int:
        return error.args[0]
    return None


def is_lost_connection(error: BaseException) -> bool:
    """Whether `error` means that the connection is gone, whatever became of its transaction."""
    return isinstance(error, DatabaseUnavailableError) or error_code(error) in LOST_CONNECTION


class _NeverRaised(Exception):
    """Given to DBUtils as the only failure it may heal."""


class ConnectionPool:
    """A bounded pool; the bound is ours because the pool's own waits for ever."""

    def __init__(self, parameters: dict[str, Any], *, size: int, wait_seconds: float) -> None:
        self._parameters = parameters
        self.size = size
        self._wait_seconds = wait_seconds
        self._free = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._pool: PooledDB | None = None
        self._pid = 0
        self._closed = False

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        return f"{self._parameters['host']}:{self._parameters['port']}"

    def alike(self, *, size: int) -> ConnectionPool:
        """Make another pool of such connections, empty."""
        return ConnectionPool(self._parameters, size=size, wait_seconds=self._wait_seconds)

    def borrow(self) -> Any:
        """
        Lend a connection to the caller alone; it must come back through `give_back`.

        Raises:
            DatabaseUnavailableError: none was free in time, or none can be made.
            LifecycleError: closed, or used in another process before.
        """
        pool = self._opened()
        if not self._free.acquire(timeout=self._wait_seconds):
            raise DatabaseUnavailableError(
                f"all {self.size} connections to {self.address} were busy for "
                f"{self._wait_seconds:g} s; raise pool_size or shorten the transactions"
            )
        try:
            return pool.dedicated_connection()
        except BaseException as error:
            self._free.release()
            if isinstance(error, pymysql.err.MySQLError):
                self.unavailable(error)
            raise

    def _opened(self) -> PooledDB:
        with self._lock:
            if self._closed:
                raise LifecycleError("the database is closed; make a new Database")
            if self._pool is None:
                self._pid = os.getpid()
                self._pool = PooledDB(
                    pymysql,
                    maxcached=self.size,
                    reset=False,  # every session ends itself; a ROLLBACK more is a round trip
                    ping=0,  # a session's first statement finds dead connections, one round trip cheaper
                    failures=_NeverRaised,
                    **self._parameters,
                )
            if self._pid != os.getpid():
                raise LifecycleError(
                    f"this Database was used in process {self._pid} and can't be used after a fork "
                    f"in process {os.getpid()}: they would share connections; make it after the fork"
                )
            return self._pool

    def give_back(self, pooled: Any, *, broken: bool) -> None:
        """Take a connection back; a broken one is closed, so that nobody gets it again."""
        try:
            if broken:
                with suppress(pymysql.err.MySQLError):  # closed already
                    pooled.dbapi_connection.close()
            pooled.close()
        finally:
            self._free.release()

    def unavailable(self, error: pymysql.err.MySQLError) -> NoReturn:
        """Raise `DatabaseUnavailableError` for what the driver said."""
        code = error_code(error)
        did = "refused the connection" if code in _REFUSED else "did not answer"
        if isinstance(getattr(error, "original_exception", None), ssl.SSLError):
            did = "failed the TLS handshake"
        elif code == _NO_TLS:
            did = "offers no TLS, which ssl_ca demands"
        raise DatabaseUnavailableError(
            f"database {self.address} {did}: {error.args[-1]} (error {code})"
        ) from error

    def close(self) -> None:
        """Close the idle connections, refuse to lend more. Idempotent; does nothing after a fork."""
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
        raise SettingsError(
            f"database url has scheme {parts.scheme!r}, allowed is mysql://user:password@host:port/database"
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
        "charset": "utf8mb4",
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
