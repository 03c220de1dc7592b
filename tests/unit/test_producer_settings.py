"""What a producer refuses, and that it refuses before anything is sent or written."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rmq_txn import Message, Transaction, TransactionProducer
from rmq_txn.errors import (
    BrokerUnavailableError,
    HalfMessageError,
    InvalidMessageError,
    LifecycleError,
    SettingsError,
)
from rmq_txn.lifecycle import State
from rmq_txn.producer.txlog import MAX_MESSAGES
from rmq_txn.producer.upkeep import OutboxTimes
from tests.unit.fakes import FakeDatabase, FakeTransport, fake_schema


class Rig:
    """A producer on fakes."""

    def __init__(self) -> None:
        self.transport, self.database = FakeTransport(), FakeDatabase()
        self.producer = self.make()

    def make(self, **settings: Any) -> TransactionProducer:
        sound: dict[str, Any] = {"group": "g", "topics": ["transfer", "audit"]}
        return TransactionProducer(
            broker=self.transport, database=self.database.as_database, **(sound | settings)
        )

    def start(self) -> TransactionProducer:
        self.producer.start()
        return self.producer

    def nothing_happened(self) -> bool:
        """Whether nothing was sent since start and nothing written but a rollback."""
        return not self.transport.sent and set(self.database.statements) <= {"ROLLBACK"}


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Return a rig; its producer is closed."""
    fake_schema(monkeypatch)
    rig = Rig()
    yield rig
    rig.producer.close()


def never(_txn: Transaction) -> None:
    """Be work that must not run."""
    raise AssertionError("work was called")


@pytest.mark.parametrize("value", [-1, float("nan"), True, "5"])
def test_a_close_timeout_that_is_no_time_is_refused(rig: Rig, value: Any) -> None:
    """When the producer is made, not when it closes."""
    with pytest.raises(SettingsError, match="close_timeout_seconds is"):
        rig.make(close_timeout_seconds=value)


@pytest.mark.parametrize("group", ["", "a b", "g" * 121, "%RETRY%g", None, 5])
def test_a_group_no_broker_can_carry_is_refused(rig: Rig, group: Any) -> None:
    """When the producer is made, not when it starts."""
    with pytest.raises(InvalidMessageError, match="group is"):
        rig.make(group=group)


@pytest.mark.parametrize(
    ("topics", "error", "said"),
    [
        ("transfer", SettingsError, "topics is 'transfer', allowed is a list of at least one topic"),
        ([], SettingsError, "topics is []"),
        ((), SettingsError, "topics is ()"),
        (None, SettingsError, "topics is None"),
        (["transfer", "a b"], InvalidMessageError, "topic is 'a b'"),
        ([b"transfer"], InvalidMessageError, "topic is b'transfer'"),
    ],
)
def test_topics_that_are_no_list_of_topics_are_refused(
    rig: Rig, topics: Any, error: type[Exception], said: str
) -> None:
    """A text is a sequence of one-letter topics to Python; that is never meant."""
    with pytest.raises(error) as caught:
        rig.make(topics=topics)
    assert said in str(caught.value)


@pytest.mark.parametrize("days", [0, -1, 3.2, float("nan"), True])
def test_a_log_retention_shorter_than_the_brokers_memory_is_refused(rig: Rig, days: Any) -> None:
    """A pruned row and a late question together would fence a committed transaction."""
    with pytest.raises(SettingsError, match=r"log_retention_days is .*, the least is 3\.21"):
        rig.make(log_retention_days=days)


def test_the_shortest_log_retention_is_77_hours(rig: Rig) -> None:
    """72 hours on the broker and 5 of redelivery."""
    assert rig.make(log_retention_days=77 / 24).state is State.NEW


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), True, "600"])
def test_a_check_budget_that_is_no_duration_is_refused(rig: Rig, seconds: Any) -> None:
    """And so are the other durations of the outbox; each is named."""
    with pytest.raises(SettingsError, match=r"check_budget_seconds is .*, allowed is a number above 0"):
        rig.make(check_budget_seconds=seconds)
    with pytest.raises(SettingsError, match=r"settle_seconds is .*, allowed is a number above 0"):
        OutboxTimes(settle_seconds=seconds)


def test_health_is_asked_of_a_running_producer_only(rig: Rig) -> None:
    """It asks nobody: what it says was found by the producer's own thread."""
    with pytest.raises(LifecycleError):
        rig.producer.health()
    health = rig.start().health()
    assert (health.registered, health.outbox_rows, health.oldest_row_seconds) == (True, 0, 0.0)
    assert health.problems == ()


def test_registered_is_yes_no_or_an_error(rig: Rig) -> None:
    """Brokers that can't be asked are not brokers that say no."""
    with pytest.raises(LifecycleError):
        rig.producer.is_registered()
    producer = rig.start()
    for answer in (True, False):
        rig.transport.registered = answer
        assert producer.is_registered() is answer
    rig.transport.registered = BrokerUnavailableError("away")
    with pytest.raises(BrokerUnavailableError, match="away"):
        producer.is_registered()


