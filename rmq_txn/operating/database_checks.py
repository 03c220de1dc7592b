"""Checks of a database: tables, privileges, settings, engines, clock. They read, and change nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import pymysql

from rmq_txn import schema
from rmq_txn.database import Database
from rmq_txn.database.pool import error_code
from rmq_txn.database.session import Session
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.errors import DatabaseUnavailableError, SchemaError
from rmq_txn.operating.finding import Finding, failed, ok, skipped, warning

SKEW_SECONDS = 2.0
"""A clock of whole seconds, read over a network, is not compared more finely."""
_LARGEST_SKEW_SECONDS = 60.0
"""From here on nothing is pruned or parked for its age: see `rmq_txn.clock`."""
_DENIED = frozenset({1142, 1143, 1044, 1227})
_ON = frozenset({"ON", "1"})
# Some exist under one brand only.
_SETTINGS = (
    "version",
    "binlog_format",
    "innodb_flush_log_at_trx_commit",
    "log_bin",
    "max_allowed_packet",
    "max_connections",
    "read_only",
    "super_read_only",
    "sync_binlog",
    "transaction_isolation",
    "tx_isolation",
)
# What the account of a service does; each touches no row, and needs the privilege all the same.
_DOES = (
    STATEMENTS["try_select"],
    STATEMENTS["try_update"],
    STATEMENTS["try_delete"],
    STATEMENTS["try_insert_log"],
    STATEMENTS["try_insert_outbox"],
    STATEMENTS["try_insert_producers"],
    STATEMENTS["try_insert_inbox"],
    STATEMENTS["try_insert_parked"],
    STATEMENTS["try_insert_audit"],
)


def of_database(
    database: Database, *, connections: int | None = None, now: Callable[[], float] = time.time
) -> Iterator[Finding]:
    """
    Look at a database; one that is away is a finding, and ends the look.

    Args:
        connections: that all processes of the service may hold together; None: not compared.
        now: the clock of this machine.
    """
    try:
        with database.check_session("doctor") as session:
            settings = _settings(session)
            yield ok("database", f"answers, {settings.get('version', 'of an unknown version')}")
            judged = list(of_settings(settings, connections))
            yield from judged
            yield from _engines(session)
            yield from _clock(session, now)
        yield from _tables(database, writable="writes" not in {finding.check for finding in judged})
    except DatabaseUnavailableError as error:
        yield failed("database", str(error), "start it, or mend the URL or the network")


def _tables(database: Database, *, writable: bool) -> Iterator[Finding]:
    try:
        identity = schema.check(database)
    except SchemaError as error:
        yield failed("tables", str(error), "rmq-txn schema apply")
        return
    except pymysql.MySQLError as error:
        yield failed("tables", f"they can't be read: {error.args[-1]}", "grant what docs/operating.md lists")
        return
    missing = schema.missing(database)
    if missing:
        yield failed(
            "tables",
            f"they lack {', '.join(missing)}",
            "compare with `rmq-txn schema print`, add what is missing",
        )
        return
    yield ok("tables", f"version {identity.version}, database id {identity.database_id}")
    if writable:
        yield _privileges(database)
    else:
        yield skipped("privileges", "a server that is read-only refuses before it looks at them")


def _privileges(database: Database) -> Finding:
    denied = []
    with database.check_session("doctor") as session:
        for statement in _DOES:
            try:
                session.execute(statement)
            except pymysql.MySQLError as error:
                if error_code(error) not in _DENIED:
                    raise
                denied.append(str(error.args[-1]))
    if denied:
        return failed("privileges", "; ".join(denied), "grant what docs/operating.md lists, and reconnect")
    return ok("privileges", "the account may do on our tables what a service does")


def _settings(session: Session) -> dict[str, str]:
    session.execute(STATEMENTS["read_server_settings"], (_SETTINGS,))
    return {_text(name): _text(value) for name, value in session.cursor.fetchall()}


def of_settings(settings: Mapping[str, str], connections: int | None = None) -> Iterator[Finding]:
    """Judge the global variables of a server, as SHOW VARIABLES tells them."""
    on = {name for name, value in settings.items() if value.upper() in _ON}
    if on & {"read_only", "super_read_only"}:
        yield failed(
            "writes",
            "the server is read-only: a replica, or a primary that was demoted",
            "lead the URL to the primary",
        )
    isolation = settings.get("transaction_isolation") or settings.get("tx_isolation", "")
    logs_statements = "log_bin" in on and settings.get("binlog_format", "").upper() == "STATEMENT"
    if isolation in ("READ-COMMITTED", "READ-UNCOMMITTED") and logs_statements:
        yield failed(
            "isolation",
            f"{isolation} with binlog_format=STATEMENT: the server refuses our writes (error 1665)",
            "binlog_format=ROW",
        )
    elif isolation == "READ-UNCOMMITTED":
        yield warning(
            "isolation",
            "READ-UNCOMMITTED: your own reads may see what is rolled back later",
            "READ-COMMITTED or REPEATABLE-READ; ours lock where it matters, and do not mind",
        )
    elif isolation:
        yield ok("isolation", isolation)
    packet = int(settings.get("max_allowed_packet", schema.PACKET_BYTES))
    if packet < schema.PACKET_BYTES:
        yield warning(
            "packet",
            f"max_allowed_packet is {packet} bytes: a message with a body of more than about half of it is "
            "refused by the database, which RocketMQ would take",
            "max_allowed_packet=16M",
        )
    flush, sync = settings.get("innodb_flush_log_at_trx_commit", "1"), settings.get("sync_binlog", "1")
    if flush != "1":
        yield warning(
            "durability",
            f"innodb_flush_log_at_trx_commit is {flush}: a machine that loses its power loses transactions "
            "whose messages were delivered",
            "1, if the effects of a lost second can't be booked by hand",
        )
    if "log_bin" in on and sync != "1":
        yield warning(
            "replication",
            f"sync_binlog is {sync}: a replica that takes over may lack transactions whose messages were "
            "delivered",
            "sync_binlog=1, and a replica that confirms (semi-synchronous, group replication, Galera)",
        )
    most = int(settings.get("max_connections", 0))
    if connections is not None and most and connections > most:
        yield failed(
            "connections",
            f"{connections} are wanted by the processes of this service, max_connections is {most}",
            "a smaller pool_size, fewer processes, or a larger max_connections",
        )


def _engines(session: Session) -> Iterator[Finding]:
    session.execute(STATEMENTS["list_tables_without_transactions"])
    if names := [f"{_text(name)} ({_text(engine)})" for name, engine in session.cursor.fetchall()]:
        yield warning(
            "engines",
            f"what is written to {', '.join(names)} stays when the transaction is rolled back",
            "ALTER TABLE ... ENGINE = InnoDB, if handlers or transactions write there",
        )
    else:
        yield ok("engines", "every table of this database knows transactions")


def _clock(session: Session, now: Callable[[], float]) -> Iterator[Finding]:
    before = now()
    session.execute(STATEMENTS["read_clock"])
    ((seconds,),) = session.cursor.fetchall()
    yield of_clock("the database", float(seconds) - before)


def of_clock(whose: str, ahead_seconds: float) -> Finding:
    """Judge how far a clock is ahead of this machine's; behind is negative."""
    check = f"clock of {whose}"
    where = "ahead of" if ahead_seconds > 0 else "behind"
    text = f"{abs(ahead_seconds):.1f} s {where} this machine's"
    if abs(ahead_seconds) <= SKEW_SECONDS:
        return ok(check, f"within {SKEW_SECONDS:g} s of this machine's")
    if abs(ahead_seconds) <= _LARGEST_SKEW_SECONDS:
        return warning(check, text, "let one time service set both")
    return failed(
        check,
        f"{text}: messages look too old or from the future, rows are not pruned",
        "let one time service set both",
    )


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
