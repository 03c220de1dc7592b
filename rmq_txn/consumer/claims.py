"""Which inbox rows stand for a message: the user's choice, or ours, and that of an older version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rmq_txn.consumer import inbox
from rmq_txn.deferred import call
from rmq_txn.identity import made_at
from rmq_txn.message import Delivery

_OLD_PROCESSES_SECONDS = 86_400.0
"""For how long after the upgrade of the tables processes of version 2 may still be about."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The inbox rows that stand for one message."""

    key: str
    former_key: str | None = None


class Claims:
    """
    From a delivery to its claim. Thread-safe.

    Args:
        dedup_key: the user's choice of what makes two deliveries the same message; None: ours.

    Attributes:
        upgraded_at: see `Identity`; messages from before it may have a row of version 2.
    """

    def __init__(self, dedup_key: Callable[[Delivery], str] | None) -> None:
        self._dedup_key = dedup_key
        self.upgraded_at: float | None = None

    def of(self, delivery: Delivery) -> Claim:
        """Return what is to be claimed; raises InvalidMessageError, or what the user's function raises."""
        if self._dedup_key is None:
            return self._own(delivery)
        return Claim(inbox.check_key(call(self._dedup_key, "dedup_key", delivery)))

    def _own(self, delivery: Delivery) -> Claim:
        """Return our key, and that of version 2 while a process of it may have handled the message."""
        if self.upgraded_at is None or delivery.txn_id is None:
            return Claim(delivery.dedup_key)
        from_before = made_at(delivery.txn_id) < self.upgraded_at + _OLD_PROCESSES_SECONDS
        return Claim(delivery.dedup_key, delivery.former_dedup_key if from_before else None)

    def of_failing(self, delivery: Delivery) -> Claim:
        """Return a key for the failure of a message for which the user's function has none."""
        try:
            return self.of(delivery)
        except Exception:  # noqa: BLE001 - it is the failure that is being counted
            return Claim(delivery.dedup_key)
