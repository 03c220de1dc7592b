"""Hooks between the statements of our sessions, put in from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pymysql

from rmq_txn.database import database
from rmq_txn.database.session import Session
from tests.kit import wait

COMMIT = "COMMIT"
BEGIN = "BEGIN"


class HookedSession(Session):
    """
    Tells a hook of each statement: once before it is sent, once after its answer.

    Of statements that are sent together: before all of them, and after all of their answers.
    """

    before: Callable[[Session, str], None] = staticmethod(lambda _session, _sql: None)
    after: Callable[[Session, str], None] = staticmethod(lambda _session, _sql: None)

    def _begin(self, ours: str | None = None) -> Any:
        if ours is not None:
            self.before(self, ours)
        answer = super()._begin(ours)
        self.after(self, BEGIN)
        if ours is not None and isinstance(answer, int):
            self.after(self, ours)
        return answer

    def execute(self, sql: str, args: Any = None) -> int:
        """See Session."""
        self.before(self, sql)
        result = super().execute(sql, args)
        self.after(self, sql)
        return result

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """See Session."""
        self.before(self, sql)
        result = super().executemany(sql, rows)
        self.after(self, sql)
        return result

    def _query_each(self, statements: Sequence[str]) -> list[Any]:
        for sql in statements:
            self.before(self, sql)
        answers = super()._query_each(statements)
        for sql, answer in zip(statements, answers, strict=False):  # some are not sent, or never answered
            if isinstance(answer, int):
                self.after(self, sql)
        return answers

    def _send_commit(self) -> None:
        self.before(self, COMMIT)
        super()._send_commit()
        self.after(self, COMMIT)


@contextmanager
def hooked(
    before: Callable[[Session, str], None] | None = None, after: Callable[[Session, str], None] | None = None
) -> Iterator[None]:
    """Install the hooks for every guarded session that is opened inside the block."""

    class Hooked(HookedSession):
        pass

    if before is not None:
        Hooked.before = staticmethod(before)
    if after is not None:
        Hooked.after = staticmethod(after)

    def make(pool: Any, txn_id: str, *, guarded: bool, ours_first: bool = False) -> Session:
        return (Hooked if guarded else Session)(pool, txn_id, guarded=guarded, ours_first=ours_first)

    with mock.patch.object(database, "Session", make):
        yield


class Killer:
    """Kills a session's connection on the server, right before its statement number `at`."""

    def __init__(self, parameters: dict[str, Any], at: int) -> None:
        self._parameters = parameters
        self._at = at
        self.statements: list[str] = []

    def __call__(self, session: Session, sql: str) -> None:
        """Count one statement; see `hooked(before=...)`."""
        self.statements.append(sql)
        if len(self.statements) == self._at + 1:
            with pymysql.connect(**self._parameters) as connection, connection.cursor() as cursor:
                cursor.execute("KILL CONNECTION %s", (session.connection_id,))
                wait.until(
                    lambda: (
                        not cursor.execute(
                            "SELECT 1 FROM information_schema.processlist WHERE id = %s",
                            (session.connection_id,),
                        )
                    ),
                    "the killed connection is gone",
                )
