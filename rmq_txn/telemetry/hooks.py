"""What each step of a transport says: a span, a duration, a count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Final

from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from rmq_txn.identity import PROPERTY_NAMES, PROPERTY_POSITION, PROPERTY_TXN_ID
from rmq_txn.message import Delivery, Outbound
from rmq_txn.transport import Check, Checker, Deliver, Execute
from rmq_txn.transport.wrapped import Hooks
from rmq_txn.verdict import Answer, Verdict

# OpenTelemetry's semantic conventions for messaging, version 1.44.
_SYSTEM: Final = {"messaging.system": "rocketmq"}
_TOPIC: Final = "messaging.destination.name"
_CONSUMER_GROUP: Final = "messaging.consumer.group.name"
_OPERATION: Final = "messaging.operation.name"
_OPERATION_TYPE: Final = "messaging.operation.type"
_MESSAGE_ID: Final = "messaging.message.id"
_BODY_BYTES: Final = "messaging.message.body.size"
_TAG: Final = "messaging.rocketmq.message.tag"
_KEYS: Final = "messaging.rocketmq.message.keys"
_MESSAGE_TYPE: Final = "messaging.rocketmq.message.type"
_ERROR: Final = "error.type"
# What they have no word for.
_PRODUCER_GROUP: Final = "rmq_txn.producer.group"
_TXN_ID: Final = "rmq_txn.txn_id"
_VERDICT: Final = "rmq_txn.verdict"
_CAUSE: Final = "rmq_txn.cause"
_AFTER_LOCAL, _AFTER_CHECK = "local transaction", "check-back"
_ANSWER: Final = "rmq_txn.answer"
_REDELIVERIES: Final = "rmq_txn.redeliveries"

_BOUNDS_OF_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

Attributes = Mapping[str, str | int | Sequence[str]]

_transaction: ContextVar[str] = ContextVar("rmq_txn.telemetry.transaction", default="")
"""The transaction whose half messages this thread sends, one inside the other."""


class TelemetryHooks(Hooks):
    """
    See `Telemetry`. Thread-safe.

    A hook that watches must not raise. OpenTelemetry's API does not, by its specification.
    """

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter) -> None:
        self._tracer = tracer
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "half messages, and copies by the relay"
        )
        self._verdicts = meter.create_counter(
            "rmq_txn.verdicts", "{verdict}", "verdicts, after a local transaction or a check-back"
        )
        self._delivered = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "deliveries by answer"
        )
        self._redelivered = meter.create_counter(
            "rmq_txn.redeliveries", "{message}", "deliveries that were not the first of their message"
        )
        self._send_seconds = _histogram(
            meter, "messaging.client.operation.duration", "from a half message to the verdict"
        )
        self._local_seconds = _histogram(
            meter, "rmq_txn.local_transaction.duration", "the end of the local transaction, or all of form B"
        )
        self._check_seconds = _histogram(meter, "rmq_txn.check_back.duration", "the answer to a check-back")
        self._process_seconds = _histogram(
            meter, "messaging.process.duration", "a delivery: inbox row, handler, COMMIT"
        )

    def expect(self, group: str) -> None:
        """Begin a producer's verdicts with 0: the first of a kind is a step then, and can be alarmed on."""
        for verdict in Verdict:
            for cause in (_AFTER_LOCAL, _AFTER_CHECK):
                told = {_PRODUCER_GROUP: group, _VERDICT: verdict.value, _CAUSE: cause}
                self._count(self._verdicts, told, 0)

    def send_half(self, group: str, message: Outbound, send: Callable[[Outbound], None]) -> None:
        """Open the span of the transaction with its first half message, and one for each of them."""
        txn_id = message.properties.get(PROPERTY_TXN_ID, "")
        more = {_MESSAGE_TYPE: "transaction"}
        if _transaction.get() == txn_id:
            self._send(group, "send", message, more, send)
            return
        token = _transaction.set(txn_id)
        try:
            with self._span(f"transaction {group}", {_PRODUCER_GROUP: group, _TXN_ID: txn_id}):
                self._send(group, "send", message, more, send)
        finally:
            _transaction.reset(token)

    def execute(self, group: str, message: Outbound, message_id: str, execute: Execute) -> Verdict:
        """Note the id; the half message sent last has the local transaction inside."""
        span = trace.get_current_span()
        span.set_attribute(_MESSAGE_ID, message_id)
        span.add_event("half message stored")
        if message.properties.get(PROPERTY_POSITION) != "0":
            return execute(message_id)
        told = {_PRODUCER_GROUP: group}
        with self._timed(self._local_seconds, told), self._span("local transaction", told) as local:
            verdict = execute(message_id)
            local.set_attribute(_VERDICT, verdict.value)
        return verdict

    def ended(self, group: str, message: Outbound, message_id: str, verdict: Verdict) -> None:
        """Count the verdict."""
        told = {_PRODUCER_GROUP: group, _VERDICT: verdict.value, _CAUSE: _AFTER_LOCAL}
        trace.get_current_span().add_event("verdict sent", told)
        self._count(self._verdicts, told)

    def check(self, group: str, check: Check, answer: Checker) -> Verdict:
        """Link the question to the half message."""
        told = {_PRODUCER_GROUP: group}
        more = {_MESSAGE_ID: check.message_id, _TXN_ID: check.properties.get(PROPERTY_TXN_ID, "")}
        with (
            self._timed(self._check_seconds, told),
            self._span(
                f"check-back {group}", {**told, **more}, SpanKind.SERVER, sent=_sent_with(check.properties)
            ) as span,
        ):
            verdict = answer(check)
            span.set_attribute(_VERDICT, verdict.value)
        self._count(self._verdicts, {**told, _VERDICT: verdict.value, _CAUSE: _AFTER_CHECK})
        return verdict

    def send_plain(
        self, group: str, message: Outbound, message_id: str, send: Callable[[Outbound, str], None]
    ) -> None:
        """Tell what the relay publishes."""
        more = {_MESSAGE_ID: message_id, _MESSAGE_TYPE: "normal"}
        self._send(group, "relay", message, more, lambda sent: send(sent, message_id))

    def _send(
        self,
        group: str,
        operation: str,
        message: Outbound,
        more: Attributes,
        send: Callable[[Outbound], None],
    ) -> None:
        told = {_TOPIC: message.topic, _PRODUCER_GROUP: group, _OPERATION: operation, _OPERATION_TYPE: "send"}
        with (
            self._timed(self._send_seconds, told),
            self._span(f"send {message.topic}", {**told, **_of_message(message), **more}, SpanKind.PRODUCER),
        ):
            send(_with_context(message))
        self._count(self._sent, told)

    def deliver(self, group: str, delivery: Delivery, deliver: Deliver) -> Answer:
        """Continue the trace of who published it."""
        told = {
            _TOPIC: delivery.topic,
            _CONSUMER_GROUP: group,
            _OPERATION: "process",
            _OPERATION_TYPE: "process",
        }
        more: Attributes = {
            **_of_message(delivery),
            _MESSAGE_ID: delivery.message_id,
            _REDELIVERIES: delivery.redeliveries,
        }
        sent = _sent_with(delivery.properties)
        with (
            self._timed(self._process_seconds, told),
            self._span(
                f"process {delivery.topic}", {**told, **more}, SpanKind.CONSUMER, sent=sent, parent=sent
            ) as span,
        ):
            answer = deliver(delivery)
            span.set_attribute(_ANSWER, answer.name.lower())
            if answer is not Answer.ACK:
                span.set_status(Status(StatusCode.ERROR, "given back to the broker"))
        self._count(self._delivered, {**told, _ANSWER: answer.name.lower()})
        if delivery.redeliveries:
            self._count(self._redelivered, told)
        return answer

    def _span(
        self,
        name: str,
        attributes: Attributes,
        kind: SpanKind = SpanKind.INTERNAL,
        *,
        sent: Context | None = None,
        parent: Context | None = None,
    ) -> AbstractContextManager[Span]:
        """
        Make a span the current one of a block.

        Args:
            sent: the context that a message was sent with, which the span is linked to.
            parent: None: the current one.
        """
        origin = trace.get_current_span(sent).get_span_context() if sent is not None else None
        return self._tracer.start_as_current_span(
            name,
            context=parent,
            kind=kind,
            attributes={**_SYSTEM, **attributes},
            links=[Link(origin)] if origin is not None and origin.is_valid else None,
        )

    @contextmanager
    def _timed(self, histogram: metrics.Histogram, attributes: Attributes) -> Iterator[None]:
        began = time.monotonic()
        told = {**_SYSTEM, **attributes}
        try:
            yield
        except BaseException as error:
            told[_ERROR] = type(error).__qualname__
            raise
        finally:
            histogram.record(time.monotonic() - began, told)

    @staticmethod
    def _count(counter: metrics.Counter, attributes: Attributes, number: int = 1) -> None:
        counter.add(number, {**_SYSTEM, **attributes})


