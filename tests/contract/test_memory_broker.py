"""The memory broker keeps the promises of `rmq_txn.transport`; its faults turn the suite red as well."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from rmq_txn.testing import MemoryBroker
from rmq_txn.testing.contract import Features, TransportContract

# A check-back within a second, a redelivery within one: a broker in a hurry, by a clock that runs by itself.
SPEED = 30.0


@pytest.fixture(scope="module")
def transport() -> Iterator[MemoryBroker]:
    """Return the transport under test."""
    with MemoryBroker(speed=SPEED) as broker:
        yield broker


@pytest.fixture(scope="module")
def new_topic(transport: MemoryBroker) -> Callable[[], str]:
    """Return a function that creates a topic and returns its name."""
    numbers = itertools.count(1)

    def create() -> str:
        name = f"topic-{next(numbers)}"
        transport.create_topic(name)
        return name

    return create


class TestMemoryBroker(TransportContract):
    """Every promise, none left out."""

    features = Features()

    def unreachable(self) -> MemoryBroker:
        """Return a broker that is away for good."""
        broker = MemoryBroker()
        broker.go_away()
        return broker
