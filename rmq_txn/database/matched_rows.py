"""
A cursor that counts the rows that an UPDATE matched, as ORMs need it.

The server counts those that it changed, unless a connection asks for the other count (FOUND_ROWS) for all
its life; ours serve code that was promised the changed ones as well. Its answer tells both, as text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pymysql.cursors

if TYPE_CHECKING:
    from rmq_txn.database.connection import WatchedConnection

_UPDATE = re.compile(r"(?:\s|/\*.*?\*/|--\s[^\n]*\n|#[^\n]*\n)*(?:UPDATE|WITH)\b", re.IGNORECASE | re.DOTALL)
_NUMBERS_OF_AN_UPDATE = 3  # matched, changed, warnings: in this order in all languages of a server


class MatchedRowsCursor(pymysql.cursors.Cursor):
    """
    A buffered PyMySQL cursor; `rowcount` of an UPDATE is the rows matched, changed or not.

    An ORM that finds 0 takes the row for missing: Django inserts it then, SQLAlchemy raises StaleDataError.
    Not counted so: rows that an INSERT ... ON DUPLICATE KEY UPDATE found as they should be.
    """

    if TYPE_CHECKING:  # of PyMySQL, not in its stubs
        connection: WatchedConnection
        _result: Any

    def _query(self, q: str | bytes) -> int:
        super()._query(q)  # type: ignore[misc]
        text = q if isinstance(q, str) else bytes(q[:1000]).decode("utf-8", "replace")
        if self._result.message and _UPDATE.match(text):
            numbers = re.findall(rb"\d+", self.connection.text_of(self._result.message))
            if len(numbers) == _NUMBERS_OF_AN_UPDATE:
                self.rowcount = int(numbers[0])
        return self.rowcount
