"""
Tells the demo page what happens to a transaction: from outside, no line of rmq_txn knows of it.

A producer and a transport around the real ones. Between their steps the demo's faults strike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import structlog

from demo_account_service.faults import KILL_AFTER_COMMIT, KILL_BEFORE_COMMIT, Faults
from demo_chassis.events import Events
from rmq_txn import TransactionProducer
from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.message import Outbound
from rmq_txn.transport import (
    Check,
    Checker,
    ConsumerTransport,
    Deliver,
    Execute,
    ProducerTransport,
    Transport,
)
from rmq_txn.verdict import Verdict

_TXN_ID = "rmq_txn_id"
"""The property of a message that names its transaction, see the glossary."""

_TOLD = {
    Verdict.COMMIT: "message_committed",
    Verdict.ROLLBACK: "message_rolled_back",
    Verdict.UNKNOWN: "verdict_unknown",
}


class ObservedProducer(TransactionProducer):
    """A producer that tells when its local transaction runs, and when the block rolls it back."""

    def __init__(self, *, events: Events, **settings: Any) -> None:
        super().__init__(**settings)
        self._events = events

    def start(self) -> None:
        """See `TransactionProducer.start`."""
        super().start()
        self._events.tell("service_started")

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """See `TransactionProducer.transaction`."""
        with super().transaction() as txn:
            ids = txn.txn_id, str(structlog.contextvars.get_contextvars().get("transfer_id", ""))
            self._events.tell("local_running", *ids)
            try:
                yield txn
            except Exception as error:
                self._events.tell("local_rolled_back", *ids, cause=type(error).__name__)
                raise


class ObservedTransport:
    """See `Transport`."""

    def __init__(self, inner: Transport, events: Events, faults: Faults) -> None:
        self._inner = inner
        self._events = events
        self._faults = faults

    def producer(self, group: str, check: Checker) -> ProducerTransport:
        def observed_check(question: Check) -> Verdict:
            txn_id = question.properties.get(_TXN_ID, "")
            self._events.tell("check_asked", txn_id)
            self._faults.slow_down(txn_id)
            verdict = check(question)
            self._events.tell("check_answered", txn_id, verdict=verdict.value)
            return verdict

        return _ObservedProducerTransport(
            self._inner.producer(group, observed_check), self._events, self._faults
        )

    def consumer(
        self, group: str, subscriptions: Mapping[str, Sequence[str]], threads: int, deliver: Deliver
    ) -> ConsumerTransport:
        return self._inner.consumer(group, subscriptions, threads, deliver)


class _ObservedProducerTransport:
    """See `ProducerTransport`."""

    def __init__(self, inner: ProducerTransport, events: Events, faults: Faults) -> None:
        self._inner = inner
        self._events = events
        self._faults = faults

    def start(self, topics: Sequence[str] = ()) -> None:
        self._inner.start(topics)

    def send_half(self, message: Outbound, execute: Execute) -> None:
        ids = message.properties[_TXN_ID], message.key or ""
        told = Verdict.UNKNOWN

        def observed_execute(message_id: str) -> Verdict:
            nonlocal told
            self._events.tell("half_stored", *ids, message_id=message_id)
            self._faults.die_if_armed(KILL_BEFORE_COMMIT, *ids)
            verdict = execute(message_id)
            self._events.tell("committed" if verdict is Verdict.COMMIT else "not_committed", *ids)
            if verdict is Verdict.COMMIT:
                self._faults.die_if_armed(KILL_AFTER_COMMIT, *ids)
                if self._faults.loses_verdict(*ids):
                    return told
            told = verdict
            return told

        try:
            self._inner.send_half(message, observed_execute)
        except BrokerUnavailableError:
            self._events.tell("half_refused", *ids)
            raise
        self._events.tell(_TOLD[told], *ids)

    def send_plain(self, message: Outbound, message_id: str) -> None:
        self._inner.send_plain(message, message_id)

    def is_registered(self, topic: str) -> bool:
        return self._inner.is_registered(topic)

    @property
    def instance(self) -> str:
        return self._inner.instance

    def registered_clients(self, topic: str) -> Mapping[str, frozenset[str]]:
        return self._inner.registered_clients(topic)

    def close(self, timeout_seconds: float) -> None:
        self._inner.close(timeout_seconds)
