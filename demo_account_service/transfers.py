"""Transfers of money: two balances, one row of evidence and one message, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Final

import pymysql
import structlog

from rmq_txn import Database, Transaction, TransactionProducer

log = structlog.get_logger("account_service.transfers")

TOPIC: Final = "transfer"
IDENTIFIER: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Users and transfers are named so; the columns hold 64 characters."""
MAX_AMOUNT: Final = 10**12
"""In fen. Far below what a BIGINT holds, so no sum of balances can overflow."""
MAX_LISTED: Final = 1000
FEN_PER_POINT: Final = 100
"""What the points service gives; known here only to compare the books on the demo page."""

_DUPLICATE_KEY = 1062
# Lock wait timeout, deadlock, and MariaDB's snapshot conflict: trying again is the cure.
_LOCK_ERRORS = frozenset({1205, 1213, 1020})
# A lock wait lasts up to 5 s, so a request is answered after 15 s at the latest.
_TRIES = 3


class UnknownAccountError(Exception):
    """There is no account of this user."""


class InsufficientFundsError(Exception):
    """The payer's balance is less than the amount."""


class ConflictingTransferError(Exception):
    """The transfer id belongs to a committed transfer of other users or another amount."""


class UnknownTransferError(Exception):
    """No transfer of this id was committed."""


class BusyError(Exception):
    """Other transfers hold the rows; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a client asks for."""

    transfer_id: str
    payer: str
    payee: str
    amount: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """A committed transfer."""

    order: Order
    txn_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to an order."""

    txn_id: str
    repeated: bool
    """True: an earlier request with this transfer id committed, this one changed nothing."""


class Transfers:
    """
    Moves money between accounts. Thread-safe.

    Args:
        producer: runs the transactions; started and closed by its owner.
        database: the database of that producer.
    """

    def __init__(self, producer: TransactionProducer, database: Database) -> None:
        self._producer = producer
        self._database = database

    def transfer(self, order: Order) -> Outcome:
        """
        Move the money and publish the transfer. The same order again returns the first result.

        Raises:
            UnknownAccountError, InsufficientFundsError, ConflictingTransferError: nothing changed.
            BusyError: nothing changed; rows were locked for too long.
            RmqTxnError: as `TransactionProducer.transaction`; after InDoubtError repeat the order.
        """
        for attempt in range(1, _TRIES + 1):
            try:
                with (
                    structlog.contextvars.bound_contextvars(transfer_id=order.transfer_id),
                    self._producer.transaction() as txn,
                ):
                    _move_money(txn, order)
                    txn.publish(
                        TOPIC,
                        {"transfer_id": order.transfer_id, "user_id": order.payer, "amount": order.amount},
                        key=order.transfer_id,
                    )
            except _CommittedBeforeError:
                return self._first_result(order)
            except pymysql.OperationalError as error:
                if error.args[0] not in _LOCK_ERRORS:
                    raise
                log.warning(
                    "rows are locked", transfer_id=order.transfer_id, attempt=attempt, cause=str(error)
                )
            else:
                log.info(
                    "transfer committed",
                    transfer_id=order.transfer_id,
                    payer=order.payer,
                    payee=order.payee,
                    amount=order.amount,
                    txn_id=txn.receipt.txn_id,
                )
                return Outcome(txn.receipt.txn_id, repeated=False)
        raise BusyError(f"the rows of transfer {order.transfer_id!r} were locked in {_TRIES} tries")

    def find(self, transfer_id: str) -> Transfer:
        """
        Return a committed transfer.

        Raises:
            UnknownTransferError: there is none of this id.
        """
        with self._database.transaction(read_only=True) as txn:
            txn.execute(
                "SELECT payer, payee, amount, txn_id, created_at FROM transfer WHERE transfer_id = %s",
                (transfer_id,),
            )
            row = txn.fetchone()
        if row is None:
            raise UnknownTransferError(f"no transfer {transfer_id!r} was committed")
        payer, payee, amount, txn_id, created_at = row
        return Transfer(
            Order(transfer_id, payer, payee, amount), txn_id, created_at.replace(tzinfo=timezone.utc)
        )

    def accounts(self) -> dict[str, int]:
        """Return the balances of the first MAX_LISTED users, in fen."""
        with self._database.transaction(read_only=True) as txn:
            txn.execute("SELECT user_id, balance FROM account ORDER BY user_id LIMIT %s", (MAX_LISTED,))
            return dict(txn.fetchall())

    def balance(self, user: str) -> int:
        """
        Return the balance of one user, in fen.

        Raises:
            UnknownAccountError: there is no such user.
        """
        with self._database.transaction(read_only=True) as txn:
            balance = _balance(txn, user)
        if balance is None:
            raise UnknownAccountError(f"there is no account of user {user!r}")
        return balance

    def open_accounts(self, balances: Mapping[str, int]) -> None:
        """Open the accounts that don't exist yet; those that do keep their balance."""
        with self._database.transaction() as txn:
            txn.executemany(
                "INSERT INTO account (user_id, balance) VALUES (%s, %s) "
                "ON DUPLICATE KEY UPDATE user_id = user_id",
                sorted(balances.items()),
            )

    def books(self) -> dict[str, int]:
        """
        Return one snapshot for the invariant: the sum of balances, and what the points must add up to.

        `ids` is a sum over the ids of all transfers; the points service makes the same of its entries.
        """
        with self._database.transaction(read_only=True) as txn:
            txn.execute(
                "SELECT (SELECT COALESCE(SUM(balance), 0) FROM account), COUNT(*), "
                "COALESCE(SUM(amount DIV %s), 0), BIT_XOR(CRC32(CONCAT(transfer_id, ':', txn_id))) "
                "FROM transfer",
                (FEN_PER_POINT,),
            )
            row = txn.fetchone() or (0, 0, 0, 0)
        return dict(zip(("balances", "transfers", "points_due", "ids"), map(int, row), strict=True))

    def ping(self) -> None:
        """Return if the database answers; else raise DatabaseUnavailableError."""
        with self._database.transaction(read_only=True) as txn:
            txn.execute("SELECT 1")

    def _first_result(self, order: Order) -> Outcome:
        # In a fresh transaction: a read in the one that met the duplicate may see an older snapshot.
        first = self.find(order.transfer_id)
        if first.order != order:
            raise ConflictingTransferError(
                f"transfer {order.transfer_id!r} was committed before with other users or another "
                f"amount; a new transfer needs a new transfer_id"
            )
        log.info("transfer repeated", transfer_id=order.transfer_id, txn_id=first.txn_id)
        return Outcome(first.txn_id, repeated=True)


