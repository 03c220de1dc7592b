"""
Cleaning up: rows of the log and of the inbox that nobody can ask for any more are deleted.

A broker keeps a message for 72 hours and redelivers it for 5 more, so neither a check-back nor a
delivery comes later; what is older than the retention is answered without the row anyway. A producer
prunes the log of its database, a consumer the inbox of its group. One process does it at a time, in
small batches by key, and rests for four fifths of the time (docs/decisions/0052).
"""

from __future__ import annotations

import hashlib
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from rmq_txn.clock import SKEW_LIMIT_SECONDS
from rmq_txn.database import Database
from rmq_txn.database.sideline import Sideline
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.errors import RmqTxnError
from rmq_txn.identity import least_txn_id
from rmq_txn.logs import get_logger

log = get_logger("pruning")

BATCH_ROWS = 500
_ROUND_SECONDS = 60.0
_REST = 4.0
"""Times as long as the work took: for most of the time others have the database to themselves."""
_MARGIN_SECONDS = 3600.0
"""More than the retention: what is judged by it now must not miss its row a moment later."""


class Pruned:
    """
    One of our tables, as the pruning sees it. For one thread.

    Args:
        retention_seconds: for how long its rows are needed.
    """

    table: str

    def __init__(self, retention_seconds: float) -> None:
        self.retention_seconds = retention_seconds

    @abstractmethod
    def lock(self, database_id: str) -> str:
        """Name the lock of those who prune the same rows, at most 64 characters."""

    @abstractmethod
    def old(self, sideline: Sideline, after: bytes, before: float) -> list[bytes]:
        """
        Return keys of the next rows from before that time that nobody needs, at most `BATCH_ROWS`.

        Args:
            after: the last key that was found, empty at first: what stays is not walked over again.
        """

    @abstractmethod
    def delete(self, sideline: Sideline, keys: Sequence[bytes], before: float) -> int:
        """Delete the rows of these keys, if they are from before that time; return how many."""

    @abstractmethod
    def count(self, sideline: Sideline, before: float) -> int:
        """Count what `old` would find, all of it."""

    @abstractmethod
    def count_since(self, sideline: Sideline, since: float) -> int:
        """Count the rows that came since then."""


class PrunedLog(Pruned):
    """The log of a database, of all its producer groups: a row does not say whose it is."""

    table = "rmq_txn_log"

    def __str__(self) -> str:
        return self.table

    def lock(self, database_id: str) -> str:
        """See `Pruned.lock`."""
        return f"rmq_txn_log:{database_id}"

    def old(self, sideline: Sideline, after: bytes, before: float) -> list[bytes]:
        """See `Pruned.old`."""
        return _column(sideline, STATEMENTS["read_old_log_rows"], (after, least_txn_id(before), BATCH_ROWS))

    def delete(self, sideline: Sideline, keys: Sequence[bytes], before: float) -> int:  # noqa: ARG002 - in the keys
        """See `Pruned.delete`."""
        with sideline.session() as session:
            return session.execute(STATEMENTS["delete_log_rows"], (keys,))

    def count(self, sideline: Sideline, before: float) -> int:
        """See `Pruned.count`."""
        return _number(sideline, STATEMENTS["count_old_log_rows"], (least_txn_id(before),))

    def count_since(self, sideline: Sideline, since: float) -> int:
        """See `Pruned.count_since`."""
        return _number(sideline, STATEMENTS["count_recent_log_rows"], (least_txn_id(since),))


class PrunedInbox(Pruned):
    """The inbox of one consumer group."""

    table = "rmq_txn_inbox"

    def __init__(self, group: str, retention_seconds: float) -> None:
        super().__init__(retention_seconds)
        self.group = group

    def __str__(self) -> str:
        return f"{self.table} of group {self.group}"

    def lock(self, database_id: str) -> str:
        """See `Pruned.lock`."""
        whose = hashlib.sha256(f"{self.group}@{database_id}".encode()).hexdigest()
        return f"rmq_txn_inbox:{whose[:40]}"

    def old(self, sideline: Sideline, after: bytes, before: float) -> list[bytes]:  # noqa: ARG002 - no order
        """See `Pruned.old`. By age, not by key: those of users begin with anything."""
        return _column(sideline, STATEMENTS["read_old_inbox_rows"], (self.group, before, BATCH_ROWS))

    def delete(self, sideline: Sideline, keys: Sequence[bytes], before: float) -> int:
        """See `Pruned.delete`."""
        with sideline.session() as session:
            return session.execute(STATEMENTS["delete_inbox_rows"], (self.group, keys, before))

    def count(self, sideline: Sideline, before: float) -> int:
        """See `Pruned.count`."""
        return _number(sideline, STATEMENTS["count_old_inbox_rows"], (self.group, before))

    def count_since(self, sideline: Sideline, since: float) -> int:
        """See `Pruned.count_since`."""
        return _number(sideline, STATEMENTS["count_recent_inbox_rows"], (self.group, since))


class ClockError(RmqTxnError):
    """This machine's clock and the database's disagree, so that nobody knows what is old."""


