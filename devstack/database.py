"""MariaDB or MySQL, with a data folder, a port and accounts of its own."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pymysql

from devstack.errors import StackError
from devstack.program import NotReadyError
from devstack.settings import StackPorts, StackSettings
from devstack.software import find
from rmq_txn.testing.server_software import SMALL_SERVER, DatabaseSoftware, ServerError, own_temporary_folder

if TYPE_CHECKING:
    from pymysql.connections import Connection
    from pymysql.cursors import Cursor

HOST = "127.0.0.1"
ADMIN = "devstack"
_CONNECT_SECONDS = 3
# Whatever a service needs inside its own database, tables included, and nothing outside.
_GRANTS = "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, INDEX, REFERENCES"


# What every server of a stack is told, wherever it runs.
OPTIONS = (*SMALL_SERVER, "--innodb-flush-log-at-trx-commit=1")


class DatabaseServer:
    """The database server as a program; see ServerProgram for what each method is for."""

    name = "database"
    ready_seconds = 180.0
    stop_seconds = 30.0
    more_logs: tuple[Path, ...] = ()  # it writes its log to stderr

    def __init__(self, settings: StackSettings, ports: StackPorts) -> None:
        self.folder = settings.folder
        self.ports: tuple[int, ...] = (ports.database,)
        self.port = ports.database
        self._options = settings.database_options
        self._name, self._cache_folder = settings.database, settings.cache_folder
        self._home = settings.folder / "database"
        self._secret_file = self._home / "secret"
        self._init_file = self._home / "accounts.sql"

    def environment(self) -> dict[str, str]:
        """Return the environment of the process."""
        return dict(os.environ)

    def prepare(self) -> None:
        """Initialise the data folder once and write the statements that make our account."""
        self._home.mkdir(parents=True, exist_ok=True)
        # In front of the accounts: even when it is not there, nobody else may look inside.
        self._home.chmod(0o700)
        if not self._secret_file.exists():
            self._secret_file.touch(0o600)
            self._secret_file.write_text(secrets.token_hex(16))
        password = self._password(ADMIN)
        # Run by the server before it listens, at each start; every statement can be repeated.
        self._init_file.write_text(
            f"CREATE USER IF NOT EXISTS '{ADMIN}'@'{HOST}' IDENTIFIED BY '{password}';\n"
            f"GRANT ALL ON *.* TO '{ADMIN}'@'{HOST}' WITH GRANT OPTION;\n"
            f"ALTER USER 'root'@'localhost' IDENTIFIED BY '{password}';\n"
        )
        self._init_file.chmod(0o600)
        software = self._software()
        if not (self._home / software.data_folder).is_dir():
            self._initialise(software)

    def command(self) -> list[str]:
        """Return the command line."""
        software = self._software()
        data = self._home / software.data_folder
        return [
            *software.command,
            f"--datadir={data}",
            own_temporary_folder(data),
            f"--init-file={self._init_file}",
            f"--port={self.port}",
            f"--bind-address={HOST}",
            # Relative to the data folder: a long folder would exceed the 107 bytes of an address.
            "--socket=server.sock",
            f"--pid-file={data / 'server.pid'}",
            *OPTIONS,
            *(f"--{key}={value}" for key, value in self._options.items()),
        ]

    def probe(self) -> None:
        """Run a query with the account that the start has made."""
        probe(self._connect)

    def url(self, name: str) -> str:
        """Create a database and its account if they are missing and return the URL to use them."""
        password = self._password(name)
        make_database(self._connect, name, HOST, password)
        return f"mysql://{name}:{password}@{HOST}:{self.port}/{name}"

    def set_read_only(self, on: bool) -> None:
        """See LocalStack.set_read_only."""
        try:
            with closing(self._connect()) as connection, connection.cursor() as cursor:
                cursor.execute("SET GLOBAL read_only = %s", (int(on),))
        except pymysql.MySQLError as error:
            raise OSError(str(error)) from error

    def _software(self) -> DatabaseSoftware:
        return find(self._name, self._cache_folder)

    def _connect(self) -> Connection[Cursor]:
        return connect(self.port, ADMIN, self._password(ADMIN))

    def _password(self, account: str) -> str:
        """Derive an account's password from the folder's secret: nothing else to store."""
        secret = self._secret_file.read_bytes()
        return derived_password(secret, account)

    def _initialise(self, software: DatabaseSoftware) -> None:
        """Make the system tables; the data folder gets its name only once they are complete."""
        with tempfile.TemporaryDirectory(prefix="new-", dir=self._home) as temporary:
            data = Path(temporary) / "data"
            try:
                software.make_system_tables(data)
            except ServerError as error:
                raise StackError(str(error)) from error
            data.rename(self._home / software.data_folder)


def connect(port: int, user: str, password: str) -> Connection[Cursor]:
    """Connect to a server of this machine."""
    return pymysql.connect(
        host=HOST,
        port=port,
        user=user,
        password=password,
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_CONNECT_SECONDS * 10,
        write_timeout=_CONNECT_SECONDS * 10,
    )


def probe(connect: Callable[[], Connection[Cursor]]) -> None:
    """Run a query; NotReadyError when that fails."""
    try:
        with closing(connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except pymysql.MySQLError as exc:
        raise NotReadyError(str(exc)) from exc


def derived_password(secret: bytes, account: str) -> str:
    """Return the password of an account: from the secret of the stack, and no other account's."""
    return hmac.new(secret, account.encode(), hashlib.sha256).hexdigest()[:32]


def make_database(connect: Callable[[], Connection[Cursor]], name: str, clients: str, password: str) -> None:
    """
    Create a database and an account of the same name, if they are missing.

    Args:
        connect: returns a connection of an administrator.
        name: a lower-case letter, then up to 31 lower-case letters, digits and '_'.
        clients: the address that the server sees the account's clients come from, or '%'.
        password: the account's.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name):
        raise ValueError(
            f"database name is {name!r}, allowed are a lower-case letter, then up to 31 lower-"
            f"case letters, digits and '_'"
        )
    account = f"'{name}'@'{clients}'"
    pattern = name.replace("_", r"\_")  # in GRANT an underscore stands for any character
    try:
        with closing(connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb4")
            cursor.execute(f"CREATE USER IF NOT EXISTS {account} IDENTIFIED BY '{password}'")
            cursor.execute(f"GRANT {_GRANTS} ON `{pattern}`.* TO {account}")
    except pymysql.MySQLError as exc:
        raise StackError(f"cannot create database {name!r}: {exc}") from exc
