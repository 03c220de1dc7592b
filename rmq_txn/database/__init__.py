"""Local transactions: a guarded connection, the pool that lends it, and what a COMMIT may claim."""

from rmq_txn.database.database import Database

__all__ = ["Database"]
