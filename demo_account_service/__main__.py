"""`python -m demo_account_service`: one process of the account service, until SIGTERM or SIGINT."""

from __future__ import annotations

import logging
import os
import signal
import sys
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn

from demo_account_service.app import create_app
from demo_account_service.console import create_router
from demo_account_service.faults import FOLDER, Faults
from demo_account_service.neighbour import Neighbour
from demo_account_service.observer import ObservedProducer, ObservedTransport
from demo_account_service.settings import Settings, seed_accounts
from demo_account_service.transfers import TOPIC, Transfers
from demo_chassis import logs
from demo_chassis.events import Events
from demo_chassis.limits import server_settings

# `schema` is not part of the public interface of rmq_txn: services migrate with their own tool, or
# with `rmq-txn schema apply`. A demo makes its tables at start, so that there is no step to forget.
from rmq_txn import Database, RocketMQ, schema
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

# After SIGTERM running requests get this long, then transactions, the outbox and the client of the
# producer get this long each; together less than the 10 s that container platforms wait before SIGKILL.
_REQUESTS_SECONDS = 3
_PRODUCER_SECONDS = 1.5
# /health answers beside the request threads.
_HEALTH_CONNECTIONS = 1


def main() -> int:
    """Run the service and return the exit code."""
    # uvicorn raises a signal again after its shutdown; then, and before it runs, that means: end well.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    try:
        return _serve()
    except RmqTxnError as error:
        sys.stderr.write(f"demo_account_service: {error}\n")
        return _exit_code(error)


def _serve() -> int:
    settings = Settings.from_environment(os.environ)
    seeds = seed_accounts(os.environ)
    logs.configure(settings.log_format)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # what it asks for the page has a line already
    folder = os.environ.get(FOLDER, "")
    events = Events("account", Path(folder) / "account-events.jsonl" if folder else None)
    faults = Faults.from_environment(os.environ, events)
    database = Database.mysql(settings.database_url, pool_size=settings.threads + _HEALTH_CONNECTIONS)
    producer = ObservedProducer(
        events=events,
        group="account-service",
        broker=ObservedTransport(RocketMQ(settings.name_server), events, faults),
        database=database,
        topics=[TOPIC],
        close_timeout_seconds=_PRODUCER_SECONDS,
    )
    try:
        schema.apply(database)
        _make_tables(database)
        transfers = Transfers(producer, database)
        if seeds:
            transfers.open_accounts(seeds)
        neighbour = Neighbour(settings.points_url) if settings.points_url else None
        page = create_router(
            events,
            faults,
            transfers,
            neighbour,
            opened=sum(seeds.values()) if seeds else None,
            is_stopping=lambda: server.should_exit,
        )
        app = create_app(producer, transfers, settings, page=page, neighbour=neighbour)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                lifespan="on",
                timeout_graceful_shutdown=_REQUESTS_SECONDS,
                **server_settings(settings.receive_seconds),
            )
        )
        exit_code = _run(server)
        error: RmqTxnError | None = getattr(app.state, "start_error", None)
        if error is not None:
            raise error
        return exit_code
    finally:
        producer.close()  # nothing to do unless a signal came while it was starting
        database.close()


def _run(server: uvicorn.Server) -> int:
    try:
        server.run()
    except SystemExit as end:
        # Of `_exit`, or of uvicorn when it can't start, with a code that differs by version.
        return EXIT_OK if end.code == EXIT_OK else EXIT_FAILED
    return EXIT_OK if server.started else EXIT_FAILED


def _make_tables(database: Database) -> None:
    script = resources.files("demo_account_service").joinpath("schema.sql").read_text(encoding="utf-8")
    schema.run_script(database, script)


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


if __name__ == "__main__":
    end(main())
