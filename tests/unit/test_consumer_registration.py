"""What a consumer refuses when it is made, when handlers are registered, and when it starts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from rmq_txn import Database, Delivery, IdempotentConsumer, Transaction, TransactionProducer
from rmq_txn.aio import AsyncTransaction
from rmq_txn.consumer.routes import Routes
from rmq_txn.errors import BrokerUnavailableError, InvalidMessageError, LifecycleError, SettingsError
from rmq_txn.lifecycle import State
from tests.unit.fakes import URL, FakeDatabase, FakeTransport, fake_schema


def handler(_txn: Transaction, _delivery: Delivery) -> None:
    """Do nothing."""


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
    """Return a fake transport; the schema check is faked too."""
    fake_schema(monkeypatch)
    return FakeTransport()


def make(transport: FakeTransport, **settings: Any) -> IdempotentConsumer:
    """Return a consumer on fakes."""
    sound: dict[str, Any] = {"group": "points", "database": FakeDatabase().as_database}
    return IdempotentConsumer(broker=transport, **(sound | settings))


@pytest.mark.parametrize("group", ["", "a b", "g" * 121, "%RETRY%g", None])
def test_a_group_no_broker_can_carry_is_refused(transport: FakeTransport, group: Any) -> None:
    """When the consumer is made."""
    with pytest.raises(InvalidMessageError, match="group is"):
        make(transport, group=group)


@pytest.mark.parametrize("threads", [0, -1, 3, True, float("nan")])
def test_more_threads_than_connections_are_refused(transport: FakeTransport, threads: Any) -> None:
    """Each handler holds a connection; the others would time out waiting for one."""
    with pytest.raises(SettingsError, match=r"allowed is 1 to the database's pool_size \(2\)"):
        make(transport, threads=threads, database=Database.mysql(URL, pool_size=2))
    assert make(transport, threads=2, database=Database.mysql(URL, pool_size=2)).state is State.NEW


@pytest.mark.parametrize("max_attempts", [0, -1, 17, True, 2.0, None])
def test_attempts_beyond_those_of_the_broker_are_refused(transport: FakeTransport, max_attempts: Any) -> None:
    """The broker would bury the message first."""
    with pytest.raises(SettingsError, match=r"max_attempts is .+, allowed is 1 to 16: the broker gives up"):
        make(transport, max_attempts=max_attempts)
    for allowed in (1, 16):
        make(transport, max_attempts=allowed)


@pytest.mark.parametrize("days", [0, 3.2, -1, float("nan")])
def test_an_inbox_that_forgets_before_the_broker_does_is_refused(transport: FakeTransport, days: Any) -> None:
    """72 h in which the broker keeps a message, and 5 h of redelivery."""
    with pytest.raises(SettingsError, match=r"inbox_retention_days is .+, the least is 3\.21"):
        make(transport, inbox_retention_days=days)
    make(transport, inbox_retention_days=77 / 24)


def test_a_producer_on_another_database_is_refused(transport: FakeTransport) -> None:
    """Its messages and the inbox row would not be one transaction."""
    database = FakeDatabase().as_database
    producer = TransactionProducer(group="p", broker=transport, database=database, topics=["out"])
    with pytest.raises(SettingsError, match="producer has another Database"):
        make(transport, producer=producer)
    assert make(transport, producer=producer, database=database).state is State.NEW


@pytest.mark.parametrize("name", ["drain_seconds", "close_timeout_seconds"])
@pytest.mark.parametrize("value", [-1, float("nan"), True, "5"])
def test_a_time_to_wait_that_is_no_time_is_refused(transport: FakeTransport, name: str, value: Any) -> None:
    """When the consumer is made, not when it closes."""
    with pytest.raises(SettingsError, match=f"{name} is"):
        make(transport, **{name: value})


@pytest.mark.parametrize("topic", ["", "a b", "主题", None])
def test_a_topic_that_can_not_be_subscribed_to_is_refused(transport: FakeTransport, topic: Any) -> None:
    """Before the function is looked at."""
    with pytest.raises(InvalidMessageError, match="topic is"):
        make(transport).handles(topic)


@pytest.mark.parametrize("tag", ["", "a||b", "a | b", " a", None, 5])
def test_a_tag_that_can_not_be_subscribed_to_is_refused(transport: FakeTransport, tag: Any) -> None:
    """An expression is not a tag: register once for each."""
    with pytest.raises(InvalidMessageError, match="tag is"):
        make(transport).handles("transfer", tag=tag)


@pytest.mark.parametrize("tag", ["*", "paid"])
def test_a_second_handler_for_the_same_topic_and_tag_is_refused(transport: FakeTransport, tag: str) -> None:
    """One of them would silently never be called. The first stays."""
    consumer = make(transport)
    consumer.handles("transfer", tag=tag)(handler)
    with pytest.raises(SettingsError, match=r"topic 'transfer' with tag '.+' has a handler already"):
        consumer.handles("transfer", tag=tag)(lambda _txn, _delivery: None)
    consumer.handles("transfer", tag="other")(handler)
    consumer.handles("audit", tag=tag)(handler)
    consumer.start()
    consumer.close()
    assert transport.subscriptions == {"transfer": ("*",), "audit": ("*",)}


def test_what_is_ignored_and_what_is_handled_exclude_each_other(transport: FakeTransport) -> None:
    """One of two words about the same messages would silently not hold."""
    consumer = make(transport)
    consumer.handles("transfer", tag="paid")(handler)
    consumer.ignores("transfer", "noise")
    consumer.ignores("transfer", None)
    for tag, said in (("paid", "has a handler already"), ("noise", "is ignored already")):
        with pytest.raises(SettingsError, match=said):
            consumer.ignores("transfer", tag)
        with pytest.raises(SettingsError, match=said):
            consumer.handles("transfer", tag)(handler)
    with pytest.raises(InvalidMessageError, match="tag is"):
        consumer.ignores("transfer", "a || b")
    consumer.ignores("gone", "*")
    with consumer:
        assert consumer.topics == ("transfer",)
        with pytest.raises(LifecycleError, match="frozen"):
            consumer.ignores("transfer", "late")
        assert "handler" not in " ".join(consumer.health().problems)
    assert transport.subscriptions == {"transfer": ("*",)}
    with pytest.raises(LifecycleError):
        consumer.health()


@pytest.mark.parametrize(
    ("topic", "tag", "found"),
    [
        ("transfer", "paid", "paid"),
        ("transfer", "created", "any"),
        ("transfer", None, "any"),
        ("transfer", "*", "any"),
        ("transfer", "noise", "ignored"),
        ("audit", "paid", "paid"),
        ("audit", "created", "nobody"),
        ("audit", None, "ignored"),
        ("gone", "paid", "ignored"),
        ("gone", None, "ignored"),
        ("new", None, "nobody"),
    ],
)
def test_a_delivery_goes_to_the_handler_of_its_tag_or_to_that_of_any(
    topic: str, tag: str | None, found: str
) -> None:
    """What is ignored has no handler; what is neither is given back."""
    routes = Routes()
    named = {name: lambda _txn, _delivery, name=name: name for name in ("paid", "any")}
    routes.add("transfer", "paid", named["paid"])
    routes.add("transfer", "*", named["any"])
    routes.add("audit", "paid", named["paid"])
    routes.ignore("transfer", "noise")
    routes.ignore("audit", None)
    routes.ignore("gone", "*")
    delivery = Delivery(topic, b"x", "AC10", tag=tag)
    if found in named:
        assert routes.find(delivery) is named[found]
    else:
        assert routes.find(delivery) is None
        assert routes.ignores(delivery) is (found == "ignored")


def test_a_consumer_of_the_group_of_its_own_producer_is_refused(transport: FakeTransport) -> None:
    """Tools and brokers would take the clients of the one for those of the other."""
    database = FakeDatabase().as_database
    producer = TransactionProducer(group="points", broker=transport, database=database, topics=["out"])
    with pytest.raises(SettingsError, match="group 'points' is its producer's too"):
        make(transport, group="points", producer=producer, database=database)


def test_an_async_dedup_key_is_refused(transport: FakeTransport) -> None:
    """Its coroutine is no key."""

    async def key(_delivery: Delivery) -> str:
        return "k"

    with pytest.raises(SettingsError, match="dedup_key 'key' is an async function"):
        make(transport, dedup_key=key)


def test_a_generator_as_handler_is_refused(transport: FakeTransport) -> None:
    """It would return work nobody runs: acknowledged, remembered, never done."""

    def award(_txn: Transaction, _delivery: Delivery) -> Iterator[None]:
        """Never iterated."""
        yield

    async def stream(_txn: AsyncTransaction, _delivery: Delivery) -> AsyncIterator[None]:
        """Never iterated."""
        yield

    consumer = make(transport)
    with pytest.raises(SettingsError, match="handler 'award' is a generator function"):
        consumer.handles("transfer")(award)
    with pytest.raises(SettingsError, match="handler 'stream' is an async generator function"):
        consumer.handles("transfer")(stream)
    with pytest.raises(SettingsError, match="no handler is registered"):
        consumer.start()


def test_registering_returns_the_function_itself(transport: FakeTransport) -> None:
    """So that it can be called, and tested, as what it is."""
    assert make(transport).handles("transfer")(handler) is handler


def test_handlers_are_frozen_by_the_start(transport: FakeTransport) -> None:
    """The native client ignores later subscriptions."""
    consumer = make(transport)
    consumer.handles("transfer")(handler)
    consumer.start()
    with pytest.raises(LifecycleError, match=r"can't be added after start\(\): subscriptions are frozen"):
        consumer.handles("audit")
    consumer.close()
    with pytest.raises(LifecycleError, match="can't be added after start"):
        consumer.handles("audit")
    assert transport.subscriptions == {"transfer": ("*",)}


def test_a_start_without_handlers_is_refused_and_may_be_repeated(transport: FakeTransport) -> None:
    """Nothing was started, so a handler may still be added."""
    consumer = make(transport)
    with pytest.raises(SettingsError, match=r"no handler is registered; decorate a function with @consumer"):
        consumer.start()
    assert transport.life == []
    consumer.handles("transfer")(handler)
    consumer.start()
    assert consumer.state is State.RUNNING
    consumer.close()
    assert transport.life == ["start", "close"]


def test_registered_is_yes_no_or_an_error(transport: FakeTransport) -> None:
    """Brokers that can't be asked are not brokers that say no."""
    consumer = make(transport)
    consumer.handles("transfer")(handler)
    with pytest.raises(LifecycleError):
        consumer.is_registered()
    with consumer:
        for answer in (True, False):
            transport.registered = answer
            assert consumer.is_registered() is answer
        transport.registered = BrokerUnavailableError("away")
        with pytest.raises(BrokerUnavailableError, match="away"):
            consumer.is_registered()


