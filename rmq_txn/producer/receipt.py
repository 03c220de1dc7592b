"""What a committed transaction returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rmq_txn.database.session import Session
from rmq_txn.database.transaction import Join, Transaction
from rmq_txn.errors import LifecycleError
from rmq_txn.message import Message

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

    def __init__(
        self,
        session: Session,
        publish: Callable[[Message], None],
        receipts: Sequence[Receipt[None]],
        join: Join | None = None,
    ) -> None:
        super().__init__(session, publish, join)
        self._receipts = receipts  # whoever commits puts one in

    @property
    def receipt(self) -> Receipt[None]:
        """
        The receipt, once the block has ended.

        Raises:
            LifecycleError: the block runs still, or did not commit.
        """
        if not self._receipts:
            raise LifecycleError(f"transaction {self.txn_id} has not committed, it has no receipt")
        return self._receipts[0]
