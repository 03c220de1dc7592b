"""Gauges and counters of what `health()` of each watched client says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from opentelemetry import metrics

from rmq_txn.consumer.health import ConsumerHealth
from rmq_txn.errors import LifecycleError
from rmq_txn.producer.health import ProducerHealth

Health = ProducerHealth | ConsumerHealth
Observe = Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]

# Name, unit, field of health(), what it is.
_PRODUCER: Final = (
    ("rmq_txn.producer.registered", "1", "registered", "1: the brokers of all topics know the producer"),
    ("rmq_txn.producer.problems", "{problem}", "problems", "sentences in problems of health()"),
    (
        "rmq_txn.producer.clock_skew",
        "s",
        "clock_skew_seconds",
        "this machine's clock ahead of the database's",
    ),
    ("rmq_txn.producer.database", "1", "database_answers", "1: the last look could work on our tables"),
    ("rmq_txn.producer.suspects", "{client}", "suspects", "clients of the group that nobody can vouch for"),
    ("rmq_txn.outbox.rows", "{row}", "outbox_rows", "copies in the outbox of the database"),
    ("rmq_txn.outbox.oldest", "s", "oldest_row_seconds", "age of the oldest copy"),
)
_PRODUCER_COUNTS: Final = (
    ("rmq_txn.producer.foreign_checks", "{check}", "foreign_checks", "check-backs for another owner"),
    ("rmq_txn.producer.forged_checks", "{check}", "forged_checks", "check-backs without a right stamp"),
)
_CONSUMER: Final = (
    ("rmq_txn.consumer.registered", "1", "registered", "1: the brokers of all topics know the consumer"),
    ("rmq_txn.consumer.problems", "{problem}", "problems", "sentences in problems of health()"),
    ("rmq_txn.consumer.database", "1", "database_answers", "1: the last look could read our tables"),
    ("rmq_txn.consumer.lag", "{message}", "lag", "messages that wait for the group on the brokers"),
    ("rmq_txn.consumer.held", "{message}", "held", "deliveries that wait for the database"),
    ("rmq_txn.consumer.oldest_held", "s", "oldest_held_seconds", "for how long the oldest of them waits"),
    ("rmq_txn.consumer.failing", "{message}", "failing", "messages that failed and are delivered again"),
    (
        "rmq_txn.consumer.parked",
        "{message}",
        "parked",
        "messages that failed for good, for a person to look at",
    ),
)
_CONSUMER_COUNTS: Final = (
    ("rmq_txn.consumer.duplicates", "{message}", "duplicates", "deliveries skipped, handled before"),
)


class Gauges:
    """The gauges of one meter, and what clients count themselves. Thread-safe."""

    def __init__(self, meter: metrics.Meter) -> None:
        self._watched: tuple[tuple[str, Callable[[], Health]], ...] = ()
        for kind, gauges in ((ProducerHealth, _PRODUCER), (ConsumerHealth, _CONSUMER)):
            for name, unit, field, description in gauges:
                meter.create_observable_gauge(name, [self._observe(kind, field)], unit, description)
        for kind, counts in ((ProducerHealth, _PRODUCER_COUNTS), (ConsumerHealth, _CONSUMER_COUNTS)):
            for name, unit, field, description in counts:
                meter.create_observable_counter(name, [self._observe(kind, field)], unit, description)

    def add(self, group: str, health: Callable[[], Health]) -> None:
        """Watch a client."""
        self._watched = (*self._watched, (group, health))

    def _observe(self, kind: type[Health], field: str) -> Observe:
        def observe(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
            for group, read in self._watched:
                try:
                    health = read()
                except LifecycleError:
                    continue  # not started, or closed: nobody looks
                value = getattr(health, field) if isinstance(health, kind) else None
                if value is not None:  # a lag that is not known is no lag of 0
                    number = len(value) if isinstance(value, tuple) else value
                    yield metrics.Observation(number, {"rmq_txn.group": group})

        return observe