def test_a_second_start_is_refused(transport: FakeTransport) -> None:
    """There is no restart."""
    consumer = make(transport)
    consumer.handles("transfer")(handler)
    with consumer, pytest.raises(LifecycleError, match="is running, it can be started once"):
        consumer.start()
    with pytest.raises(LifecycleError, match="is closed, it can be started once"):
        consumer.start()


def test_a_start_that_fails_closes_the_client(transport: FakeTransport) -> None:
    """The error arrives unchanged."""
    transport.problem = BrokerUnavailableError("away")
    consumer = make(transport)
    consumer.handles("transfer")(handler)
    with pytest.raises(BrokerUnavailableError, match="away"):
        consumer.start()
    assert transport.life == ["start", "close"]
    assert consumer.state is State.CLOSED


def test_start_and_close_are_refused_on_an_event_loop(transport: FakeTransport) -> None:
    """They block."""
    consumer = make(transport)
    consumer.handles("transfer")(handler)

    async def on_the_loop() -> None:
        with pytest.raises(LifecycleError, match=r"asyncio\.to_thread"):
            consumer.start()
        with pytest.raises(LifecycleError, match=r"asyncio\.to_thread"):
            consumer.close()

    asyncio.run(on_the_loop())
    assert transport.life == []


def test_run_needs_the_main_thread(transport: FakeTransport) -> None:
    """It handles signals, which Python gives to the main thread only."""
    consumer = make(transport)
    consumer.handles("transfer")(handler)
    said: list[str] = []

    def elsewhere() -> None:
        with pytest.raises(LifecycleError) as caught:
            consumer.run()
        said.append(str(caught.value))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(10)
    assert said == ["run() handles signals and needs the main thread; use start() and close()"]
    assert transport.life == []


def test_a_producer_lives_and_ends_with_its_consumer_unless_it_runs_already(
    transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the consumer's own start fails; one that ran before is its owner's to close."""
    database = FakeDatabase().as_database

    def both() -> tuple[TransactionProducer, IdempotentConsumer]:
        producer = TransactionProducer(group="p", broker=transport, database=database, topics=["out"])
        consumer = make(transport, producer=producer, database=database)
        consumer.handles("transfer")(handler)
        return producer, consumer

    producer, consumer = both()
    consumer.start()
    assert producer.state is State.RUNNING
    consumer.close()
    assert producer.state is State.CLOSED

    producer, consumer = both()
    with producer:
        consumer.start()
        consumer.close()
        assert producer.state is State.RUNNING

    producer, consumer = both()

    def no_client(*_args: object) -> None:
        assert producer.state is State.RUNNING
        raise BrokerUnavailableError("no answer")

    monkeypatch.setattr(transport, "consumer", no_client)
    with pytest.raises(BrokerUnavailableError):
        consumer.start()
    assert producer.state is State.CLOSED
