"""Connections killed on the server between two queries, whoever sends them: we, or an ORM."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pymysql

from rmq_txn.database.connection import WatchedConnection
from rmq_txn.database.pool import parse_url
from tests.kit.rows import rows
from tests.kit.wait import until


@contextmanager
def killed_before(url: str, at: int) -> Iterator[None]:
    """Kill the connection of this thread's transaction before its query number `at`."""
    thread, seen, query = threading.get_ident(), 0, WatchedConnection.query

    def hooked(connection: WatchedConnection, sql: Any, unbuffered: bool = False) -> int:
        nonlocal seen
        if threading.get_ident() == thread:
            seen += 1
            if seen == at:
                kill(url, connection.thread_id())
        return query(connection, sql, unbuffered)

    with mock.patch.object(WatchedConnection, "query", hooked):
        yield
    assert seen >= at


def kill(url: str, connection_id: int) -> None:
    """End a connection, and wait until the server has rolled its transaction back."""
    with pymysql.connect(**parse_url(url)) as beside, beside.cursor() as cursor:
        cursor.execute(f"KILL CONNECTION {connection_id}")
    listed = "SELECT 1 FROM information_schema.processlist WHERE id = %s"
    until(lambda: not rows(url, listed, (connection_id,)), "the connection is gone")
