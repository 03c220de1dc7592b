"""
Traces and metrics by OpenTelemetry: hooks around the transport, and gauges of what `health()` says.

    from rmq_txn.telemetry import Telemetry

    telemetry = Telemetry()
    broker = telemetry.broker(RocketMQ("127.0.0.1:9876"))
    producer = TransactionProducer(group="account-service", broker=broker, ...)
    telemetry.watch(producer, group="account-service")

Only the API of OpenTelemetry is used: `pip install 'rmq-txn[opentelemetry]'`. Where spans and metrics go is
the application's business: its SDK, its exporters. Who does not import this package pays nothing for it.
The names of all spans and metrics: docs/telemetry.md. Why hooks: docs/decisions/0057.
"""

from __future__ import annotations

from typing import Protocol

from opentelemetry import metrics, trace

from rmq_txn.consumer.health import ConsumerHealth
from rmq_txn.producer.health import ProducerHealth
from rmq_txn.producer.producer import TransactionProducer
from rmq_txn.telemetry.gauges import Gauges
from rmq_txn.telemetry.hooks import TelemetryHooks
from rmq_txn.transport import Transport
from rmq_txn.transport.wrapped import Wrapped

__all__ = ["Telemetry"]

_SCOPE = "rmq_txn"


class _Producer(Protocol):
    def health(self) -> ProducerHealth: ...


class _Consumer(Protocol):
    def health(self) -> ConsumerHealth: ...


class Telemetry:
    """
    Spans and metrics of the clients of one service. Thread-safe; make one in each process, after it forked.

    The trace context travels in message properties (`traceparent`), so a delivery continues the trace of the
    request that published its message, and a check-back is linked to the half message it asks about.

    Not promised: what the relay publishes again begins a trace of its own, for the context is in the half
    message only; `rmq_txn.txn_id` names the transaction in all of them. A killed process ends no span.

    Args:
        tracer_provider: None: the global one.
        meter_provider: None: the global one.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        self._hooks = TelemetryHooks(trace.get_tracer(_SCOPE, tracer_provider=tracer_provider), meter)
        self._gauges = Gauges(meter)

    def broker(self, broker: Transport) -> Transport:
        """Return a transport whose steps are traced and counted; give it to producers and consumers."""
        return Wrapped(broker, self._hooks)

    def watch(self, client: _Producer | _Consumer, *, group: str) -> None:
        """
        Report what `health()` of a producer or a consumer says, whenever metrics are collected.

        It asks nobody, so a collection costs no request. Watch each client once. While a client does not
        run it has no gauges.

        Args:
            client: a `TransactionProducer` or an `IdempotentConsumer`.
            group: its group, the attribute that tells its gauges from others.
        """
        if isinstance(client, TransactionProducer):
            self._hooks.expect(group)
        self._gauges.add(group, client.health)
