"""What a closing helper waits for, and in which order it ends things; on fakes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rmq_txn import IdempotentConsumer, Message, Transaction, TransactionProducer
from rmq_txn.errors import LifecycleError
from rmq_txn.lifecycle import State
from tests.kit.wait import until
from tests.unit.fakes import FakeDatabase, FakeTransport, fake_schema

FORMS = ["A", "B"]


class Rig:
    """A started producer on fakes, and transactions that stay inside until they are told to leave."""

    def __init__(self, **settings: Any) -> None:
        self.transport, self.database = FakeTransport(), FakeDatabase()
        self.producer = TransactionProducer(
            group="g",
            broker=self.transport,
            database=self.database.as_database,
            topics=["transfer"],
            **settings,
        )
        self.inside, self.leave = threading.Event(), threading.Event()
        self.outcomes: list[object] = []
        self.threads: list[threading.Thread] = []

    def run(self, call: Callable[[], object]) -> threading.Thread:
        """Run it on a thread of its own; its outcome is remembered."""

        def keep() -> None:
            try:
                self.outcomes.append(call())
            except BaseException as error:  # noqa: BLE001 - looked at by the test
                self.outcomes.append(error)

        thread = threading.Thread(target=keep)
        self.threads.append(thread)
        thread.start()
        return thread

    def business(self, _txn: Transaction) -> None:
        """Be inside a transaction for as long as the test wants."""
        self.inside.set()
        assert self.leave.wait(30)

    def transaction(self, form: str) -> object:
        """Run one transaction with one message."""
        if form == "B":
            return self.producer.send_in_transaction(Message("transfer", b"x"), self.business)
        with self.producer.transaction() as txn:
            self.business(txn)
            txn.publish("transfer", b"x")
        return txn.receipt


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rig]]:
    """Return a function that makes a rig; its threads are ended."""
    fake_schema(monkeypatch)
    made: list[Rig] = []

    def make_(**settings: Any) -> Rig:
        made.append(Rig(**settings))
        made[-1].producer.start()
        return made[-1]

    yield make_
    for rig in made:
        rig.leave.set()
        for thread in rig.threads:
            thread.join(30)
        rig.producer.close()


@pytest.mark.parametrize("form", FORMS)
def test_a_closing_producer_waits_for_its_transactions(make: Callable[..., Rig], form: str) -> None:
    """The client is closed under none of them; a new one is refused meanwhile."""
    rig = make()
    transaction = rig.run(lambda: rig.transaction(form))
    assert rig.inside.wait(30)
    closing = rig.run(rig.producer.close)
    until(lambda: rig.producer.state is State.CLOSING, "closing has begun")
    with pytest.raises(LifecycleError, match="is closing"):
        rig.producer.transaction().__enter__()
    closing.join(0.3)
    assert closing.is_alive()
    assert rig.transport.life == ["start"]
    rig.leave.set()
    transaction.join(30)
    closing.join(30)
    assert "COMMIT" in rig.database.statements
    assert rig.transport.life == ["start", "close"]
    assert not [outcome for outcome in rig.outcomes if isinstance(outcome, BaseException)]


def test_a_closing_producer_does_not_wait_for_ever(
    make: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    """And says what becomes of the transaction that still runs."""
    rig = make(close_timeout_seconds=0.1)
    rig.run(lambda: rig.transaction("A"))
    assert rig.inside.wait(30)
    rig.producer.close()
    assert rig.transport.life == ["start", "close"]
    assert "closing although a transaction still runs; check-back will decide it" in caplog.text


@pytest.mark.parametrize("form", FORMS)
def test_a_transaction_that_failed_is_waited_for_no_longer(make: Callable[..., Rig], form: str) -> None:
    """Whatever it ended with."""
    rig = make(close_timeout_seconds=60.0)
    for error in (ZeroDivisionError, KeyboardInterrupt, SystemExit):

        def fail(_txn: Transaction, error: type[BaseException] = error) -> None:
            raise error

        rig.business = fail  # type: ignore[method-assign]
        with pytest.raises(error):
            rig.transaction(form)
    closing = rig.run(rig.producer.close)
    closing.join(30)
    assert rig.producer.state is State.CLOSED


def test_the_outbox_is_left_alone_before_its_client_is_closed(make: Callable[..., Rig]) -> None:
    """Else the relay would publish through a client that is gone."""
    before = set(threading.enumerate())
    rig = make()
    (upkeep,) = (each for each in set(threading.enumerate()) - before if each.name == "rmq_txn outbox")
    alive: list[bool] = []
    assert rig.producer._parts is not None
    client = rig.producer._parts.client
    close = client.close
    client.close = lambda *a: (alive.append(upkeep.is_alive()), close(*a))  # type: ignore
    rig.producer.close()
    assert alive == [False]


class Consuming:
    """A consumer on fakes whose producer is one, too."""

    def __init__(self, *, started_before: bool) -> None:
        self.life: list[str] = []
        database = FakeDatabase().as_database
        producing, consuming = Labelled(self.life, "producer"), Labelled(self.life, "consumer")
        self.producer = TransactionProducer(group="p", broker=producing, database=database, topics=["out"])
        if started_before:
            self.producer.start()
        self.consumer = IdempotentConsumer(
            group="c", broker=consuming, database=database, producer=self.producer
        )
        self.consumer.handles("in")(lambda _txn, _delivery: None)
        self.consuming = consuming


class Labelled(FakeTransport):
    """FAKE. Writes its life into a list that it shares, under a name."""

    def __init__(self, life: list[str], name: str) -> None:
        super().__init__()

        class Life(list[str]):
            def append(self, event: str) -> None:
                life.append(f"{event} {name}")

        self.life = Life()


def test_a_consumer_is_closed_before_the_producer_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last handlers publish with it."""
    fake_schema(monkeypatch)
    rig = Consuming(started_before=False)
    rig.consumer.start()
    assert rig.producer.state is State.RUNNING
    rig.consumer.close()
    assert rig.life == ["start producer", "start consumer", "close consumer", "close producer"]
    assert rig.producer.state is State.CLOSED


def test_a_consumer_leaves_a_producer_that_ran_before_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others use it."""
    fake_schema(monkeypatch)
    rig = Consuming(started_before=True)
    rig.consumer.start()
    rig.consumer.close()
    assert rig.producer.state is State.RUNNING
    rig.producer.close()


def test_a_consumer_that_can_not_start_closes_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The producer, too, and in the right order."""
    fake_schema(monkeypatch)
    rig = Consuming(started_before=False)
    rig.consuming.problem = OSError("away")
    with pytest.raises(OSError, match="away"):
        rig.consumer.start()
    assert rig.life == ["start producer", "start consumer", "close consumer", "close producer"]
    assert rig.producer.state is State.CLOSED
