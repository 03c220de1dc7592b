"""A wrapped transport: nothing changes by itself, and each step can be seen, changed, refused, lost."""

from __future__ import annotations

import contextvars
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints
from unittest.mock import Mock, create_autospec

import pytest

from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.message import Delivery, Outbound
from rmq_txn.transport import (
    Check,
    Checker,
    ConsumerTransport,
    Deliver,
    Execute,
    ProducerTransport,
    Transport,
)
from rmq_txn.transport.wrapped import Hooks, Wrapped
from rmq_txn.verdict import Answer, Verdict

MESSAGE = Outbound(topic="t", body=b"{}", key="k", tag=None, properties={"rmq_txn_id": "x"})
DELIVERY = Delivery(topic="t", body=b"{}", message_id="M")
QUESTION = Check("M", {})


class Inner:
    """A broker without one: it stores each half message as "M" and remembers what it was told."""

    def __init__(self) -> None:
        self.sent: list[Outbound] = []
        self.told: list[Verdict] = []
        self.clients: list[Mock] = []

    def producer(self, group: str, check: Checker) -> Mock:
        """See Transport."""
        client = create_autospec(ProducerTransport, instance=True)
        client.send_half.side_effect = self._send_half
        client.check = check
        self.clients.append(client)
        return client

    def consumer(self, group: str, subscriptions: Any, threads: int, deliver: Deliver) -> Mock:
        """See Transport."""
        client = create_autospec(ConsumerTransport, instance=True)
        client.made_with = (group, subscriptions, threads)
        client.deliver = deliver
        self.clients.append(client)
        return client

    def _send_half(self, message: Outbound, execute: Execute) -> None:
        self.sent.append(message)
        try:
            self.told.append(execute("M"))
        except BaseException:
            self.told.append(Verdict.UNKNOWN)
            raise


class Recorder(Hooks):
    """Notes when each step begins and ends, under a name."""

    def __init__(self, name: str, steps: list[str]) -> None:
        self.name, self.steps = name, steps

    def __getattribute__(self, step: str) -> Any:
        """Record every hook, also one that is added after this test."""
        hook = super().__getattribute__(step)
        if step not in HOOKS:
            return hook

        def recorded(*arguments: Any) -> Any:
            self.steps.append(f"{self.name} {step}")
            result = hook(*arguments)
            self.steps.append(f"{self.name} {step}: {getattr(result, 'name', result)}")
            return result

        return recorded


HOOKS = frozenset(name for name, _ in inspect.getmembers(Hooks, inspect.isfunction) if name[0] != "_")


def members(protocol: type) -> dict[str, Any]:
    """Return what a client of the seam has."""
    return {name: member for name, member in vars(protocol).items() if not name.startswith("_")}


@pytest.mark.parametrize("protocol", [ProducerTransport, ConsumerTransport])
def test_every_member_of_the_seam_is_handed_on_as_it_came(protocol: type) -> None:
    """Also one that is added to the seam after this test: arguments, by order or by name, and result."""
    inner = Inner()
    transport = Wrapped(inner, Hooks())
    client: Any = (
        transport.producer("g", Mock())
        if protocol is ProducerTransport
        else transport.consumer("g", {}, 1, Mock())
    )
    made = inner.clients[0]
    assert members(protocol)
    for name, member in members(protocol).items():
        if isinstance(member, property):
            assert getattr(client, name) is getattr(made, name)
            continue
        if name == "send_half":  # its `execute` is wrapped, see the other tests
            client.send_half(MESSAGE, lambda _id: Verdict.COMMIT)
            assert (inner.sent, inner.told) == ([MESSAGE], [Verdict.COMMIT])
            continue
        names = [each for each in inspect.signature(member).parameters if each != "self"]
        arguments = [object() for _ in names]
        returned = getattr(client, name)(**dict(zip(names, arguments, strict=True)))
        getattr(made, name).assert_called_once_with(*arguments)
        if get_type_hints(member)["return"] is not type(None):
            assert returned is getattr(made, name).return_value, name


def test_a_consumer_is_made_as_it_was_asked_for() -> None:
    """Group, subscriptions and threads are no step."""
    inner = Inner()
    Wrapped(inner, Hooks()).consumer("g", {"t": ("*",)}, 3, Mock())
    assert inner.clients[0].made_with == ("g", {"t": ("*",)}, 3)


def test_each_step_passes_the_outer_hooks_first() -> None:
    """On the way in, and last on the way out: so a trace around a fault sees the fault."""
    steps: list[str] = []
    inner = Inner()
    transport: Transport = Wrapped(Wrapped(inner, Recorder("b", steps)), Recorder("a", steps))
    transport.producer("g", Mock()).send_half(MESSAGE, lambda _id: Verdict.COMMIT)
    assert steps == [
        *("a send_half", "b send_half"),
        *("b execute", "a execute", "a execute: COMMIT", "b execute: COMMIT"),
        *("b ended", "b ended: None", "b send_half: None"),
        *("a ended", "a ended: None", "a send_half: None"),
    ]


