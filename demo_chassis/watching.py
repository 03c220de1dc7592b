"""
Tells the demo page what happens to a transaction and its message: no line of rmq_txn knows of it.

Hooks around the transport, and around the handlers and the block that a service gives to rmq_txn.
Between their steps the demo's faults strike.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from demo_chassis.events import Events
from demo_chassis.faults import KILL_AFTER_COMMIT, KILL_BEFORE_COMMIT, AccountFaults, PointsFaults
from rmq_txn import Delivery, IdempotentConsumer, RocketMQ, Transaction, TransactionProducer
from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.message import Outbound
from rmq_txn.telemetry import Telemetry
from rmq_txn.transport import Check, Checker, Deliver, Execute
from rmq_txn.transport.wrapped import Hooks, Wrapped
from rmq_txn.verdict import Answer, Verdict

_TXN_ID = "rmq_txn_id"
"""The property of a message that names its transaction, see the glossary."""

_TOLD = {
    Verdict.COMMIT: "message_committed",
    Verdict.ROLLBACK: "message_rolled_back",
    Verdict.UNKNOWN: "verdict_unknown",
}

Handler = Callable[[Transaction, Delivery], object]


class WatchedProducer(TransactionProducer):
    """A producer that tells when its local transaction runs, and when the block rolls it back."""

    def __init__(
        self,
        *,
        name_server: str,
        telemetry: Telemetry,
        events: Events,
        faults: AccountFaults,
        **settings: Any,
    ) -> None:
        # Next to the broker, so that it sees what the broker is told: the faults strike before.
        broker = telemetry.broker(RocketMQ(name_server))
        super().__init__(broker=Wrapped(broker, _ProducerSteps(events, faults)), **settings)
        self._events = events

    def start(self) -> None:
        """See `TransactionProducer.start`."""
        super().start()
        self._events.tell("service_started")

    @contextmanager
    def transaction(self, **arguments: Any) -> Iterator[Any]:
        """See `TransactionProducer.transaction`."""
        with super().transaction(**arguments) as txn:
            ids = txn.txn_id, str(structlog.contextvars.get_contextvars().get("transfer_id", ""))
            self._events.tell("local_running", *ids)
            try:
                yield txn
            except Exception as error:
                self._events.tell("local_rolled_back", *ids, cause=type(error).__name__)
                raise


class _ProducerSteps(Hooks):
    def __init__(self, events: Events, faults: AccountFaults) -> None:
        self._events = events
        self._faults = faults

    def send_half(self, group: str, message: Outbound, send: Callable[[Outbound], None]) -> None:
        try:
            send(message)
        except BrokerUnavailableError:
            self._events.tell("half_refused", *_ids(message))
            raise

    def execute(self, group: str, message: Outbound, message_id: str, execute: Execute) -> Verdict:
        ids = _ids(message)
        self._events.tell("half_stored", *ids, message_id=message_id)
        self._faults.die_if_armed(KILL_BEFORE_COMMIT, *ids)
        verdict = execute(message_id)
        self._events.tell("committed" if verdict is Verdict.COMMIT else "not_committed", *ids)
        if verdict is Verdict.COMMIT:
            self._faults.die_if_armed(KILL_AFTER_COMMIT, *ids)
            if self._faults.loses_verdict(*ids):
                return Verdict.UNKNOWN
        return verdict

    def ended(self, group: str, message: Outbound, message_id: str, verdict: Verdict) -> None:
        self._events.tell(_TOLD[verdict], *_ids(message))

    def check(self, group: str, check: Check, answer: Checker) -> Verdict:
        txn_id = check.properties.get(_TXN_ID, "")
        self._events.tell("check_asked", txn_id)
        self._faults.slow_down(txn_id)
        verdict = answer(check)
        self._events.tell("check_answered", txn_id, verdict=verdict.value)
        return verdict


class WatchedConsumer(IdempotentConsumer):
    """A consumer that tells when a handler begins, and lets it fail if it was told to."""

    def __init__(
        self,
        *,
        name_server: str,
        telemetry: Telemetry,
        events: Events,
        faults: PointsFaults,
        **settings: Any,
    ) -> None:
        self._runs = _Runs()
        steps = _ConsumerSteps(events, faults, self._runs)
        super().__init__(broker=Wrapped(telemetry.broker(RocketMQ(name_server)), steps), **settings)
        self._events = events
        self._faults = faults

    def start(self) -> None:
        """See `IdempotentConsumer.start`."""
        super().start()
        self._events.tell("service_started")

    def handles(self, topic: str, tag: str = "*") -> Callable[[Any], Any]:
        """See `IdempotentConsumer.handles`."""
        register = super().handles(topic, tag)

        def watch(handler: Handler) -> Handler:
            def watched(txn: Transaction, delivery: Delivery) -> object:
                # The inbox row is in this transaction already: rmq_txn writes it before it calls a handler.
                for step in ("inbox_row", "handler"):
                    self._events.tell(step, *_ids_of(delivery))
                with self._runs.one():
                    self._faults.fail_if_armed(delivery)
                    return handler(txn, delivery)

            register(watched)
            return handler

        return watch


class _Runs(threading.local):
    """How the handler of this thread's delivery ended, if it ran."""

    last: BaseException | str | None = None

    @contextmanager
    def one(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.last = error
            raise
        self.last = "returned"


class _ConsumerSteps(Hooks):
    def __init__(self, events: Events, faults: PointsFaults, runs: _Runs) -> None:
        self._events = events
        self._faults = faults
        self._runs = runs

    def deliver(self, group: str, delivery: Delivery, deliver: Deliver) -> Answer:
        ids = _ids_of(delivery)
        self._events.tell("delivered", *ids, redeliveries=delivery.redeliveries)
        self._runs.last = None
        answer = deliver(delivery)
        self._tell_outcome(delivery, answer)
        if answer is Answer.ACK:
            self._faults.die_if_armed(delivery)
            if self._faults.withholds_ack(delivery):
                self._events.tell("ack_withheld", *ids)
                return Answer.RETRY
        self._events.tell("acked" if answer is Answer.ACK else "given_back", *ids)
        return answer

    def _tell_outcome(self, delivery: Delivery, answer: Answer) -> None:
        """Tell what became of it, by how its handler ended and by the answer (docs/decisions/0049)."""
        ids = _ids_of(delivery)
        if isinstance(self._runs.last, Exception):
            attempts = 1 + self._events.count("failed", ids[0])
            self._events.tell("parked" if answer is Answer.ACK else "failed", *ids, attempts=attempts)
        elif answer is Answer.ACK:
            step = "skipped" if self._runs.last is None else "committed"
            self._events.tell(step, *ids, redeliveries=delivery.redeliveries)


def _ids(message: Outbound) -> tuple[str, str]:
    """Return transaction and transfer of a message."""
    return message.properties.get(_TXN_ID, ""), message.key or ""


def _ids_of(delivery: Delivery) -> tuple[str, str]:
    """Return transaction and transfer of a delivery."""
    return delivery.txn_id or "", delivery.key or ""
