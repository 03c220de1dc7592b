"""Whose clock counts: the database's, since it stamps the inbox rows that are pruned by age."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timezone

from rmq_txn.database import Database
from rmq_txn.sql import STATEMENTS

_READ_EACH_SECONDS = 600.0


class DatabaseClock:
    """
    The database's clock, read every ten minutes and carried on by the monotonic one. Thread-safe.

    So the wall clock of this machine decides nothing, whoever sets it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._read_at = 0.0
        self._told = 0.0

    def now(self) -> float:
        """
        Return Unix seconds by the database's clock.

        Raises:
            DatabaseUnavailableError: it was not read for a while, and can't be.
        """
        with self._lock:
            if not self._told or time.monotonic() - self._read_at > _READ_EACH_SECONDS:
                session = self._database.begin_check("clock")
                try:
                    session.execute(STATEMENTS["read_clock"])
                    ((told,),) = session.cursor.fetchall()
                finally:
                    session.rollback()
                self._told, self._read_at = float(told), time.monotonic()
            return self._told + time.monotonic() - self._read_at


def shown(seconds: float) -> str:
    """Return Unix seconds as people read them, UTC; what no calendar has as a number."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} s after 1970"