def test_making_a_producer_touches_neither_broker_nor_database(rig: Rig) -> None:
    """Only `start` does."""
    assert rig.nothing_happened()
    assert rig.transport.life == []


def test_start_registers_with_the_brokers_of_every_topic_once(rig: Rig) -> None:
    """A topic named twice is one topic."""
    rig.producer = rig.make(topics=["transfer", "audit", "transfer"])
    rig.start()
    assert rig.transport.topics == ("transfer", "audit")
    assert rig.producer.state is State.RUNNING


def test_a_start_that_fails_closes_the_client(rig: Rig) -> None:
    """And the producer is closed for good."""
    rig.transport.problem = BrokerUnavailableError("away")
    with pytest.raises(BrokerUnavailableError, match="away"):
        rig.producer.start()
    assert rig.transport.life == ["start", "close"]
    with pytest.raises(LifecycleError, match="is closed, it can be started once"):
        rig.producer.start()


def test_neither_form_works_before_start(rig: Rig) -> None:
    """The text says what to do."""
    with pytest.raises(LifecycleError, match=r"is new, transaction\(\) needs it running; call start\(\)"):
        rig.producer.transaction().__enter__()
    with pytest.raises(LifecycleError, match=r"is new, send_in_transaction\(\) needs it running"):
        rig.producer.send_in_transaction(Message("transfer", b"x"), never)
    assert rig.nothing_happened()


def test_neither_form_works_after_close(rig: Rig) -> None:
    """Nothing reaches a closed client."""
    producer = rig.start()
    producer.close()
    with pytest.raises(LifecycleError, match="group 'g' is closed"):
        producer.transaction().__enter__()
    with pytest.raises(LifecycleError, match="group 'g' is closed"):
        producer.send_in_transaction(Message("transfer", b"x"), never)
    assert rig.nothing_happened()


def test_neither_form_works_on_an_event_loop(rig: Rig) -> None:
    """They would block it; the text names the way out."""
    producer = rig.start()

    async def on_the_loop() -> None:
        with pytest.raises(LifecycleError, match=r"use async with atransaction\(\)"):
            producer.transaction().__enter__()
        with pytest.raises(LifecycleError, match=r"use await asend_in_transaction\(\)"):
            producer.send_in_transaction(Message("transfer", b"x"), never)

    asyncio.run(on_the_loop())
    assert rig.nothing_happened()


def test_a_nested_transaction_is_refused_in_all_four_combinations(rig: Rig) -> None:
    """It would commit on its own although it looks like a part of the outer one."""
    producer = rig.start()
    message = Message("transfer", b"x")

    def nest(txn: Transaction) -> None:
        for inner in (
            lambda: producer.transaction().__enter__(),
            lambda: producer.send_in_transaction(message, never),
        ):
            with pytest.raises(LifecycleError, match=f"inside transaction {txn.txn_id} of the same producer"):
                inner()

    with producer.transaction() as txn:
        nest(txn)
    assert rig.nothing_happened() or rig.database.statements == ["COMMIT"]
    assert rig.transport.sent == []
    producer.send_in_transaction(message, nest)
    assert len(rig.transport.sent) == 1


def test_after_a_refused_nested_transaction_the_next_one_works(rig: Rig) -> None:
    """The mark of the outer one is taken away, also when it raised."""
    producer = rig.start()
    with pytest.raises(ZeroDivisionError), producer.transaction():
        raise ZeroDivisionError
    with producer.transaction() as txn:
        txn.execute("SELECT 1")
    assert txn.receipt.txn_id == txn.txn_id


def test_two_producers_may_be_nested(rig: Rig) -> None:
    """They are two databases or two groups; the refusal is about one producer."""
    outer = rig.start()
    with rig.make(group="other") as inner, outer.transaction() as one, inner.transaction() as two:
        assert one.txn_id != two.txn_id


def test_another_thread_with_a_copied_context_is_inside_too(rig: Rig) -> None:
    """`asyncio.to_thread` copies the context; what it runs is part of the block."""
    producer = rig.start()
    said: list[str] = []

    def inner() -> None:
        with pytest.raises(LifecycleError) as caught:
            producer.transaction().__enter__()
        said.append(str(caught.value))

    with producer.transaction() as txn:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(inner,))
        thread.start()
        thread.join(10)
    assert len(said) == 1
    assert txn.txn_id in said[0]


def test_an_unknown_topic_is_refused_in_both_forms(rig: Rig) -> None:
    """The producer is not registered with its brokers, so nobody would be asked about it."""
    producer = rig.start()
    said = r"topic 'other' is not among the topics of this producer \(transfer, audit\); add it to topics="
    with pytest.raises(SettingsError, match=said), producer.transaction() as txn:
        txn.publish("other", b"x")
    with pytest.raises(SettingsError, match=said):
        producer.send_in_transaction([Message("transfer", b"x"), Message("other", b"x")], never)
    assert rig.nothing_happened()


