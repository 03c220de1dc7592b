"""What only an administrator of the database server may do, for tests of servers that refuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from devstack import LocalStack


def administer(stack: LocalStack, sql: str) -> tuple[tuple[Any, ...], ...]:
    """Run one statement as the administrator of the stack's database server."""
    with closing(stack._database._connect()) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return tuple(cursor.fetchall())


@contextmanager
def read_only(stack: LocalStack) -> Iterator[None]:
    """Let the server refuse writes, as after a failover, for the duration of the block."""
    stack.set_read_only(True)
    try:
        yield
    finally:
        stack.set_read_only(False)
