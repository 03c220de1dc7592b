"""The inbox table: which messages a consumer group has handled."""

from __future__ import annotations

import pymysql

from rmq_txn.errors import InvalidMessageError
from rmq_txn.pool import DUPLICATE_KEY, error_code
from rmq_txn.session import Session
from rmq_txn.sql import STATEMENTS

MAX_KEY_BYTES = 255


def claim(session: Session, group: str, key: str) -> bool:
    """
    Write down, in the handler's own transaction, that `key` is handled by `group`.

    First statement of that transaction: a parallel duplicate waits for it, and a rollback of the
    handler takes it back.

    Returns:
        False if it was handled before: skip the handler and acknowledge.

    Raises:
        InvalidMessageError: the key is longer than 255 bytes.
    """
    encoded = key.encode()
    if not 0 < len(encoded) <= MAX_KEY_BYTES:
        raise InvalidMessageError(f"dedup key is {len(encoded)} bytes, allowed are 1 to {MAX_KEY_BYTES}")
    try:
        session.execute(STATEMENTS["claim_inbox_row"], (group, encoded))
    except pymysql.err.IntegrityError as error:
        if error_code(error) != DUPLICATE_KEY:
            raise
        return False
    return True