def test_a_message_that_can_not_be_sent_is_refused_where_it_is_published(rig: Rig) -> None:
    """Not at the end of the block; the business code before it is rolled back."""
    producer = rig.start()
    with pytest.raises(InvalidMessageError, match="body is 0 bytes"), producer.transaction() as txn:
        txn.publish("transfer", b"")
    with pytest.raises(InvalidMessageError, match="is reserved"), producer.transaction() as txn:
        txn.publish("transfer", b"x", properties={"DELAY": "3"})
    assert rig.nothing_happened()
    assert rig.database.statements == ["ROLLBACK", "ROLLBACK"]


def test_a_transaction_has_a_limited_number_of_messages(rig: Rig) -> None:
    """Their ids share one column, their sends one native stack."""
    producer = rig.start()
    said = f"more than {MAX_MESSAGES} messages"

    def publish_too_many() -> None:
        with producer.transaction() as txn:
            for _ in range(MAX_MESSAGES + 1):
                txn.publish("transfer", b"x")

    with pytest.raises(InvalidMessageError, match=said):
        publish_too_many()
    with pytest.raises(InvalidMessageError, match=said):
        producer.send_in_transaction([Message("transfer", b"x")] * (MAX_MESSAGES + 1), never)
    assert rig.nothing_happened()
    with producer.transaction() as txn:
        for _ in range(MAX_MESSAGES):
            txn.publish("transfer", b"x")
    assert len(txn.receipt.message_ids) == MAX_MESSAGES


def test_form_b_without_a_message_is_refused(rig: Rig) -> None:
    """That is a plain transaction, and has its own method."""
    producer = rig.start()
    with pytest.raises(InvalidMessageError, match="no message given; form B needs at least one"):
        producer.send_in_transaction([], never)
    assert rig.nothing_happened()


def test_async_work_is_refused(rig: Rig) -> None:
    """COMMIT and the message would follow although none of it ran."""
    producer = rig.start()

    async def debit(_txn: Transaction) -> None:
        """Never awaited."""

    with pytest.raises(SettingsError, match="work 'debit' is an async function"):
        producer.send_in_transaction(Message("transfer", b"x"), debit)
    assert rig.nothing_happened()


@pytest.mark.parametrize("lazy", [lambda _txn: never_awaited(), lambda txn: (txn for _ in "ab")])
def test_work_that_returns_without_having_run_is_rolled_back(rig: Rig, lazy: Any) -> None:
    """A lambda that returns a coroutine can't be told from others before it was called."""
    producer = rig.start()
    with pytest.raises(SettingsError, match=r"work returned a .+: that work has not run"):
        producer.send_in_transaction(Message("transfer", b"x"), lazy)
    assert "ROLLBACK" in rig.database.statements
    assert "COMMIT" not in rig.database.statements


async def never_awaited() -> None:
    """Be handed back."""


def test_work_of_form_b_can_not_publish(rig: Rig) -> None:
    """Its half messages are sent already; the refusal rolls back."""
    producer = rig.start()
    with pytest.raises(LifecycleError, match="this transaction can't publish"):
        producer.send_in_transaction(
            Message("transfer", b"x"), lambda txn: txn.publish("transfer", b"another")
        )
    assert "ROLLBACK" in rig.database.statements
    assert "COMMIT" not in rig.database.statements


def test_a_transaction_is_of_no_use_after_its_block(rig: Rig) -> None:
    """Its connection belongs to somebody else by then."""
    producer = rig.start()
    with producer.transaction() as txn:
        pass
    for use in (
        lambda: txn.execute("SELECT 1"),
        lambda: txn.executemany("SELECT %s", [(1,)]),
        txn.fetchone,
        txn.fetchall,
        txn.cursor,
        lambda: txn.connection,
        lambda: txn.publish("transfer", b"x"),
    ):
        with pytest.raises(LifecycleError, match=f"transaction {txn.txn_id} is committed; use it inside"):
            use()


def test_there_is_no_receipt_before_the_commit(rig: Rig) -> None:
    """Neither inside the block nor after a block that raised."""
    producer = rig.start()
    with producer.transaction() as txn, pytest.raises(LifecycleError, match="it has no receipt"):
        _ = txn.receipt
    assert txn.receipt.txn_id == txn.txn_id
    with pytest.raises(ZeroDivisionError), producer.transaction() as raised:
        raise ZeroDivisionError
    with pytest.raises(LifecycleError, match=f"transaction {raised.txn_id} has not committed"):
        _ = raised.receipt


def test_a_broker_that_takes_no_message_leaves_nothing_written(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In either form; the error is one a caller can retry on."""
    producer = rig.start()

    def refuse(*_: object) -> None:
        raise BrokerUnavailableError("no route")

    assert producer._parts is not None
    monkeypatch.setattr(producer._parts.client, "send_half", refuse)
    with (
        pytest.raises(HalfMessageError, match="nothing was committed: no route"),
        producer.transaction() as txn,
    ):
        txn.publish("transfer", b"x")
    with pytest.raises(HalfMessageError, match="nothing was committed: no route"):
        producer.send_in_transaction(Message("transfer", b"x"), never)
    assert rig.nothing_happened()
