"""The inbox table: which messages a consumer group is done with, handled or parked."""

from __future__ import annotations

from rmq_txn.database.sql import STATEMENTS
from rmq_txn.database.transaction import Transaction
from rmq_txn.errors import InvalidMessageError
from rmq_txn.identity import MAX_DEDUP_KEY_BYTES


def check_key(key: object) -> str:
    """
    Return `key` if the table can hold it.

    Raises:
        InvalidMessageError: it is no text of 1 to 255 bytes.
    """
    if not isinstance(key, str):
        raise InvalidMessageError(f"dedup key is {key!r:.80}, allowed is text")
    size = len(key.encode())
    if not 0 < size <= MAX_DEDUP_KEY_BYTES:
        raise InvalidMessageError(f"dedup key is {size} bytes, allowed are 1 to {MAX_DEDUP_KEY_BYTES}")
    return key


def claim(txn: Transaction, group: str, key: str, former_key: str | None) -> bool:
    """
    Write down, in the handler's own transaction, that `group` is done with `key`.

    First statement of that transaction: a parallel duplicate waits for it, and a rollback of the
    handler takes it back.

    Args:
        former_key: the key that processes of version 2 have for the same message, and their rows. It is
            claimed first, so that they and we exclude each other both ways; if it is taken, `key` stays free.

    Returns:
        False if it was handled or parked before: skip the handler and acknowledge.
    """
    return (former_key is None or _insert(txn, group, former_key)) and _insert(txn, group, key)


def _insert(txn: Transaction, group: str, key: str) -> bool:
    return txn.insert_new(STATEMENTS["claim_inbox_row"], (group, key.encode()))


def release(txn: Transaction, group: str, key: str, former_key: str | None) -> None:
    """Take a claim of this transaction back: the message will be delivered again."""
    for claimed in filter(None, (key, former_key)):
        txn.execute(STATEMENTS["release_inbox_row"], (group, claimed.encode()))
