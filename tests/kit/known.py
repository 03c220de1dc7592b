"""Bare producers that their broker knows, so that it asks them at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from rmq_txn.transport import ProducerTransport

CLOSE_SECONDS = 10.0


def known_producer(
    make: Callable[[], ProducerTransport], topic: str, resources: ExitStack
) -> ProducerTransport:
    """Start a bare producer that the brokers of a topic know; it is closed with `resources`."""
    producer = make()
    resources.callback(producer.close, CLOSE_SECONDS)
    producer.start([topic])
    return producer
