"""Points for transfers: one ledger entry and one balance, in the transaction that dedups the message."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Final

import structlog

from rmq_txn import Database, Delivery, IdempotentConsumer, Reject, Transaction

log = structlog.get_logger("points_service.awards")

TOPIC: Final = "transfer"
IDENTIFIER: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
FEN_PER_POINT: Final = 100
MAX_LISTED: Final = 1000


@dataclass(frozen=True, slots=True)
class Transferred:
    """The event of the account service, as far as this service needs it."""

    transfer_id: str
    user: str
    amount: int
    txn_id: str

    @classmethod
    def of(cls, delivery: Delivery) -> Transferred:
        """
        Read a delivery.

        Raises:
            Reject: it is not such an event, and never will be, so no delivery of it can succeed.
        """
        try:
            body = delivery.json()
        except ValueError as error:
            raise Reject(f"message {delivery.message_id} is not JSON") from error
        if not isinstance(body, dict):
            raise Reject(f"message {delivery.message_id} is not a JSON object")
        transfer_id, user, amount = (body.get(name) for name in ("transfer_id", "user_id", "amount"))
        if not (
            isinstance(transfer_id, str) and isinstance(user, str) and type(amount) is int and amount > 0
        ):
            raise Reject(
                f"message {delivery.message_id} lacks transfer_id, user_id or a positive amount in fen"
            )
        if delivery.txn_id is None:
            raise Reject(f"message {delivery.message_id} was not sent in a transaction of rmq_txn")
        return cls(transfer_id, user, amount, delivery.txn_id)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger."""

    transfer_id: str
    points: int
    txn_id: str
    created_at: datetime


def register_handlers(consumer: IdempotentConsumer) -> None:
    """Let `consumer` award points for every transfer."""

    @consumer.handles(TOPIC)
    def award_points(txn: Transaction, delivery: Delivery) -> None:
        # No check for duplicates: rmq_txn has written its inbox row in this very transaction, and
        # does not call a handler for a message it has seen.
        event = Transferred.of(delivery)
        points = event.amount // FEN_PER_POINT
        txn.execute(
            "INSERT INTO points_entry (transfer_id, user_id, points, txn_id) VALUES (%s, %s, %s, %s)",
            (event.transfer_id, event.user, points, event.txn_id),
        )
        txn.execute(
            "INSERT INTO points_balance (user_id, points) VALUES (%s, %s) "
            "ON DUPLICATE KEY UPDATE points = points + %s",
            (event.user, points, points),
        )
        # Not "awarded": the transaction commits after this function, if it does.
        log.info("awarding points", transfer_id=event.transfer_id, user=event.user, points=points)


class Points:
    """What the ledger says. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def balances(self) -> dict[str, int]:
        """Return the points of the first MAX_LISTED users."""
        with self._database.transaction(read_only=True) as txn:
            txn.execute("SELECT user_id, points FROM points_balance ORDER BY user_id LIMIT %s", (MAX_LISTED,))
            return dict(txn.fetchall())

    def balance(self, user: str) -> int:
        """Return the points of a user; 0 for one who never paid."""
        with self._database.transaction(read_only=True) as txn:
            txn.execute("SELECT points FROM points_balance WHERE user_id = %s", (user,))
            row = txn.fetchone()
        return 0 if row is None else int(row[0])

    def entries(self, user: str, limit: int) -> list[Entry]:
        """Return the newest ledger entries of a user, newest first."""
        with self._database.transaction(read_only=True) as txn:
            txn.execute(
                "SELECT transfer_id, points, txn_id, created_at FROM points_entry WHERE user_id = %s "
                "ORDER BY created_at DESC, transfer_id LIMIT %s",
                (user, limit),
            )
            rows = txn.fetchall()
        return [
            Entry(transfer_id, points, txn_id, created_at.replace(tzinfo=timezone.utc))
            for transfer_id, points, txn_id, created_at in rows
        ]

    def books(self) -> dict[str, int]:
        """
        Return one snapshot for the invariant: entries, their points, and the points of all users.

        `ids` is a sum over the ids of all entries; the account service makes the same of its transfers.
        """
        with self._database.transaction(read_only=True) as txn:
            txn.execute(
                "SELECT (SELECT COALESCE(SUM(points), 0) FROM points_balance), COUNT(*), "
                "COALESCE(SUM(points), 0), BIT_XOR(CRC32(CONCAT(transfer_id, ':', txn_id))) FROM points_entry"
            )
            row = txn.fetchone() or (0, 0, 0, 0)
        return dict(zip(("balances", "entries", "points", "ids"), map(int, row), strict=True))

    def ping(self) -> None:
        """Return if the database answers; else raise DatabaseUnavailableError."""
        with self._database.transaction(read_only=True) as txn:
            txn.execute("SELECT 1")
