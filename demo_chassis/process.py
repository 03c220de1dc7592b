"""One process of a service, until SIGTERM or SIGINT: signals, its tables, the server, the exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from importlib import resources
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

from demo_chassis.limits import server_settings
from demo_chassis.settings import ServiceSettings

# `schema` is not part of the public interface of rmq_txn: services migrate with their own tool, or
# with `rmq-txn schema apply`. A demo makes its tables at start, so that there is no step to forget.
from rmq_txn import Database, schema
from rmq_txn.errors import (
    BrokerUnavailableError,
    DatabaseUnavailableError,
    NativeLibraryError,
    RmqTxnError,
    SettingsError,
)

EXIT_OK = 0
EXIT_FAILED = 1  # the log says why; a port that is taken, for one
EXIT_SETTINGS = 2  # an environment variable is missing or wrong
EXIT_NOT_USABLE = 3  # the native RocketMQ library is missing: rmq-txn native install
EXIT_UNAVAILABLE = 4  # broker or database can't be reached: the same command may work later


class Process:
    """
    A process of one service.

    Args:
        package: the package of the service; it holds `schema.sql`.
        requests_seconds: how long running requests get after SIGTERM.
    """

    def __init__(self, package: str, *, requests_seconds: int) -> None:
        self._package = package
        self._requests_seconds = requests_seconds
        self._server: uvicorn.Server | None = None

    def run(self, serve: Callable[[Process], int]) -> int:
        """Return the exit code of `serve`, which may raise RmqTxnError: that is said in a sentence."""
        # uvicorn raises a signal again after its shutdown; then, and before it runs, that means: end well.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _exit)
        try:
            return serve(self)
        except RmqTxnError as error:
            sys.stderr.write(f"{self._package}: {error}\n")
            return _exit_code(error)

    def make_tables(self, database: Database) -> None:
        """Make the tables of rmq_txn and of the service that are missing."""
        schema.apply(database)
        script = resources.files(self._package).joinpath("schema.sql").read_text(encoding="utf-8")
        schema.run_script(database, script)

    def is_stopping(self) -> bool:
        """Whether this process is about to end: streams end then."""
        return self._server is not None and self._server.should_exit

    def serve(self, app: FastAPI, settings: ServiceSettings) -> int:
        """
        Serve until a signal comes; return the exit code.

        Raises:
            RmqTxnError: the application could not start.
        """
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                lifespan="on",
                timeout_graceful_shutdown=self._requests_seconds,
                **server_settings(settings.receive_seconds),
            )
        )
        exit_code = _run(self._server)
        error: RmqTxnError | None = getattr(app.state, "start_error", None)
        if error is not None:
            raise error
        return exit_code


def _run(server: uvicorn.Server) -> int:
    try:
        server.run()
    except SystemExit as end:
        # Of `_exit`, or of uvicorn when it can't start, with a code that differs by version.
        return EXIT_OK if end.code == EXIT_OK else EXIT_FAILED
    return EXIT_OK if server.started else EXIT_FAILED


def _exit(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(EXIT_OK)


def _exit_code(error: RmqTxnError) -> int:
    if isinstance(error, SettingsError):
        return EXIT_SETTINGS
    if isinstance(error, NativeLibraryError):
        return EXIT_NOT_USABLE
    if isinstance(error, (BrokerUnavailableError, DatabaseUnavailableError)):
        return EXIT_UNAVAILABLE
    return EXIT_FAILED


def end(exit_code: int) -> NoReturn:
    """
    End now: all that must end well has ended.

    Python would wait for every thread, also for one that waits for a broker that does not answer.
    """
    logging.shutdown()
    sys.stderr.flush()
    os._exit(exit_code)
