"""Whether somebody else's connection leads to the database of a transaction: the identity row tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rmq_txn.database.sql import STATEMENTS
from rmq_txn.database.transaction import Transaction

READ_IDENTITY: Final = STATEMENTS["read_schema_version"]
"""For the other connection; the row that it finds is what `is_same` gets."""


def is_same(txn: Transaction, found: Sequence[Any] | None) -> bool:
    """Tell whether the row that another connection found is that of the transaction's database."""
    txn.execute(READ_IDENTITY)
    row = txn.fetchone()
    return row is not None and found is not None and _text(row[1]) == _text(found[1])


def _text(database_id: bytes | str) -> str:
    """Drivers differ in what they make of a binary column."""
    return database_id.decode("ascii") if isinstance(database_id, bytes) else database_id
