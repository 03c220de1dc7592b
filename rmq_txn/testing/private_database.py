"""A database server for one run of tests: of this machine's software, with data that nobody keeps."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from rmq_txn.database import Database
from rmq_txn.errors import DatabaseUnavailableError, LifecycleError
from rmq_txn.quantities import positive_number
from rmq_txn.testing.engine import HOST, free_ports
from rmq_txn.testing.server_software import (
    SMALL_SERVER,
    DatabaseSoftware,
    ServerError,
    installed,
    own_temporary_folder,
)

_PORT_ATTEMPTS: Final = 5
_POLL_SECONDS: Final = 0.05
_END_SECONDS: Final = 20.0
_LOG_LINES: Final = 40
_USER: Final = "rmq_txn_tests"
# Its standard input ends when the tests end, however they do. Then the server is killed and its data removed.
_GUARD: Final = """
import shutil, subprocess, sys, threading
folder, *command = sys.argv[1:]
server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
ended = threading.Event()
def end():
    sys.stdin.buffer.read()
    ended.set()
    server.kill()
threading.Thread(target=end, daemon=True).start()
code = server.wait()
if ended.is_set():
    shutil.rmtree(folder, ignore_errors=True)
sys.exit(code)
"""
_FAST: Final = (  # a crash of this machine may cost the data
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=0",
    "--innodb-log-file-size=16M",
)


class PrivateDatabase:
    """
    MariaDB, else MySQL, of this machine on a free port of 127.0.0.1, with a data folder of its own.

    As a context manager it starts it, and ends it with its data. It ends with the process that started it,
    also if that is killed.

        with PrivateDatabase() as server:
            database = Database.mysql(server.url)

    Thread-safety: start() and stop() from one thread.

    Not promised: data that survive anything; it writes as fast as it can, and syncs nothing.

    Args:
        ready_timeout_seconds: how long the start may take, once the data folder is made.
    """

    def __init__(self, *, ready_timeout_seconds: float = 60.0) -> None:
        self._ready_seconds = positive_number("ready_timeout_seconds", ready_timeout_seconds)
        self._folder: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """Return the URL of an empty database, for `Database.mysql`; its account may make others."""
        if self._guard is None:
            raise LifecycleError("this PrivateDatabase does not run, start it or use it in a with block")
        return self._url

    def start(self) -> PrivateDatabase:
        """
        Make the data folder and start the server; return when it serves.

        Raises:
            ServerError: no server is installed, or it did not start; the text ends with its log.
        """
        if self._guard is not None:
            raise LifecycleError("this PrivateDatabase is started already, stop it or make another one")
        software = installed()
        self._folder = Path(tempfile.mkdtemp(prefix="rmq_txn-tests-"))
        try:
            data = self._folder / software.data_folder
            software.make_system_tables(data)
            for attempts_left in reversed(range(_PORT_ATTEMPTS)):
                try:
                    self._launch(software, data)
                    break
                except ServerError:
                    if not attempts_left or self._guard is not None:
                        raise  # it runs, and does not serve
        except BaseException:
            self.stop()
            raise
        return self

    def _launch(self, software: DatabaseSoftware, data: Path) -> None:
        (port,) = free_ports(1)
        folder, password = data.parent, secrets.token_hex(16)
        accounts = folder / "accounts.sql"
        accounts.touch(0o600)
        # Run by the server before it listens; each statement is one line.
        accounts.write_text(
            f"CREATE DATABASE IF NOT EXISTS {_USER} CHARACTER SET utf8mb4;\n"
            f"CREATE USER IF NOT EXISTS '{_USER}'@'{HOST}' IDENTIFIED BY '{password}';\n"
            f"ALTER USER '{_USER}'@'{HOST}' IDENTIFIED BY '{password}';\n"
            f"GRANT ALL ON *.* TO '{_USER}'@'{HOST}';\n"
            f"ALTER USER 'root'@'localhost' IDENTIFIED BY '{password}';\n"
        )
        command = [
            *software.command,
            f"--datadir={data}",
            own_temporary_folder(data),
            f"--init-file={accounts}",
            f"--port={port}",
            f"--bind-address={HOST}",
            # Relative to the data folder: a long folder would exceed the 107 bytes of an address.
            "--socket=server.sock",
            f"--pid-file={data / 'server.pid'}",
            *SMALL_SERVER,
            *_FAST,
        ]
        with (folder / "server.log").open("wb") as log:
            self._guard = subprocess.Popen(  # noqa: S603 - programs of this machine, no shell
                [sys.executable, "-I", "-S", "-c", _GUARD, str(folder), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests, which then end it
            )
        self._url = f"mysql://{_USER}:{password}@{HOST}:{port}/{_USER}"
        self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + self._ready_seconds
        while True:
            problem = self._problem()
            if not problem:
                return
            guard = self._guard
            if guard is not None and guard.poll() is not None:
                self._end_guard()
                raise ServerError(f"the database server ended before it served\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the database server does not serve after {self._ready_seconds:g} s: {problem}\n"
                    f"{self._log_tail()}"
                )
            time.sleep(_POLL_SECONDS)

    def _problem(self) -> str:
        database = Database.mysql(self._url, pool_size=1)
        try:
            with database.transaction(read_only=True) as txn:
                txn.execute("SELECT 1")
        except DatabaseUnavailableError as error:
            return str(error)
        finally:
            database.close()
        return ""

    def _log_tail(self) -> str:
        log = self._folder / "server.log" if self._folder else None
        if log is None or not log.exists():
            return ""
        return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])

    def stop(self) -> None:
        """End the server and remove its data; nothing when it is not started."""
        self._end_guard()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _end_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is None:
            return
        if guard.stdin is not None:
            guard.stdin.close()
        try:
            guard.wait(_END_SECONDS)
        finally:
            guard.kill()

    def __enter__(self) -> PrivateDatabase:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
