"""A transport that hands deliveries to a consumer one by one, for what no broker has a part in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rmq_txn.message import Delivery
from rmq_txn.transport import Checker, ConsumerTransport, Deliver, Lag, ProducerTransport, TagFilter
from rmq_txn.verdict import Answer


class Hands:
    """
    A transport without a broker: the test delivers, and sees the answer.

    Only for consumers on a real database. What a broker does with the answer is for other tests.
    """

    def __init__(self) -> None:
        self._deliver: Deliver | None = None
        self.subscriptions: Mapping[str, Sequence[str]] = {}

    def producer(self, group: str, check: Checker) -> ProducerTransport:
        """Refuse: it has no broker."""
        raise NotImplementedError

    def consumer(
        self, group: str, subscriptions: Mapping[str, Sequence[str]], threads: int, deliver: Deliver
    ) -> ConsumerTransport:
        """Remember the callable."""
        self._deliver = deliver
        self.subscriptions = subscriptions
        return _Handed()

    def deliver(self, delivery: Delivery) -> Answer:
        """Deliver on this thread, and return what the broker would be told."""
        assert self._deliver is not None
        return self._deliver(delivery)


class _Handed:
    def start(self) -> None:
        """Start nothing."""

    def is_registered(self, _topic: str) -> bool:
        return True

    def lag(self) -> Lag:
        return Lag(0, 0)

    def filters(self) -> tuple[TagFilter, ...]:
        return ()

    def close(self, drain_seconds: float, timeout_seconds: float) -> None:
        """Close nothing."""
