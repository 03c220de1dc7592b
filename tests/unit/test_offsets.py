"""Where a group begins in each queue, by what its brokers say of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.remoting.answers import Master
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.new_group import pin_new_group
from rmq_txn.remoting.server import RemotingError

END = 100


@dataclass
class FakeBroker:
    """FAKE. Knows offsets, and fails at the write that it was told to."""

    address: str
    queues: int
    offsets: dict[int, int] = field(default_factory=dict)
    fails_at: int = -1
    asked: list[str] = field(default_factory=list)

    def consumer_offset(self, _group: str, _topic: str, queue: int) -> int | None:
        self.asked.append("offset")
        return self.offsets.get(queue)

    def max_offset(self, _topic: str, _queue: int) -> int:
        self.asked.append("end")
        return END

    def set_consumer_offset(self, _group: str, _topic: str, queue: int, offset: int) -> None:
        if queue == self.fails_at:
            raise RemotingError(1, "full")
        self.offsets[queue] = offset


class FakeCluster:
    """FAKE. Brokers by address."""

    def __init__(self, new_group_from: str, *brokers: FakeBroker) -> None:
        self.new_group_from = new_group_from
        self._brokers = {broker.address: broker for broker in brokers}

    def masters(self, _topic: str) -> list[Master]:
        return [Master(broker.address, broker.address, broker.queues) for broker in self._brokers.values()]

    def ask(self, address: str) -> FakeBroker:
        return self._brokers[address]


def pin(new_group_from: str, *brokers: FakeBroker) -> list[list[int]]:
    """Pin a group and return the offsets of each broker."""
    cluster = cast("ClusterSettings", cast(Any, FakeCluster(new_group_from, *brokers)))
    assert pin_new_group(cluster, "g", "t") == sum(broker.queues for broker in brokers)
    return [[broker.offsets[queue] for queue in range(broker.queues)] for broker in brokers]


@pytest.mark.parametrize(("new_group_from", "begins_at"), [("earliest", 0), ("latest", END)])
def test_a_group_without_any_offset_begins_where_it_was_told(new_group_from: str, begins_at: int) -> None:
    """In every queue of every broker."""
    assert pin(new_group_from, FakeBroker("a", 2), FakeBroker("b", 1)) == [[begins_at] * 2, [begins_at]]


@pytest.mark.parametrize("new_group_from", ["earliest", "latest"])
def test_a_new_queue_of_a_group_that_is_not_new_begins_at_its_beginning(new_group_from: str) -> None:
    """The group was away when the queue came; what it holds was never delivered."""
    assert pin(new_group_from, FakeBroker("a", 4, {0: 7, 1: 0})) == [[7, 0, 0, 0]]


def test_the_queues_of_a_second_broker_are_new_queues() -> None:
    """An offset on one broker makes the group known on all."""
    assert pin("latest", FakeBroker("a", 2), FakeBroker("b", 2, {1: 0})) == [[0, 0], [0, 0]]


def test_a_crash_in_the_middle_skips_nothing() -> None:
    """The next start can't tell the rest from queues that came later, and delivers again."""
    broker = FakeBroker("a", 3, fails_at=1)
    with pytest.raises(
        BrokerUnavailableError, match="broker a, asked where group 'g' stands in topic 't', says"
    ):
        pin("latest", broker)
    broker.fails_at = -1
    assert pin("latest", broker) == [[END, 0, 0]]


def test_the_ends_are_read_before_the_offsets() -> None:
    """Read after, an end might lie behind what was sent since another process of the group began."""
    broker = FakeBroker("a", 2)
    pin("latest", broker)
    assert broker.asked == ["end", "end", "offset", "offset"]
