"""What people did by hand: who, when, to what, and why. Written in the transaction that does it."""

from __future__ import annotations

import enum
import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Protocol

from rmq_txn.database import Database
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.identity import new_txn_id
from rmq_txn.logs import one_line

_MAX_WHO_BYTES = 255
_MAX_NOTE_BYTES = 2000


class Action(enum.Enum):
    """What was done; the values are stored."""

    DROPPED = "dropped"
    """A parked message: it will never be handled."""
    REPLAYED = "replayed"
    """A parked message: its handler has handled it."""
    RESOLVED = "resolved"
    """A transaction: a person said what became of it."""
    RECOVERED = "recovered"
    """A message that a broker had dropped: it was published again."""


@dataclass(frozen=True, slots=True)
class Entry:
    """
    One thing that a person did.

    Attributes:
        action: one of `Action`, or what a newer package wrote.
        subject: a transaction id, the `ID.position` of one of its messages, or a dedup key.
        group: the consumer group of a parked message, else empty.
    """

    at: datetime
    action: str
    subject: str
    group: str
    by: str
    note: str

    def __str__(self) -> str:
        whose = f" of group {self.group}" if self.group else ""
        why = f": {self.note}" if self.note else ""
        return f"{self.at:%Y-%m-%dT%H:%M:%SZ} {self.action} by {self.by}{whose}, {self.subject}{why}"


class _Executes(Protocol):
    def execute(self, sql: str, args: Any = None, /) -> int: ...


def operator() -> str:
    """Return who runs this process, as far as the machine knows: `user@host`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no name; OSError since Python 3.13
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def write(
    transaction: _Executes, action: Action, subject: str, *, by: str, note: str = "", group: str = ""
) -> None:
    """
    Add one entry to a transaction that the caller commits.

    Args:
        transaction: a `Transaction` or a `Session`.
        subject: at most 255 bytes.
        by: cut to 255 bytes.
        note: cut to 2000 bytes.
    """
    transaction.execute(
        STATEMENTS["insert_audit_row"],
        (
            new_txn_id(),
            action.value,
            subject.encode(),
            group,
            _cut(by, _MAX_WHO_BYTES),
            _cut(note, _MAX_NOTE_BYTES),
        ),
    )


def of_transaction(database: Database, txn_id: str) -> tuple[Entry, ...]:
    """
    Return what was done to a transaction and to its messages in this database, oldest first.

    Raises:
        DatabaseUnavailableError: it can't be asked.
    """
    # "." and "/" come after the id in keys of ours; "0" is the next character.
    return tuple(_read(database, STATEMENTS["look_up_audit_rows"], (txn_id, f"{txn_id}0")))


def newest(database: Database, limit: int) -> tuple[Entry, ...]:
    """Return the newest entries, newest first. Errors as `of_transaction`."""
    return tuple(_read(database, STATEMENTS["list_audit_rows"], (limit,)))


def _read(database: Database, statement: str, args: tuple[object, ...]) -> Iterator[Entry]:
    with closing(database.sideline("audit")) as sideline, sideline.session() as session:
        session.execute(statement, args)
        for at, *texts in session.cursor.fetchall():
            yield Entry(
                datetime.fromtimestamp(float(at), timezone.utc),
                *(text.decode("utf-8", "replace") for text in texts),
            )


def _cut(text: str, limit_bytes: int) -> bytes:
    return one_line(text).encode("utf-8", "replace")[:limit_bytes]
