"""Questions to a database past the SDK, so that hooks on its sessions don't see them."""

from __future__ import annotations

from typing import Any

import pymysql

from rmq_txn.database.pool import parse_url


def rows(url: str, sql: str, args: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the rows of one SELECT, on a connection of its own."""
    with pymysql.connect(**parse_url(url)) as connection, connection.cursor() as cursor:
        cursor.execute(sql, args)
        return list(cursor.fetchall())
