"""Which clients brokers would ask: a broker that can't say so is silence, never an empty answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rmq_txn.clock import DatabaseClock
from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.producer.undisturbed_time import SentVerdicts
from rmq_txn.producer.upkeep import OutboxTimes, Upkeep, undisturbed_time
from rmq_txn.remoting.answers import ClientConnection, RouteBroker, TopicRoute
from rmq_txn.remoting.server import RemotingError
from rmq_txn.transport.native_producer import NativeProducer
from rmq_txn.verdict import Verdict
from tests.unit.fakes import FakeDatabase


class Cluster:
    """FAKE. The brokers of a topic by name, each with its master's clients, an error, or no master."""

    def __init__(self, **brokers: Any) -> None:
        self.brokers = brokers

    def route(self, _topic: str) -> TopicRoute:
        """Say who there is."""
        brokers = (
            RouteBroker(name, "c", {} if found is None else {0: name}) for name, found in self.brokers.items()
        )
        return TopicRoute(tuple(brokers), ())

    def ask(self, address: str) -> Any:
        """Return a client of that master."""

        def producer_connections(_group: str) -> list[ClientConnection]:
            found = self.brokers[address]
            if isinstance(found, Exception):
                raise found
            return [ClientConnection(name, "127.0.0.1:1", "CPP", 1) for name in found]

        return SimpleNamespace(producer_connections=producer_connections)


def client(**brokers: Any) -> NativeProducer:
    """Make a client, never started, of a fake cluster."""
    broker: Any = Cluster(**brokers)
    return NativeProducer(broker, "g", lambda _check: Verdict.UNKNOWN)


def test_every_broker_of_the_topic_is_asked() -> None:
    """Each asks on its own: a sibling may be registered with one of them only."""
    found = client(one=["a"], two=["a", "b"]).registered_clients("t")
    assert found == {"one at one": {"a"}, "two at two": {"a", "b"}}


@pytest.mark.parametrize(
    ("brokers", "said"),
    [
        ({"one": ["a"], "two": None}, "broker two of topic 't' has no master now"),
        ({"one": ["a"], "two": RemotingError(1, "no")}, "do not say which clients they know"),
        ({}, "topic 't' has no broker now"),
    ],
    ids=["no master", "refused", "no broker"],
)
def test_a_broker_that_can_not_say_it_is_silence(brokers: dict[str, Any], said: str) -> None:
    """Left out, it would be taken for one that knows no sick sibling, while it goes on asking them later."""
    with pytest.raises(BrokerUnavailableError, match=said):
        client(**brokers).registered_clients("t")


def unstarted_upkeep() -> Upkeep:
    """One whose thread does not run and whose client is asked nothing."""
    nobody: Any = None
    undisturbed = undisturbed_time(OutboxTimes())
    oracle: Any = SimpleNamespace(longest_seconds=75.0)
    return Upkeep(
        FakeDatabase().as_database,
        "id",
        "g",
        ["t"],
        DatabaseClock(),
        600.0,
        OutboxTimes(),
        undisturbed,
        SentVerdicts(undisturbed, 600.0),
        oracle,
        nobody,
    )


def test_a_broker_that_leaves_the_route_disturbs() -> None:
    """Its half messages wait for its return, or are lost with it; verdicts sent to it prove nothing."""
    upkeep = unstarted_upkeep()
    upkeep._look_for_lost_brokers({"one", "two"})
    calm = upkeep._undisturbed.tick()
    upkeep._look_for_lost_brokers({"one", "two"})
    assert upkeep._undisturbed.tick() == calm
    upkeep._look_for_lost_brokers({"one"})
    assert upkeep._undisturbed.tick() > calm