class _CommittedBeforeError(Exception):
    """The row of this transfer exists; ends the block, so that the transaction is rolled back."""


def _move_money(txn: Transaction, order: Order) -> None:
    # The row first: parallel requests with one id wait here for the first of them to end.
    try:
        txn.execute(
            "INSERT INTO transfer (transfer_id, payer, payee, amount, txn_id) VALUES (%s, %s, %s, %s, %s)",
            (order.transfer_id, order.payer, order.payee, order.amount, txn.txn_id),
        )
    except pymysql.IntegrityError as error:
        if error.args[0] != _DUPLICATE_KEY:
            raise
        raise _CommittedBeforeError from error
    # Always in the order of user ids: two opposite transfers would deadlock otherwise.
    for user, change in sorted([(order.payer, -order.amount), (order.payee, order.amount)]):
        changed = txn.execute(
            "UPDATE account SET balance = balance + %s WHERE user_id = %s AND balance + %s >= 0",
            (change, user, change),
        )
        if changed != 1:
            raise _refusal(txn, order)


def _refusal(txn: Transaction, order: Order) -> UnknownAccountError | InsufficientFundsError:
    """Say why an account was not updated; a missing account weighs more than missing money."""
    for user in (order.payer, order.payee):
        if _balance(txn, user) is None:
            return UnknownAccountError(f"there is no account of user {user!r}")
    return InsufficientFundsError(f"the balance of {order.payer!r} is less than {order.amount} fen")


def _balance(txn: Transaction, user: str) -> int | None:
    txn.execute("SELECT balance FROM account WHERE user_id = %s", (user,))
    row = txn.fetchone()
    return None if row is None else int(row[0])
