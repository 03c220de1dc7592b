"""Spans and metrics of `rmq_txn.telemetry`, as an SDK of OpenTelemetry collects them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from rmq_txn import (
    Database,
    Delivery,
    HalfMessageError,
    IdempotentConsumer,
    RocketMQ,
    Transaction,
    TransactionProducer,
)
from rmq_txn.message import Outbound
from rmq_txn.telemetry import Telemetry
from rmq_txn.telemetry.gauges import Gauges
from rmq_txn.telemetry.hooks import TelemetryHooks
from rmq_txn.testing import MemoryBroker
from rmq_txn.transport import Deliver, Execute
from rmq_txn.transport.wrapped import Hooks, Wrapped
from rmq_txn.verdict import Answer, Verdict
from tests.kit.documents import blocks, text_of
from tests.kit.wait import until

pytestmark = pytest.mark.servers


class Collected:
    """What was collected so far."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.tracer = tracers.get_tracer("service")
        meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.telemetry = Telemetry(tracers, meters)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._spans.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        (found,) = self.spans(name)
        return found

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """Return attributes and point of each series of a metric."""
        data = self._reader.get_metrics_data()
        return [
            (dict(point.attributes), point)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def values(self, name: str, attribute: str) -> dict[Any, float]:
        """Return the values of a counter or a gauge by one of its attributes."""
        return {attributes[attribute]: point.value for attributes, point in self.points(name)}


@pytest.fixture
def collected() -> Collected:
    """Return an SDK of this test's own: the global one of a process can be set once."""
    return Collected()


@pytest.fixture
def memory() -> Iterator[MemoryBroker]:
    """Return a broker in this process: what is looked at is not its affair."""
    with MemoryBroker(topics=["transfer"]) as broker:
        yield broker


def services(
    collected: Collected, broker: Any, database: Database, topic: str = "transfer"
) -> tuple[TransactionProducer, IdempotentConsumer]:
    traced = collected.telemetry.broker(broker)
    producer = TransactionProducer(group=f"g-{topic}", broker=traced, database=database, topics=[topic])
    consumer = IdempotentConsumer(group=f"c-{topic}", broker=traced, database=database)
    return producer, consumer


def trace_of(span: ReadableSpan) -> int:
    return span.get_span_context().trace_id


class LosesVerdicts(Hooks):
    """The first verdict gets lost, so the broker has to ask."""

    def __init__(self) -> None:
        self.left = 1

    def execute(self, group: str, message: Outbound, message_id: str, execute: Execute) -> Verdict:
        verdict = execute(message_id)
        if self.left:
            self.left -= 1
            return Verdict.UNKNOWN
        return verdict


def test_one_trace_goes_from_the_request_over_rocketmq_to_the_handler(
    broker: RocketMQ, database: Database, topic: str, collected: Collected
) -> None:
    """On the real broker, with a verdict that is lost: the question is linked to the half message."""
    producer, consumer = services(collected, Wrapped(broker, LosesVerdicts()), database, topic)

    @consumer.handles(topic)
    def award(txn: Transaction, delivery: Delivery) -> None:
        assert delivery.properties["tenant"] == "7"
        with collected.tracer.start_as_current_span("award points"):
            txn.execute("INSERT INTO effect (id) VALUES (%s)", (delivery.json()["id"],))

    with producer, consumer:
        with (
            collected.tracer.start_as_current_span("POST /transfers") as request,
            producer.transaction() as txn,
        ):
            txn.publish(topic, {"id": "t-1"}, key="t-1", tag="paid", properties={"tenant": "7"})
        until(lambda: collected.spans("award points"), "the handler's span")
        until(lambda: collected.spans(f"process {topic}"), "the delivery's span")
    send, process = collected.span(f"send {topic}"), collected.span(f"process {topic}")
    local, whole = collected.span("local transaction"), collected.span(f"transaction g-{topic}")
    asked = collected.spans(f"check-back g-{topic}")[-1]
    handler = collected.span("award points")
    spans = (whole, send, local, process, handler)
    assert {trace_of(span) for span in spans} == {request.get_span_context().trace_id}
    parents = [span.parent.span_id if span.parent else None for span in spans]
    assert parents == [
        request.get_span_context().span_id,
        *(one.get_span_context().span_id for one in (whole, send, send, process)),
    ]
    assert [link.context.span_id for link in asked.links] == [send.get_span_context().span_id]
    assert [link.context.span_id for link in process.links] == [send.get_span_context().span_id]
    assert (asked.attributes or {})["rmq_txn.verdict"] == "commit"
    assert (send.kind, asked.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.SERVER, SpanKind.CONSUMER)
    told = dict(process.attributes or {})
    assert told.pop("messaging.message.id") == (send.attributes or {})["messaging.message.id"]
    assert told.pop("rmq_txn.txn_id") == (asked.attributes or {})["rmq_txn.txn_id"]
    assert told == {
        "messaging.system": "rocketmq",
        "messaging.destination.name": topic,
        "messaging.consumer.group.name": f"c-{topic}",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.body.size": len(b'{"id":"t-1"}'),
        "messaging.rocketmq.message.tag": "paid",
        "messaging.rocketmq.message.keys": ("t-1",),
        "rmq_txn.redeliveries": 0,
        "rmq_txn.answer": "ack",
    }
    causes = {
        (told["rmq_txn.cause"], told["rmq_txn.verdict"]) for told, _ in collected.points("rmq_txn.verdicts")
    }
    assert {("local transaction", "commit"), ("check-back", "commit")} <= causes


def test_each_half_message_has_a_span_and_the_local_transaction_is_in_the_last_of_them(
    memory: MemoryBroker, database: Database, collected: Collected
) -> None:
    producer, consumer = services(collected, memory, database)
    consumer.handles("transfer")(lambda _txn, _delivery: None)
    with producer, consumer:
        with producer.transaction() as txn:
            for number in range(3):
                txn.publish("transfer", {"number": number})
        memory.settle()
    sends = {span.get_span_context().span_id: span for span in collected.spans("send transfer")}
    local = collected.span("local transaction")
    inner = local
    for _ in range(3):
        assert inner.parent is not None
        inner = sends[inner.parent.span_id]
    assert inner.parent is not None
    assert inner.parent.span_id == collected.span("transaction g-transfer").get_span_context().span_id
    processed = collected.spans("process transfer")
    assert {span.parent.span_id for span in processed if span.parent} == set(sends)
    (point,) = (point for _, point in collected.points("rmq_txn.local_transaction.duration"))
    assert point.count == 1
    assert collected.values("messaging.client.sent.messages", "messaging.operation.name") == {"send": 3}


def test_a_delivery_that_fails_is_an_error_and_the_next_one_a_redelivery(
    memory: MemoryBroker, database: Database, collected: Collected
) -> None:
    producer, consumer = services(collected, memory, database)
    failures = [ValueError("not yet")]

    @consumer.handles("transfer")
    def award(_txn: Transaction, _delivery: Delivery) -> None:
        if failures:
            raise failures.pop()

    with producer, consumer:
        with producer.transaction() as txn:
            txn.publish("transfer", {"id": 1})
        memory.advance(60)
    first, second = collected.spans("process transfer")
    assert (first.status.status_code, second.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert trace_of(first) == trace_of(second)
    answers = collected.values("messaging.client.consumed.messages", "rmq_txn.answer")
    assert answers == {"retry": 1, "ack": 1}
    assert collected.values("rmq_txn.redeliveries", "messaging.destination.name") == {"transfer": 1}


def test_a_half_message_that_is_refused_is_an_error_with_its_class(
    memory: MemoryBroker, database: Database, collected: Collected
) -> None:
    producer, _ = services(collected, memory, database)
    with producer:
        memory.refuse_send()
        with pytest.raises(HalfMessageError), producer.transaction() as txn:
            txn.publish("transfer", {"id": 1})
    assert collected.span("send transfer").status.status_code is StatusCode.ERROR
    ((told, _),) = collected.points("messaging.client.operation.duration")
    assert told["error.type"] == "BrokerUnavailableError"
    assert not collected.points("messaging.client.sent.messages")


def test_gauges_say_what_health_says(memory: MemoryBroker, database: Database, collected: Collected) -> None:
    producer, consumer = services(collected, memory, database)
    consumer.handles("transfer")(lambda _txn, _delivery: None)
    with producer, consumer:
        collected.telemetry.watch(producer, group="g-transfer")
        collected.telemetry.watch(consumer, group="c-transfer")
        until(lambda: producer.health().registered and consumer.health().lag is not None, "a first look")
        assert collected.values("rmq_txn.producer.registered", "rmq_txn.group") == {"g-transfer": 1}
        assert collected.values("rmq_txn.producer.problems", "rmq_txn.group") == {
            "g-transfer": len(producer.health().problems)
        }
        assert collected.values("rmq_txn.consumer.lag", "rmq_txn.group") == {"c-transfer": 0}
        assert collected.values("rmq_txn.outbox.rows", "rmq_txn.group") == {
            "g-transfer": producer.health().outbox_rows
        }
        assert collected.values("rmq_txn.consumer.parked", "rmq_txn.group") == {"c-transfer": 0}


class LosesAcks(Hooks):
    """The first ack gets lost, so the broker delivers again."""

    def __init__(self) -> None:
        self.left = 1

    def deliver(self, group: str, delivery: Delivery, deliver: Deliver) -> Answer:
        answer = deliver(delivery)
        if self.left:
            self.left -= 1
            return Answer.RETRY
        return answer


def test_a_skipped_duplicate_is_told_from_a_delivery_that_was_handled(
    memory: MemoryBroker, database: Database, collected: Collected
) -> None:
    producer, consumer = services(collected, Wrapped(memory, LosesAcks()), database)
    consumer.handles("transfer")(lambda _txn, _delivery: None)
    collected.telemetry.watch(consumer, group="c-transfer")
    with producer, consumer:
        for number in range(2):
            with producer.transaction() as txn:
                txn.publish("transfer", {"number": number})
        memory.advance(60)
        assert collected.values("rmq_txn.consumer.duplicates", "rmq_txn.group") == {"c-transfer": 1}
    assert collected.values("messaging.client.consumed.messages", "rmq_txn.answer") == {"ack": 3}


def test_a_client_that_does_not_run_has_no_gauges_and_its_verdicts_begin_with_0(
    memory: MemoryBroker, database: Database, collected: Collected
) -> None:
    producer, _ = services(collected, memory, database)
    collected.telemetry.watch(producer, group="g-transfer")
    with producer:
        assert collected.values("rmq_txn.producer.database", "rmq_txn.group") == {"g-transfer": 1}
        assert collected.values("rmq_txn.producer.suspects", "rmq_txn.group") == {"g-transfer": 0}
    assert collected.points("rmq_txn.producer.database") == []
    counts = [point.value for _, point in collected.points("rmq_txn.verdicts")]
    assert counts == [0] * 6


@pytest.mark.parametrize("page", ["docs/telemetry.md", "docs/telemetry.zh-CN.md"])
def test_the_page_names_every_metric_and_its_example_runs(page: str, database: Database) -> None:
    text = text_of(page)
    meter = mock.create_autospec(metrics.Meter, instance=True)
    Gauges(meter)
    TelemetryHooks(trace.NoOpTracer(), meter)
    made = {call.args[0] for call in meter.mock_calls if call[0].startswith("create_")}
    assert made == set(re.findall(r"^\| `([a-z_.]+)` \|", text, re.MULTILINE))
    (example,) = blocks(text, "python")
    exec(compile(example, page, "exec"), {"database": database})


def test_without_an_sdk_messages_go_as_they_are(memory: MemoryBroker, database: Database) -> None:
    """The API alone makes spans that are not recorded, and no property."""
    traced = Telemetry(trace.NoOpTracerProvider()).broker(memory)
    got: list[Delivery] = []
    producer = TransactionProducer(group="g", broker=traced, database=database, topics=["transfer"])
    consumer = IdempotentConsumer(group="c", broker=traced, database=database)
    consumer.handles("transfer")(lambda _txn, delivery: got.append(delivery))
    with producer, consumer:
        with producer.transaction() as txn:
            txn.publish("transfer", {"id": 1})
        memory.settle()
    assert [delivery.json() for delivery in got] == [{"id": 1}]
    assert "traceparent" not in got[0].properties


def test_a_property_that_the_user_set_stays(
    memory: MemoryBroker, database: Database, collected: Collected
) -> None:
    """Somebody who carries a context of his own means it."""
    producer, consumer = services(collected, memory, database)
    seen: list[str] = []
    consumer.handles("transfer")(lambda _txn, delivery: seen.append(delivery.properties["traceparent"]))
    own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with producer, consumer:
        with producer.transaction() as txn:
            txn.publish("transfer", {"id": 1}, properties={"traceparent": own})
        memory.settle()
    assert seen == [own]
    assert trace_of(collected.span("process transfer")) == 0x0AF7651916CD43DD8448EB211C80319C
