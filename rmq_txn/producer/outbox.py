"""
The outbox table: a copy of each message, committed with the transaction that publishes it.

Ages are judged by the clock of the database: producers on several machines write and read these rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field

from rmq_txn.database import Database
from rmq_txn.database.session import Session
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.errors import InvalidMessageError
from rmq_txn.identity import PROPERTY_OWNER
from rmq_txn.message import Outbound

ALARM_AFTER_BUDGET_SECONDS = 240.0
"""Two minutes until the relay publishes a row again, one until it is deleted, one for the relay's rounds."""

ALL_ROWS = 1 << 62

_DELETE_BATCH = 500
_VALUES = " VALUES "
_INSERT_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One copy, as it lies in the table."""

    txn_id: str
    position: int
    message_id: str
    failures: int
    topic: str
    key: bytes | None
    tag: bytes | None
    age_seconds: float
    """Since it was written, by the database's clock."""
    properties: bytes
    body: bytes = field(repr=False)
    written_at: int = 0
    """In seconds since 1970, by the database's clock."""

    @property
    def owner(self) -> str | None:
        """Who published it; None if the row is damaged."""
        with suppress(ValueError, AttributeError):
            owner = json.loads(self.properties).get(PROPERTY_OWNER)
            return owner if isinstance(owner, str) else None
        return None

    def outbound(self) -> Outbound:
        """
        Return the message as it was sent.

        Raises:
            ValueError: the row is damaged; InvalidMessageError is one, too.
        """
        properties = json.loads(self.properties)
        if not isinstance(properties, dict):
            raise InvalidMessageError(f"properties are {type(properties).__name__}, not an object")
        key = None if self.key is None else self.key.decode()
        tag = None if self.tag is None else self.tag.decode()
        return Outbound(self.topic, self.body, key, tag, properties)


@dataclass(frozen=True, slots=True)
class Attempt:
    """How publishing one row again went, and when the row may be looked at again."""

    row: OutboxRow
    failed: bool
    retry_seconds: float
    was_there: bool = False
    """The brokers had it already."""


@dataclass(frozen=True, slots=True)
class OutboxCount:
    """How many rows there are, and how old the oldest is; of one topic or of all."""

    rows: int
    oldest_seconds: float
    topic: str = ""
    newest: str = ""
    """The highest transaction id; empty if there is none, or of one topic."""


_encode = json.JSONEncoder().encode


def copies(session: Session, messages: Sequence[Outbound], message_ids: Sequence[str]) -> Iterator[str]:
    """Yield what copies the messages of the session's own transaction: one INSERT for up to a megabyte."""
    insert, _, row = STATEMENTS["insert_outbox_rows"].partition(_VALUES)
    rows: list[str] = []
    size = 0
    for position, (message, message_id) in enumerate(zip(messages, message_ids, strict=True)):
        values = (
            session.txn_id,
            position,
            message_id,
            message.topic,
            # As bytes: they must not depend on the character set of the connection.
            None if message.key is None else message.key.encode(),
            None if message.tag is None else message.tag.encode(),
            _encode(dict(message.properties)).encode(),
            message.body,
        )
        copy = session.cursor.mogrify(row, values)
        if rows and size + len(copy) > _INSERT_BYTES:
            yield insert + _VALUES + ",".join(rows)
            rows, size = [], 0
        rows.append(copy)
        size += len(copy)
    yield insert + _VALUES + ",".join(rows)


def _keys(rows: Sequence[OutboxRow]) -> tuple[list[str], list[tuple[str, int]]]:
    return [row.txn_id for row in rows], [(row.txn_id, row.position) for row in rows]


class Outbox:
    """
    The table as the relay and the command line see it, on one connection of its own. For one thread.

    Every method raises `DatabaseUnavailableError` for whatever goes wrong: it is done again later.
    """

    def __init__(self, database: Database) -> None:
        self._sideline = database.sideline("outbox")

    def elect(self, database_id: str) -> bool:
        """
        Try to become, or stay, the one relay of this database; return whether we are it.

        The server lets go of it when this connection ends, however that happens.
        """
        return self._sideline.elect(f"rmq_txn_outbox:{database_id}")

    def overdue(self, age_seconds: float, limit: int, since: int) -> list[OutboxRow]:
        """Return the oldest rows of at least this age, and not before `since`, that may be published now."""
        with self.session() as session:
            session.execute(STATEMENTS["read_overdue_rows"], (since, age_seconds, limit))
            return [
                OutboxRow(
                    txn_id.decode("ascii", "replace"),
                    position,
                    message_id.decode("ascii", "replace"),
                    failures,
                    topic.decode("ascii", "replace"),
                    key,
                    tag,
                    float(age),
                    *rest,
                )
                for txn_id, position, message_id, failures, topic, key, tag, age, *rest in (
                    session.cursor.fetchall()
                )
            ]

    def note(self, attempts: Sequence[Attempt]) -> None:
        """Write down how publishing again went, so that another relay can go on from there."""
        alike: dict[tuple[bool, float], list[OutboxRow]] = {}
        for attempt in attempts:
            alike.setdefault((attempt.failed, attempt.retry_seconds), []).append(attempt.row)
        if not alike:
            return
        with self.session() as session:
            for (failed, retry_seconds), rows in alike.items():
                session.execute(STATEMENTS["note_attempts"], (failed, retry_seconds, *_keys(rows)))

    def delete_rows(self, rows: Sequence[OutboxRow]) -> None:
        """Delete what was published again: a page, so that the statement stays small."""
        with self.session() as session:
            session.execute(STATEMENTS["delete_outbox_rows"], _keys(rows))

    def delete_transactions(self, txn_ids: Sequence[str]) -> None:
        """Delete all rows of these transactions, in batches."""
        for start in range(0, len(txn_ids), _DELETE_BATCH):
            with self.session() as session:
                batch = txn_ids[start : start + _DELETE_BATCH]
                session.execute(STATEMENTS["delete_outbox_transactions"], (batch,))

    def count(self, limit: int = ALL_ROWS) -> OutboxCount:
        """Count up to `limit` rows; oldest and newest are those of all."""
        with self.session() as session:
            session.execute(STATEMENTS["count_outbox"], (limit,))
            ((rows, oldest, newest),) = session.cursor.fetchall()
            return OutboxCount(rows, float(oldest or 0), newest=(newest or b"").decode("ascii", "replace"))

    def count_by_topic(self) -> list[OutboxCount]:
        """Count the rows of each topic; reads the whole table."""
        with self.session() as session:
            session.execute(STATEMENTS["count_outbox_by_topic"])
            return [
                OutboxCount(rows, float(oldest), topic.decode("ascii", "replace"))
                for topic, rows, oldest in session.cursor.fetchall()
            ]

    def session(self) -> AbstractContextManager[Session]:
        """Lend the connection for one transaction; see `Sideline.session`."""
        return self._sideline.session()

    def close(self) -> None:
        """Close the connection, and so let another become the relay. Idempotent."""
        self._sideline.close()
