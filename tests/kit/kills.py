"""Connections killed on the server between two queries, whoever sends them: we, or an ORM."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pymysql

from rmq_txn.database.connection import WatchedConnection
from rmq_txn.database.pool import parse_url
from tests.kit.rows import rows
from tests.kit.wait import until


@contextmanager
def before_each(hook: Callable[[WatchedConnection, str], object]) -> Iterator[None]:
    """
    Call `hook` before each query of this thread's transactions, COMMIT among them.

    Of those that are sent in one write: for each of them, before all.
    """
    thread, query, commit = threading.get_ident(), WatchedConnection.query, WatchedConnection.commit
    query_each = WatchedConnection.query_each

    def hooked_query(connection: WatchedConnection, sql: Any, unbuffered: bool = False) -> int:
        if threading.get_ident() == thread:
            hook(connection, str(sql))
        return query(connection, sql, unbuffered)

    def hooked_query_each(connection: WatchedConnection, statements: Sequence[str]) -> Any:
        if threading.get_ident() == thread:
            for sql in statements:
                hook(connection, sql)
        return query_each(connection, statements)

    def hooked_commit(connection: WatchedConnection) -> None:
        if threading.get_ident() == thread:
            hook(connection, "COMMIT")
        commit(connection)

    with (
        mock.patch.object(WatchedConnection, "query", hooked_query),
        mock.patch.object(WatchedConnection, "query_each", hooked_query_each),
        mock.patch.object(WatchedConnection, "commit", hooked_commit),
    ):
        yield


@contextmanager
def killed_before(url: str, at: int) -> Iterator[None]:
    """Kill the connection of this thread's transaction before its query number `at`."""
    seen = 0

    def kill_it(connection: WatchedConnection, _sql: str) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            kill(url, connection.thread_id())

    with before_each(kill_it):
        yield
    assert seen >= at


def kill(url: str, connection_id: int) -> None:
    """End a connection, and wait until the server has rolled its transaction back."""
    with pymysql.connect(**parse_url(url)) as beside, beside.cursor() as cursor:
        cursor.execute(f"KILL CONNECTION {connection_id}")
    listed = "SELECT 1 FROM information_schema.processlist WHERE id = %s"
    until(lambda: not rows(url, listed, (connection_id,)), "the connection is gone")
