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
)
from rmq_txn.verdict import Answer, Verdict


def kill_9_myself() -> None:
    """End this process as `kill -9` does: nothing after this line runs."""
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


class Wrapped:
    """A transport whose callables pass through hooks. By default it changes nothing."""

    def __init__(
        self,
        inner: Transport,
        *,
        around_execute: Callable[[Execute], Execute] = lambda execute: execute,
        around_check: Callable[[Checker], Checker] = lambda check: check,
        around_deliver: Callable[[Deliver], Deliver] = lambda deliver: deliver,
        on_send: Callable[[Outbound], object] = lambda _message: None,
        on_send_plain: Callable[[Outbound], object] = lambda _message: None,
    ) -> None:
        self._inner = inner
        self._around_execute = around_execute
        self._around_check = around_check
        self._around_deliver = around_deliver
        self._on_send = on_send
        self._on_send_plain = on_send_plain

    def producer(self, group: str, check: Checker) -> ProducerTransport:
        """See Transport."""
        return _WrappedProducer(self._inner.producer(group, self._around_check(check)), self)

    def consumer(
        self, group: str, subscriptions: Mapping[str, Sequence[str]], threads: int, deliver: Deliver
    ) -> ConsumerTransport:
        """See Transport."""
        return self._inner.consumer(group, subscriptions, threads, self._around_deliver(deliver))


class _WrappedProducer:
    def __init__(self, inner: ProducerTransport, hooks: Wrapped) -> None:
        self._inner = inner
        self._hooks = hooks

    def start(self, topics: Sequence[str] = ()) -> None:
        self._inner.start(topics)

    def send_half(self, message: Outbound, execute: Execute) -> None:
        self._hooks._on_send(message)
        self._inner.send_half(message, self._hooks._around_execute(execute))

    def send_plain(self, message: Outbound, message_id: str) -> None:
        self._hooks._on_send_plain(message)
        self._inner.send_plain(message, message_id)

    def is_registered(self, topic: str) -> bool:
        return self._inner.is_registered(topic)

    @property
    def instance(self) -> str:
        return self._inner.instance

    def registered_clients(self, topic: str) -> Mapping[str, frozenset[str]]:
        return self._inner.registered_clients(topic)

    def close(self, timeout_seconds: float) -> None:
        self._inner.close(timeout_seconds)


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
