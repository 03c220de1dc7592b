"""
The table of failing and parked messages: what a consumer group could not handle.

The inbox row of a message is the lock of its key. Everything that a consumer changes here happens
after it claimed that row in the same transaction, and a parked message keeps it: later deliveries are
skipped as duplicates, so a message is never both handled and parked (docs/decisions/0014).
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from rmq_txn.database.session import Session
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.database.transaction import Transaction
from rmq_txn.errors import InvalidMessageError
from rmq_txn.logs import describe
from rmq_txn.message import Delivery

MAX_ERROR_BYTES = 2000


class ParkedState(enum.IntEnum):
    """Why a message is here; the numbers are stored."""

    FAILING = 0
    REJECTED = 1
    EXHAUSTED = 2
    OVER_AGE = 3
    LOST = 4
    BURIED = 5
    UNHANDLED = 6

    @property
    def needs_force(self) -> bool:
        """Whether its effect may be in the database already, so that a person has to look first."""
        return self in (ParkedState.OVER_AGE, ParkedState.LOST)


@dataclass(frozen=True, slots=True)
class Failure:
    """What the table says of one message, without the message."""

    group: str
    key: str
    state: ParkedState
    attempts: int
    error: str
    topic: str
    message_id: str
    first_failed_at: datetime
    last_failed_at: datetime


@dataclass(frozen=True, slots=True)
class ParkedMessage:
    """One parked message, with everything that a replay needs."""

    failure: Failure
    delivery: Delivery


def count_failure(txn: Transaction, group: str, key: str, delivery: Delivery, error: BaseException) -> int:
    """Count one failure, of a delivery that the caller has claimed or of a replay; return how many now."""
    text = describe(error)
    if _insert(txn, group, key, delivery, text, attempts=1):
        return 1
    txn.execute(STATEMENTS["count_failure"], (_text(text), group, key.encode()))
    txn.execute(STATEMENTS["read_attempts"], (group, key.encode()))
    row = txn.fetchone()
    return int(row[0]) if row else 1


def park(
    txn: Transaction,
    group: str,
    key: str,
    state: ParkedState,
    delivery: Delivery,
    error: str = "",
    *,
    with_body: bool = True,
) -> None:
    """Park a message whose inbox row stands; one that is parked already stays as it is."""
    _insert(txn, group, key, delivery, error, attempts=0)
    values = (
        int(state),
        None if delivery.tag is None else _bytes(delivery.tag),
        None if delivery.key is None else _bytes(delivery.key),
        max(0, delivery.redeliveries),  # a stranger may say -1
        delivery.born_milliseconds,
        json.dumps(dict(delivery.properties)).encode(),
        delivery.body if with_body else None,
    )
    txn.execute(STATEMENTS["park_row"], (*values, group, key.encode()))


def _insert(txn: Transaction, group: str, key: str, delivery: Delivery, error: str, *, attempts: int) -> bool:
    """Insert a failing row; False if there is a row already."""
    named = _bytes(delivery.topic), _bytes(delivery.message_id)
    values = (int(ParkedState.FAILING), attempts, _text(error), *named)
    return txn.insert_new(STATEMENTS["insert_parked_row"], (group, key.encode(), *values))


def forget_failures(txn: Transaction, group: str, key: str) -> None:
    """Delete the counter of a message, in the transaction that handles it."""
    txn.execute(STATEMENTS["forget_failures"], (group, key.encode()))


def unpark(txn: Transaction, group: str, key: str) -> bool:
    """Delete a parked row; False if another one was faster. Its inbox row stays."""
    return txn.execute(STATEMENTS["unpark"], (group, key.encode())) == 1


def read(txn: Transaction, group: str, key: str) -> ParkedMessage | None:
    """Return one parked message; None if it is not parked."""
    txn.execute(STATEMENTS["read_parked_row"], (group, key.encode()))
    row = txn.fetchone()
    if row is None:
        return None
    tag, message_key, redeliveries, born_milliseconds, properties, body = row[9:]
    if body is None:
        raise InvalidMessageError(
            f"message {key} was parked without its body, which is larger than max_allowed_packet of the "
            "database; look for it by its message id on the broker, then drop it here"
        )
    failure = _failure(row[:9])
    delivery = Delivery(
        topic=failure.topic,
        body=body,
        message_id=failure.message_id,
        tag=None if tag is None else tag.decode(),
        key=None if message_key is None else message_key.decode(),
        redeliveries=redeliveries,
        born_milliseconds=born_milliseconds,
        properties=json.loads(properties),
    )
    return ParkedMessage(failure, delivery)


def failures(txn: Transaction, group: str, limit: int) -> list[Failure]:
    """Return the failing and parked messages of a group ("": of all), oldest first, at most `limit`."""
    txn.execute(STATEMENTS["list_parked_rows"], (group, group, limit))
    return [_failure(row) for row in txn.fetchall()]


@dataclass(frozen=True, slots=True)
class ParkedCount:
    """How many messages of a group fail or are parked, and since when the oldest does, Unix seconds."""

    messages: int = 0
    since: float = 0.0


def count(session: Session, group: str) -> tuple[ParkedCount, ParkedCount]:
    """Count those that fail and are delivered again, and those that are parked."""
    session.execute(STATEMENTS["count_parked_rows"], (group,))
    found = {
        bool(parked): ParkedCount(rows, float(since)) for parked, rows, since in session.cursor.fetchall()
    }
    return found.get(False, ParkedCount()), found.get(True, ParkedCount())


def _failure(row: tuple[Any, ...]) -> Failure:
    group, key, state, attempts, error, topic, message_id, first_failed_at, last_failed_at = row
    return Failure(
        group=group.decode(),
        key=key.decode(),
        state=ParkedState(state),
        attempts=attempts,
        error=error.decode("utf-8", "replace"),
        topic=topic.decode(),
        message_id=message_id.decode(),
        first_failed_at=datetime.fromtimestamp(first_failed_at, timezone.utc),
        last_failed_at=datetime.fromtimestamp(last_failed_at, timezone.utc),
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _text(error: str) -> bytes:
    return _bytes(error)[:MAX_ERROR_BYTES]