def batches(pruned: Pruned, sideline: Sideline) -> Iterator[int]:
    """
    Delete what is old, one batch a step; yield how many rows went.

    Raises:
        ClockError: nothing was deleted.
        DatabaseUnavailableError: what was deleted before is deleted.
    """
    before = cutoff(pruned, sideline)
    keys = [b""]
    while keys := pruned.old(sideline, keys[-1], before):
        yield pruned.delete(sideline, keys, before)
        if len(keys) < BATCH_ROWS:
            return


def cutoff(pruned: Pruned, sideline: Sideline) -> float:
    """
    Return from before when rows may go, in Unix seconds by the database's clock.

    Raises:
        ClockError: it is not this machine's time: one of both is wrong, and a clock that is days ahead
            makes every row look old.
        DatabaseUnavailableError: it can't be asked.
    """
    database_seconds = float(_number(sideline, STATEMENTS["read_clock"], ()))
    skew = time.time() - database_seconds
    if abs(skew) > SKEW_LIMIT_SECONDS:
        side = "ahead of" if skew > 0 else "behind"
        raise ClockError(
            f"the clock of this machine is {abs(skew):.0f} s {side} that of the database, the limit is "
            f"{SKEW_LIMIT_SECONDS:.0f} s: nothing is pruned, as nobody knows what is old; set one right"
        )
    return database_seconds - pruned.retention_seconds - _MARGIN_SECONDS


@dataclass(frozen=True, slots=True)
class Growth:
    """What one table gets in a day, as of the last hour; `bytes_a_day` by the server's estimate of a row."""

    table: str
    rows_a_day: int
    bytes_a_day: int


def growth(pruned: Sequence[Pruned], sideline: Sideline) -> list[Growth]:
    """Forecast how fast tables grow, each as the sum of its parts; reads the keys of the last hour."""
    since = _number(sideline, STATEMENTS["read_clock"], ()) - 3600
    rows: dict[str, int] = {}
    for part in pruned:
        rows[part.table] = rows.get(part.table, 0) + 24 * part.count_since(sideline, since)
    with sideline.session() as session:
        session.execute(STATEMENTS["read_table_sizes"])
        sizes = {name: size / count if count else 0 for name, count, size in session.cursor.fetchall()}
    return [Growth(table, count, round(count * sizes.get(table, 0))) for table, count in rows.items()]


def inbox_groups(sideline: Sideline) -> list[str]:
    """Return the consumer groups that have rows in the inbox."""
    found: list[bytes] = []
    while True:
        (group,) = _column(sideline, STATEMENTS["list_inbox_groups"], (found[-1] if found else b"",))
        if group is None:
            return [name.decode("utf-8", "replace") for name in found]
        found.append(group)


class Pruning:
    """
    A daemon thread that prunes once a minute. Started and closed once; thread-safe.

    Not the upkeep's: a long pruning must neither look like a process that stands still, nor keep the
    relay waiting.
    """

    def __init__(
        self, database: Database, database_id: str, pruned: Pruned, *, round_seconds: float = _ROUND_SECONDS
    ) -> None:
        self._database = database
        self._database_id = database_id
        self._pruned = pruned
        self._round_seconds = round_seconds
        self._closing = threading.Event()
        self._in_trouble = False
        self._thread = threading.Thread(target=self._run, name=f"{pruned.table} pruning", daemon=True)

    def start(self) -> None:
        """Begin, with a pause: who starts has better things to do."""
        self._thread.start()

    def close(self, timeout_seconds: float) -> None:
        """Stop after the batch that runs now. Idempotent; also before `start`."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._closing.wait(self._round_seconds):
            try:
                self._round()
            except RmqTxnError as error:  # another time
                if not self._in_trouble:
                    log.warning("nothing is pruned", table=self._pruned.table, error=str(error))
                self._in_trouble = True
            except Exception:  # the boundary of the thread: a cause of ours, told each time
                log.exception("pruning failed", table=self._pruned.table)
            else:
                self._in_trouble = False

    def _round(self) -> None:
        # Its connection lives as long as the round: most processes are never elected.
        with closing(self._database.sideline("pruning")) as sideline:
            if not sideline.elect(self._pruned.lock(self._database_id)):
                return
            rows, began = 0, time.monotonic()
            asked = began
            for deleted in batches(self._pruned, sideline):
                rows += deleted
                if self._closing.wait(_REST * (time.monotonic() - asked)):
                    break
                asked = time.monotonic()
        if rows:
            seconds = round(time.monotonic() - began, 3)
            log.info("pruned", table=self._pruned.table, rows=rows, seconds=seconds)


def _column(sideline: Sideline, statement: str, values: Sequence[object]) -> list[bytes]:
    with sideline.session() as session:
        session.execute(statement, values)
        return [value for (value,) in session.cursor.fetchall()]


def _number(sideline: Sideline, statement: str, values: Sequence[object]) -> int:
    with sideline.session() as session:
        session.execute(statement, values)
        ((value,),) = session.cursor.fetchall()
        return int(value)
