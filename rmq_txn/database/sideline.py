"""One connection beside the business: for the threads that take care of our tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pymysql

from rmq_txn.database.pool import ConnectionPool, error_code
from rmq_txn.database.session import Session
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.errors import DatabaseUnavailableError


class Sideline:
    """
    One connection that a thread keeps; `Database.sideline` makes it. For one thread at a time.

    Every method but `close` raises `DatabaseUnavailableError` for whatever goes wrong: what is done
    here is done again later.

    Args:
        purpose: what is worked on, for error texts.
    """

    def __init__(self, pool: ConnectionPool, purpose: str) -> None:
        self._pool = pool
        self._purpose = purpose

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Lend the connection for one transaction; COMMIT at the end of the block, else ROLLBACK."""
        session = Session(self._pool, self._purpose, guarded=False)
        try:
            yield session
            session.commit()
        except pymysql.MySQLError as error:
            # Not used again: it may be to a demoted server, or know nothing of privileges given back.
            with suppress(pymysql.MySQLError):  # closed already
                session.connection.close()
            raise DatabaseUnavailableError(
                f"the {self._purpose} can't be worked on: {error.args[-1]} (error {error_code(error)})"
            ) from error
        finally:
            session.rollback()

    def elect(self, name: str) -> bool:
        """
        Try to become, or stay, the one of this server who holds the lock `name`, at most 64 characters.

        The server lets go of it when this connection ends, however that happens. In a cluster each
        node has its own locks: there may be one a node.
        """
        with self.session() as session:
            session.execute(STATEMENTS["elect"], (name, name))
            row = session.cursor.fetchone()
            return row is not None and row[0] == 1

    def close(self) -> None:
        """End the connection, and so let another be elected. Idempotent."""
        self._pool.close()
