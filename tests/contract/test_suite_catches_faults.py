"""
The suite itself is tested: broken wrappers of a transport must turn the matching test red.

Each fault breaks one promise; the same test is green on the same wrapper without the fault. On the real
transport and on the memory broker, whose own suite would prove nothing otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from rmq_txn import RocketMQ
from rmq_txn.testing import MemoryBroker
from rmq_txn.testing.contract import Desk, Features, TransportContract
from tests.contract.faulty import FAULTS, QUICK, Faulty, Test

IMPATIENT = Features(delivery_within_seconds=10.0, check_within_seconds=12.0, redelivery_within_seconds=12.0)
# A broker whose clock runs 100 times as fast: rounds of questions each 0.3 s, redeliveries after 0.1 s.
SPEED = 100.0
HURRIED = Features(delivery_within_seconds=3.0, check_within_seconds=3.0, redelivery_within_seconds=3.0)
RED = (AssertionError, pytest.fail.Exception)
TRANSPORTS = [pytest.param("native", marks=pytest.mark.servers), "memory"]

OpenDesk = Callable[[type[Faulty]], Desk]


@pytest.fixture
def open_desk(request: pytest.FixtureRequest, kind: str) -> Iterator[OpenDesk]:
    """Return a function that makes a desk over a faulty transport; it is closed at the end."""
    opened: list[Desk] = []
    memory = MemoryBroker(speed=SPEED)
    numbers = itertools.count(1)

    def memory_topic() -> str:
        name = f"topic-{next(numbers)}"
        memory.create_topic(name)
        return name

    def open_(fault: type[Faulty]) -> Desk:
        if kind == "memory":
            desk = Desk(fault(memory), memory_topic, HURRIED)
        else:
            stack = request.getfixturevalue("stack")
            desk = Desk(fault(RocketMQ(stack.name_server)), request.getfixturevalue("new_topic"), IMPATIENT)
        opened.append(desk)
        return desk

    with memory:
        yield open_
        for desk in opened:
            desk.resources.close()


@pytest.mark.parametrize(
    "kind", ["memory", pytest.param("native", marks=[pytest.mark.servers, pytest.mark.long])]
)
@pytest.mark.parametrize(("fault", "test", "said"), FAULTS, ids=[fault.__name__ for fault, *_ in FAULTS])
def test_a_fault_turns_its_test_red(open_desk: OpenDesk, fault: type[Faulty], test: Test, said: str) -> None:
    """By the assertion that is meant, not by an accident of the wrapper."""
    desk = open_desk(fault)
    with pytest.raises(RED, match=said):
        test(desk)


@pytest.mark.parametrize("kind", TRANSPORTS)
def test_without_a_fault_the_same_tests_are_green(open_desk: OpenDesk) -> None:
    """What turns them red is the fault, not the wrapper. (The slow ones are green in the other module.)"""
    desk = open_desk(Faulty)
    for test in QUICK:
        test(desk)


def test_every_fault_names_a_test_of_the_suite() -> None:
    """At least one fault for each group of promises: send, execute, check-back, delivery, content, life."""
    names = {test.__name__ for _, test, _ in FAULTS} - {"body_test"}
    assert names <= {name for name in dir(TransportContract) if name.startswith("test_")}
    assert len({fault for fault, *_ in FAULTS}) == len(FAULTS) >= 12