def _histogram(meter: metrics.Meter, name: str, description: str) -> metrics.Histogram:
    return meter.create_histogram(
        name, "s", description, explicit_bucket_boundaries_advisory=_BOUNDS_OF_SECONDS
    )


def _of_message(message: Outbound | Delivery) -> Attributes:
    found: dict[str, str | int | Sequence[str]] = {_BODY_BYTES: len(message.body)}
    if txn_id := message.properties.get(PROPERTY_TXN_ID, ""):
        found[_TXN_ID] = txn_id
    if message.tag is not None:
        found[_TAG] = message.tag
    if message.key is not None:
        found[_KEYS] = [message.key]
    return found


def _with_context(message: Outbound) -> Outbound:
    """Return a message that carries the current context; what the user set under these names stays."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    # The native client has no property that is empty.
    added = {name: value for name, value in carrier.items() if value and name not in message.properties}
    if not added:
        return message
    # Consumers read the properties that are named in this one.
    names = ",".join(filter(None, (message.properties.get(PROPERTY_NAMES, ""), *added)))
    return replace(message, properties={**message.properties, **added, PROPERTY_NAMES: names})


def _sent_with(properties: Mapping[str, str]) -> Context:
    """Return the context that a message was sent with, or an empty one: never that of this thread."""
    return propagate.extract(properties, context=Context())
