"""Transports wrapped from outside: what a crash, a duplicate or a slow executor does to the real one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence

from rmq_txn.message import Delivery, Outbound
from rmq_txn.transport import (
    Check,
    Checker,
    ConsumerTransport,
    Deliver,
    Execute,
    ProducerTransport,
    Transport,
    wrapped,
)
from rmq_txn.verdict import Answer, Verdict


def kill_9_myself() -> None:
    """End this process as `kill -9` does: nothing after this line runs."""
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


class Wrapped(wrapped.Wrapped):
    """
    A transport whose callables pass through functions. By default it changes nothing.

    Args:
        shows_messages: False: as brokers without an index of ids. Then each copy that is left to the relay
            is published again, whether consumers have the message or not.
    """

    def __init__(
        self,
        inner: Transport,
        *,
        around_execute: Callable[[Execute], Execute] = lambda execute: execute,
        around_check: Callable[[Checker], Checker] = lambda check: check,
        around_deliver: Callable[[Deliver], Deliver] = lambda deliver: deliver,
        on_send: Callable[[Outbound], object] = lambda _message: None,
        on_send_plain: Callable[[Outbound], object] = lambda _message: None,
        shows_messages: bool = True,
    ) -> None:
        super().__init__(inner, _Functions(around_execute, on_send, on_send_plain, shows_messages))
        self._around_check = around_check
        self._around_deliver = around_deliver

    def producer(self, group: str, check: Checker) -> ProducerTransport:
        """See Transport."""
        return super().producer(group, self._around_check(check))

    def consumer(
        self, group: str, subscriptions: Mapping[str, Sequence[str]], threads: int, deliver: Deliver
    ) -> ConsumerTransport:
        """See Transport."""
        return super().consumer(group, subscriptions, threads, self._around_deliver(deliver))


class _Functions(wrapped.Hooks):
    def __init__(
        self,
        around_execute: Callable[[Execute], Execute],
        on_send: Callable[[Outbound], object],
        on_send_plain: Callable[[Outbound], object],
        shows_messages: bool,
    ) -> None:
        self._shows_messages = shows_messages
        self._around_execute = around_execute
        self._on_send = on_send
        self._on_send_plain = on_send_plain

    def send_half(self, group: str, message: Outbound, send: Callable[[Outbound], None]) -> None:
        self._on_send(message)
        send(message)

    def execute(self, group: str, message: Outbound, message_id: str, execute: Execute) -> Verdict:
        return self._around_execute(execute)(message_id)

    def send_plain(
        self, group: str, message: Outbound, message_id: str, send: Callable[[Outbound, str], None]
    ) -> None:
        self._on_send_plain(message)
        send(message, message_id)

    def is_published(
        self, group: str, message: Outbound, message_id: str, ask: Callable[[Outbound, str], bool]
    ) -> bool:
        return self._shows_messages and ask(message, message_id)


class DeliverTwice:
    """Gives every message back to the broker once after it was handled: a real redelivery."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.answers: dict[str, list[Answer]] = {}

    def __call__(self, deliver: Deliver) -> Deliver:
        """Wrap the consumer's callable; see `Wrapped(around_deliver=...)`."""

        def twice(delivery: Delivery) -> Answer:
            answer = deliver(delivery)
            with self._lock:
                seen = self.answers.setdefault(delivery.message_id, [])
                seen.append(answer)
                return Answer.RETRY if seen == [Answer.ACK] else answer

        return twice

    def delivered_twice(self) -> int:
        """Return how many messages were handled to the end at least twice."""
        with self._lock:
            return sum(seen.count(Answer.ACK) >= 2 for seen in self.answers.values())


class RecordChecks:
    """Remembers each check-back and how it was answered."""

    def __init__(self) -> None:
        self.seen: list[tuple[Check, Verdict]] = []

    def __call__(self, check: Checker) -> Checker:
        """Wrap the producer's checker; see `Wrapped(around_check=...)`."""

        def recorded(question: Check) -> Verdict:
            verdict = check(question)
            self.seen.append((question, verdict))
            return verdict

        return recorded

    def verdicts(self, txn_id: str) -> list[Verdict]:
        """Return the answers given for one transaction, in order."""
        return [verdict for check, verdict in self.seen if check.properties.get("rmq_txn_id") == txn_id]


def never_answers(execute: Execute) -> Execute:
    """Run the local transaction and lose its verdict: the broker has to ask."""

    def unknown(message_id: str) -> Verdict:
        execute(message_id)
        return Verdict.UNKNOWN

    return unknown
