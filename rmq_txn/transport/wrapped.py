"""
A transport around another one, with a hook for each step: for traces, timelines and faults.

A hook wraps its step, so it sees what went in and what came out, and may delay it, refuse it, change
it, or end the process before or after it. `rmq_txn` itself needs none of this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rmq_txn.message import Delivery, Outbound
from rmq_txn.transport import (
    Check,
    Checker,
    ConsumerTransport,
    Deliver,
    Execute,
    Lag,
    ProducerTransport,
    TagFilter,
    Transport,
)
from rmq_txn.verdict import Answer, Verdict


class Hooks:
    """
    What happens around each step; as it stands, nothing. Override what you need.

    Each hook but `ended` gets the step as its last argument and must call it, once, unless it means
    to refuse. What it returns is what the other side gets; what it raises is raised as if the step
    had. So a hook that only watches must not raise, and must hand on what the step returned.

    Called from all threads that use the transport, several at once. The step runs on the calling
    thread: what a hook puts into context variables is there while the step runs. `group` is the group
    of the client.

    Not promised: that a hook is told of what the broker does. It sees what this process sends and
    gets; a process that is killed is told nothing.
    """

    def start(self, group: str, start: Callable[[], None]) -> None:
        """
        Start a client: what it needs to register with the brokers of its topics is a part of it.

        Check-backs and deliveries may come before `start` returned.
        """
        start()

    def send_half(self, group: str, message: Outbound, send: Callable[[Outbound], None]) -> None:
        """
        Send a half message, run the local transaction, send its end: `execute` is called inside.

        The properties of `message` tell its transaction (docs/glossary.md). Another message may be sent in
        its place, one with a property more for example; properties of this package must stay.

        Raises:
            BrokerUnavailableError: by `send`, the broker did not take it and `execute` did not run.
        """
        send(message)

    def execute(self, group: str, message: Outbound, message_id: str, execute: Execute) -> Verdict:
        """
        Run the local transaction: the half message is stored, under `message_id`.

        Returning UNKNOWN in place of a verdict loses it: the broker has to ask. Never return COMMIT
        for another verdict: consumers would get what no transaction stands behind.
        """
        return execute(message_id)

    def ended(self, group: str, message: Outbound, message_id: str, verdict: Verdict) -> None:
        """
        Hear that a verdict was sent to the broker: one-way, so nobody knows whether it has it.

        UNKNOWN, if what ran raised. Called inside `send_half`, before it returns.
        """

    def check(self, group: str, check: Check, answer: Checker) -> Verdict:
        """Answer a check-back, on a thread of the transport. Same rule for COMMIT as in `execute`."""
        return answer(check)

    def send_plain(
        self, group: str, message: Outbound, message_id: str, send: Callable[[Outbound, str], None]
    ) -> None:
        """Send a message that consumers see at once: a copy, whose half message the broker gave up."""
        send(message, message_id)

    def deliver(self, group: str, delivery: Delivery, deliver: Deliver) -> Answer:
        """
        Handle a delivery, on a thread of the transport.

        Returning RETRY in place of ACK lets the broker deliver a handled message again. Never return
        ACK for RETRY: the message would be lost.
        """
        return deliver(delivery)

    def is_published(
        self, group: str, message: Outbound, message_id: str, ask: Callable[[Outbound, str], bool]
    ) -> bool:
        """Ask the brokers whether consumers see a message; where they do, its copy is not sent."""
        return ask(message, message_id)

    def is_registered(self, group: str, topic: str, ask: Callable[[str], bool]) -> bool:
        """Ask the brokers of a topic whether they know the client."""
        return ask(topic)

    def registered_clients(
        self, group: str, topic: str, ask: Callable[[str], Mapping[str, frozenset[str]]]
    ) -> Mapping[str, frozenset[str]]:
        """Ask the brokers of a topic which producers of the group they know."""
        return ask(topic)

    def close(self, group: str, close: Callable[[], None]) -> None:
        """Close a client; running calls are waited for, so other hooks are called meanwhile."""
        close()


class Wrapped:
    """
    A transport whose steps pass through hooks. Thread-safe, if the hooks are.

    `Wrapped(Wrapped(broker, faults), traces)`: the outer one sees what the inner one did.

    Args:
        inner: the transport, such as `RocketMQ("127.0.0.1:9876")`.
        hooks: called around its steps.
    """

    def __init__(self, inner: Transport, hooks: Hooks) -> None:
        self._inner = inner
        self._hooks = hooks

    def producer(self, group: str, check: Checker) -> ProducerTransport:
        """See `Transport.producer`."""
        hooks = self._hooks

        def checked(question: Check) -> Verdict:
            return hooks.check(group, question, check)

        return _Producer(self._inner.producer(group, checked), group, hooks)

    def consumer(
        self, group: str, subscriptions: Mapping[str, Sequence[str]], threads: int, deliver: Deliver
    ) -> ConsumerTransport:
        """See `Transport.consumer`."""
        hooks = self._hooks

        def delivered(delivery: Delivery) -> Answer:
            return hooks.deliver(group, delivery, deliver)

        return _Consumer(self._inner.consumer(group, subscriptions, threads, delivered), group, hooks)


class _Producer:
    """See `ProducerTransport`."""

    def __init__(self, inner: ProducerTransport, group: str, hooks: Hooks) -> None:
        self._inner = inner
        self._group = group
        self._hooks = hooks

    @property
    def instance(self) -> str:
        return self._inner.instance

    def start(self, topics: Sequence[str] = ()) -> None:
        self._hooks.start(self._group, lambda: self._inner.start(topics))

    def send_half(self, message: Outbound, execute: Execute) -> None:
        self._hooks.send_half(self._group, message, lambda sent: self._send_half(sent, execute))

    def _send_half(self, message: Outbound, execute: Execute) -> None:
        stored: str | None = None
        said = told = Verdict.UNKNOWN

        def executed(message_id: str) -> Verdict:
            nonlocal stored, said
            stored = message_id
            said = self._hooks.execute(self._group, message, message_id, execute)
            return said

        try:
            self._inner.send_half(message, executed)
            told = said
        finally:
            if stored is not None:
                self._hooks.ended(self._group, message, stored, told)

    def send_plain(self, message: Outbound, message_id: str) -> None:
        self._hooks.send_plain(self._group, message, message_id, self._inner.send_plain)

    def is_published(self, message: Outbound, message_id: str) -> bool:
        return self._hooks.is_published(self._group, message, message_id, self._inner.is_published)

    def is_registered(self, topic: str) -> bool:
        return self._hooks.is_registered(self._group, topic, self._inner.is_registered)

    def registered_clients(self, topic: str) -> Mapping[str, frozenset[str]]:
        return self._hooks.registered_clients(self._group, topic, self._inner.registered_clients)

    def close(self, timeout_seconds: float) -> None:
        self._hooks.close(self._group, lambda: self._inner.close(timeout_seconds))


class _Consumer:
    """See `ConsumerTransport`."""

    def __init__(self, inner: ConsumerTransport, group: str, hooks: Hooks) -> None:
        self._inner = inner
        self._group = group
        self._hooks = hooks

    def start(self) -> None:
        self._hooks.start(self._group, self._inner.start)

    def is_registered(self, topic: str) -> bool:
        return self._hooks.is_registered(self._group, topic, self._inner.is_registered)

    def lag(self) -> Lag:
        return self._inner.lag()

    def filters(self) -> tuple[TagFilter, ...]:
        return self._inner.filters()

    def close(self, drain_seconds: float, timeout_seconds: float) -> None:
        self._hooks.close(self._group, lambda: self._inner.close(drain_seconds, timeout_seconds))