def test_every_hook_is_called() -> None:
    """None is forgotten: by a producer, its check-back, and a consumer."""
    steps: list[str] = []
    inner = Inner()
    transport = Wrapped(inner, Recorder("a", steps))
    producer = transport.producer("g", lambda _question: Verdict.ROLLBACK)
    producer.start(["t"])
    producer.send_half(MESSAGE, lambda _id: Verdict.COMMIT)
    producer.send_plain(MESSAGE, "M")
    producer.is_published(MESSAGE, "M")
    assert inner.clients[0].check(QUESTION) is Verdict.ROLLBACK
    producer.is_registered("t")
    producer.registered_clients("t")
    producer.close(1.0)
    consumer = transport.consumer("g", {}, 1, lambda _delivery: Answer.ACK)
    consumer.start()
    assert inner.clients[1].deliver(DELIVERY) is Answer.ACK
    consumer.is_registered("t")
    consumer.close(1.0, 1.0)
    begun = [step for step in steps if ":" not in step]
    assert {step.removeprefix("a ") for step in begun} == HOOKS
    assert [begun.count(f"a {step}") for step in ("start", "is_registered", "close")] == [2, 2, 2]


def test_a_lost_verdict_is_unknown_to_the_broker_and_told_so() -> None:
    """The local transaction ran and committed."""
    ended: list[Verdict] = []

    class Loses(Hooks):
        def execute(self, group: str, message: Outbound, message_id: str, execute: Execute) -> Verdict:
            assert execute(message_id) is Verdict.COMMIT
            return Verdict.UNKNOWN

        def ended(self, group: str, message: Outbound, message_id: str, verdict: Verdict) -> None:
            ended.append(verdict)

    inner = Inner()
    Wrapped(inner, Loses()).producer("g", Mock()).send_half(MESSAGE, lambda _id: Verdict.COMMIT)
    assert (inner.told, ended) == ([Verdict.UNKNOWN], [Verdict.UNKNOWN])


def test_what_execute_raises_passes_the_hooks_and_ends_as_unknown() -> None:
    """As the seam promises; a hook that failed is no other case."""
    ended: list[Verdict] = []

    class Notes(Hooks):
        def ended(self, group: str, message: Outbound, message_id: str, verdict: Verdict) -> None:
            ended.append(verdict)

    inner = Inner()
    with pytest.raises(KeyboardInterrupt):
        Wrapped(inner, Notes()).producer("g", Mock()).send_half(MESSAGE, Mock(side_effect=KeyboardInterrupt))
    assert (inner.told, ended) == ([Verdict.UNKNOWN], [Verdict.UNKNOWN])


def test_a_refused_half_message_runs_nothing_and_ends_nothing() -> None:
    """By a hook, or by the broker: both raise the same."""
    refusal = BrokerUnavailableError("no broker")

    class Refuses(Hooks):
        def send_half(self, group: str, message: Outbound, send: Callable[[Outbound], None]) -> None:
            raise refusal

    steps: list[str] = []
    execute = Mock()
    inner = Inner()
    with pytest.raises(BrokerUnavailableError):
        Wrapped(inner, Refuses()).producer("g", Mock()).send_half(MESSAGE, execute)
    assert inner.sent == []
    producer = Wrapped(inner, Recorder("a", steps)).producer("g", Mock())
    inner.clients[-1].send_half.side_effect = refusal
    with pytest.raises(BrokerUnavailableError):
        producer.send_half(MESSAGE, execute)
    execute.assert_not_called()
    assert steps == ["a send_half"]


def test_a_trace_can_travel_with_the_message_and_the_calling_context() -> None:
    """A property more on what is sent; a context variable that the local transaction sees."""
    span = contextvars.ContextVar("span", default="none")

    class Traces(Hooks):
        def send_half(self, group: str, message: Outbound, send: Callable[[Outbound], None]) -> None:
            token = span.set(f"publish of {group}")
            try:
                properties = {**message.properties, "traceparent": "00-1"}
                send(dataclasses.replace(message, properties=properties))
            finally:
                span.reset(token)

    inner = Inner()
    seen: list[str] = []

    def execute(_message_id: str) -> Verdict:
        seen.append(span.get())
        return Verdict.COMMIT

    Wrapped(inner, Traces()).producer("g", Mock()).send_half(MESSAGE, execute)
    assert inner.sent[0].properties == {"rmq_txn_id": "x", "traceparent": "00-1"}
    assert seen == ["publish of g"]


def test_a_withheld_ack_is_a_retry_to_the_broker() -> None:
    """The handler's effect is committed; the message comes again."""

    class Withholds(Hooks):
        def deliver(self, group: str, delivery: Delivery, deliver: Deliver) -> Answer:
            assert deliver(delivery) is Answer.ACK
            return Answer.RETRY

    inner = Inner()
    Wrapped(inner, Withholds()).consumer("g", {}, 1, lambda _delivery: Answer.ACK)
    assert inner.clients[0].deliver(DELIVERY) is Answer.RETRY


def test_a_send_inside_a_local_transaction_is_told_apart() -> None:
    """Form A nests them: each end is told with its own message and verdict."""
    ended: list[tuple[str | None, Verdict]] = []

    class Notes(Hooks):
        def ended(self, group: str, message: Outbound, message_id: str, verdict: Verdict) -> None:
            ended.append((message.key, verdict))

    producer = Wrapped(Inner(), Notes()).producer("g", Mock())

    def outer(_message_id: str) -> Verdict:
        producer.send_half(dataclasses.replace(MESSAGE, key="inner"), lambda _id: Verdict.ROLLBACK)
        return Verdict.COMMIT

    producer.send_half(MESSAGE, outer)
    assert ended == [("inner", Verdict.ROLLBACK), ("k", Verdict.COMMIT)]
