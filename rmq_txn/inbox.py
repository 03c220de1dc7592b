"""The inbox table: which messages a consumer group is done with, handled or parked."""

from __future__ import annotations

import time

import pymysql

from rmq_txn.errors import InvalidMessageError
from rmq_txn.identity import age_seconds
from rmq_txn.message import Delivery
from rmq_txn.pool import DUPLICATE_KEY, error_code
from rmq_txn.sql import STATEMENTS
from rmq_txn.transaction import Transaction

MAX_KEY_BYTES = 255


def check_key(key: object) -> str:
    """
    Return `key` if the table can hold it.

    Raises:
        InvalidMessageError: it is no text of 1 to 255 bytes.
    """
    if not isinstance(key, str):
        raise InvalidMessageError(f"dedup key is {key!r:.80}, allowed is text")
    size = len(key.encode())
    if not 0 < size <= MAX_KEY_BYTES:
        raise InvalidMessageError(f"dedup key is {size} bytes, allowed are 1 to {MAX_KEY_BYTES}")
    return key


def claim(txn: Transaction, group: str, key: str) -> bool:
    """
    Write down, in the handler's own transaction, that `group` is done with `key`.

    First statement of that transaction: a parallel duplicate waits for it, and a rollback of the
    handler takes it back.

    Returns:
        False if it was handled or parked before: skip the handler and acknowledge.
    """
    try:
        txn.execute(STATEMENTS["claim_inbox_row"], (group, key.encode()))
    except pymysql.err.IntegrityError as error:
        if error_code(error) != DUPLICATE_KEY:
            raise
        return False
    return True


def release(txn: Transaction, group: str, key: str) -> None:
    """Take a claim of this transaction back: the message will be delivered again."""
    txn.execute(STATEMENTS["release_inbox_row"], (group, key.encode()))


def may_have_forgotten(delivery: Delivery, retention_seconds: float) -> bool:
    """Whether the row of a delivery may have been pruned; of other clients' messages by their own clock."""
    if delivery.txn_id is not None:
        return age_seconds(delivery.txn_id) > retention_seconds
    born = delivery.born_milliseconds / 1000
    return born > 0 and time.time() - born > retention_seconds
