"""
Tells the demo page what happens to a message: from outside, no line of rmq_txn knows of it.

A consumer and a transport around the real ones, and an ear at the log lines of rmq_txn. Between
their steps the demo's faults strike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from demo_chassis.events import Events
from demo_points_service.faults import Faults
from rmq_txn import Delivery, IdempotentConsumer, Transaction
from rmq_txn.transport import Checker, ConsumerTransport, Deliver, ProducerTransport, Transport
from rmq_txn.verdict import Answer

_STEPS: Final = {
    "handled": "committed",
    "duplicate skipped": "skipped",
    "handler failed, the message will be delivered again": "failed",
    "handler failed, the message is parked": "parked",
}
"""What rmq_txn logs of a message, and the step that it is."""

Handler = Callable[[Transaction, Delivery], object]


class ObservedConsumer(IdempotentConsumer):
    """A consumer that tells when a handler begins, and lets it fail if it was told to."""

    def __init__(self, *, events: Events, faults: Faults, **settings: Any) -> None:
        super().__init__(**settings)
        self._events = events
        self._faults = faults

    def start(self) -> None:
        """See `IdempotentConsumer.start`."""
        super().start()
        self._events.tell("service_started")

    def handles(self, topic: str, tag: str = "*") -> Callable[[Any], Any]:
        """See `IdempotentConsumer.handles`."""
        register = super().handles(topic, tag)

        def observe(handler: Handler) -> Handler:
            def observed(txn: Transaction, delivery: Delivery) -> None:
                # The inbox row is in this transaction already: rmq_txn writes it before it calls a handler.
                for step in ("inbox_row", "handler"):
                    self._events.tell(step, delivery.txn_id or "", delivery.key or "")
                self._faults.fail_if_armed(delivery)
                handler(txn, delivery)

            register(observed)
            return handler

        return observe


class ObservedTransport:
    """See `Transport`."""

    def __init__(self, inner: Transport, events: Events, faults: Faults) -> None:
        self._inner = inner
        self._events = events
        self._faults = faults

    def producer(self, group: str, check: Checker) -> ProducerTransport:
        return self._inner.producer(group, check)

    def consumer(
        self, group: str, subscriptions: Mapping[str, Sequence[str]], threads: int, deliver: Deliver
    ) -> ConsumerTransport:
        def observed_deliver(delivery: Delivery) -> Answer:
            ids = delivery.txn_id or "", delivery.key or ""
            self._events.tell("delivered", *ids, redeliveries=delivery.redeliveries)
            answer = deliver(delivery)
            if answer is Answer.ACK:
                self._faults.die_if_armed(delivery)
            if answer is Answer.ACK and self._faults.withholds_ack(delivery):
                self._events.tell("ack_withheld", *ids)
                return Answer.RETRY
            self._events.tell("acked" if answer is Answer.ACK else "given_back", *ids)
            return answer

        return self._inner.consumer(group, subscriptions, threads, observed_deliver)


class Ear(logging.Handler):
    """Turns log lines of rmq_txn's consumer into events."""

    def __init__(self, events: Events) -> None:
        super().__init__(logging.INFO)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        """Tell a line that is a step."""
        step = _STEPS.get(getattr(record, "rmq_txn_event", ""))
        if step is not None:
            fields: dict[str, Any] = getattr(record, "rmq_txn_fields", {})
            detail = {
                name: fields[name] for name in ("attempts", "redeliveries", "because") if name in fields
            }
            self._events.tell(step, str(fields.get("txn_id", "")), **detail)
