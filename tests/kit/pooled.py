"""The one connection of a pool of one: which it is, whether it is in step, a signal between its answers."""

from __future__ import annotations

import pymysql.connections
import pytest

from rmq_txn import Database


class SoftTimeLimit(Exception):
    """What a signal handler raises, wherever the program happens to be."""


def connection_of(database: Database) -> int:
    """Return the server's id of the one pooled connection."""
    with database.transaction(read_only=True) as txn:
        return int(txn.connection.thread_id())


def assert_in_step(database: Database) -> None:
    """Fail unless each statement of the next transactions gets its own answer."""
    for number in (7, 8):
        with database.transaction() as txn:
            txn.execute("SELECT %s", (number,))
            assert txn.fetchone() == (number,)


def interrupt(monkeypatch: pytest.MonkeyPatch, *, after: int = 0) -> None:
    """Raise `SoftTimeLimit` before the next answer is read, or after so many more of them were; once."""
    read, left = pymysql.connections.Connection._read_query_result, [after]

    def interrupted(self: pymysql.connections.Connection, unbuffered: bool = False) -> object:
        if left[0] == 0:
            monkeypatch.setattr(pymysql.connections.Connection, "_read_query_result", read)
            raise SoftTimeLimit
        left[0] -= 1
        return read(self, unbuffered)

    monkeypatch.setattr(pymysql.connections.Connection, "_read_query_result", interrupted)
