"""
The seam between the two helpers: what a consumer needs of a producer, so that neither imports the other.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from rmq_txn.database import Database
from rmq_txn.database.transaction import Join, Transaction
from rmq_txn.lifecycle import State


class Publisher(Protocol):
    """What a consumer needs of a `TransactionProducer` to consume, write and publish as one unit."""

    @property
    def state(self) -> State:
        """Where in its life it is."""

    @property
    def group(self) -> str:
        """Its producer group."""

    @property
    def database(self) -> Database:
        """Where its transactions run."""

    def start(self) -> None:
        """Make it ready for transactions."""

    def close(self) -> None:
        """Wait for running transactions, then stop."""

    def transaction(self, *, join: Join | None = None) -> AbstractContextManager[Transaction]:
        """Run a transaction that can publish: half messages, then COMMIT, at the end of the block."""
