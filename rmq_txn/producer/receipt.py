"""What a committed transaction returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from rmq_txn.database.transaction import Transaction
from rmq_txn.errors import LifecycleError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Receipt(Generic[T]):
    """
    A transaction that committed. Its messages will be delivered, at least once each.

    Attributes:
        txn_id: id on every row, message and log line of it.
        message_ids: broker-side ids (`UNIQ_KEY`), in the order of publishing; for searching only.
        value: what the work of form B returned; None for form A.
    """

    txn_id: str
    message_ids: tuple[str, ...]
    value: T


class PublishingTransaction(Transaction):
    """The running transaction of form A."""

    _receipt: Receipt[None] | None = None

    @property
    def receipt(self) -> Receipt[None]:
        """
        The receipt, once the block has ended.

        Raises:
            LifecycleError: the block runs still, or did not commit.
        """
        if self._receipt is None:
            raise LifecycleError(f"transaction {self.txn_id} has not committed, it has no receipt")
        return self._receipt
