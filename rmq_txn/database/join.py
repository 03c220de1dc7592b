"""The seam to somebody else's unit of work, such as an ORM's session, that shares our transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rmq_txn.database.transaction import Transaction


class Join(Protocol):
    """
    A session that works on the connection of one transaction of ours. For one thread, used once.

    Its statements run between our first and our last one, so all that is promised of a transaction
    holds for them: we begin, we end, and it is told.
    """

    @property
    def session(self) -> Any:
        """What business code works with."""

    def begin(self, txn: Transaction) -> None:
        """
        Take the connection of `txn` for the session.

        Raises:
            LifecycleError, SettingsError: the session can't be joined; nothing of it was changed.
        """

    def flush(self) -> None:
        """Send what the session holds back; before the half messages, so that what fails costs nothing."""

    def commit(self, commit: Callable[[], None]) -> None:
        """
        Commit the session; `commit` is what ends the transaction, and is called once.

        When this raises after `commit` returned, the transaction is committed all the same.
        """

    def end(self) -> None:
        """Give the session back, rolled back unless it was committed; after the transaction ended."""


@contextmanager
def ended(join: Join | None) -> Iterator[None]:
    """End a join with the block, whatever happens in it."""
    try:
        yield
    finally:
        if join is not None:
            join.end()
