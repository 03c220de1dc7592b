"""A producer client and a consumer client of one topic, scripted message by message."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rmq_txn.identity import PROPERTY_TXN_ID, new_txn_id
from rmq_txn.message import Delivery, Message, Outbound
from rmq_txn.testing.waiting import until
from rmq_txn.transport import Check, ConsumerTransport, ProducerTransport, Transport
from rmq_txn.verdict import Answer, Verdict

OWNER = "contract@tests"
CLOSE_SECONDS = 10.0
_AT_ONCE_SECONDS = 1.0
"""Shorter than the time after which any broker asks, and than the one after which a client sends again."""
_ATTEMPTS = 10


@dataclass(frozen=True)
class Features:
    """What the suite has to know of a transport; the defaults are those of the test servers."""

    delivery_within_seconds: float = 30.0
    check_within_seconds: float = 30.0
    """From an unknown verdict to the broker's question."""
    redelivery_within_seconds: float = 40.0
    """From a refused delivery to the next one."""
    user_properties: bool = True
    """Handlers get the user's properties, not only those of this package."""


class Desk:
    """
    Sends scripted half messages and remembers every check-back and delivery. Thread-safe.

    A message without a script is answered UNKNOWN when asked about, and ACK when delivered.
    """

    def __init__(self, transport: Transport, new_topic: Callable[[], str], features: Features) -> None:
        self.transport, self.features = transport, features
        self.topic = new_topic()
        self.resources = ExitStack()
        self.checks: list[Check] = []
        self.deliveries: list[Delivery] = []
        self._on_check: dict[str, Callable[[Check], Any]] = {}
        self._on_delivery: dict[str, Callable[[Delivery], Any]] = {}
        self._names = itertools.count(1)
        self.group = f"g-{self.topic}"
        self.producer = self.new_producer()
        self.consumer = self.new_consumer()

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self.resources.close()

    def new_group(self) -> str:
        """Return a group name nobody uses."""
        return f"g{next(self._names)}-{self.topic}"

    def new_producer(
        self, check: Callable[[Check], Any] | None = None, *, group: str | None = None
    ) -> ProducerTransport:
        """Start another producer client that its broker knows; it is closed with the desk."""
        return self._started(group or self.group, check, [self.topic])

    def new_silent_producer(
        self, check: Callable[[Check], Any] | None = None, *, group: str
    ) -> ProducerTransport:
        """Start another producer client that has sent nothing; it is closed with the desk."""
        return self._started(group, check, [])

    def _started(
        self, group: str, check: Callable[[Check], Any] | None, topics: Sequence[str]
    ) -> ProducerTransport:
        producer = self.transport.producer(group, check or self.answer_check)
        self.resources.callback(producer.close, CLOSE_SECONDS)
        producer.start(topics)
        return producer

    def new_consumer(
        self,
        deliver: Callable[[Delivery], Any] | None = None,
        *,
        tags: Sequence[str] = ("*",),
        threads: int = 4,
        group: str | None = None,
    ) -> ConsumerTransport:
        """Start another consumer client of the topic; it is closed with the desk."""
        consumer = self.transport.consumer(
            group or f"c-{self.topic}", {self.topic: tags}, threads, deliver or self.answer_delivery
        )
        self.resources.callback(consumer.close, 0.0, CLOSE_SECONDS)
        consumer.start()
        return consumer

    def message(
        self,
        body: bytes = b"contract",
        *,
        on_check: Callable[[Check], Any] | None = None,
        on_delivery: Callable[[Delivery], Any] | None = None,
        **more: Any,
    ) -> Outbound:
        """Make a message, and say how questions about it and deliveries of it are answered."""
        message = Message(self.topic, body, **more).outbound(txn_id=new_txn_id(), position=0, owner=OWNER)
        txn_id = message.properties[PROPERTY_TXN_ID]
        if on_check is not None:
            self._on_check[txn_id] = on_check
        if on_delivery is not None:
            self._on_delivery[txn_id] = on_delivery
        return message

    def send(self, message: Outbound, verdict: Verdict = Verdict.COMMIT) -> str:
        """Send a half message that gets `verdict`; return its id."""
        ids: list[str] = []

        def execute(message_id: str) -> Verdict:
            ids.append(message_id)
            return verdict

        self.producer.send_half(message, execute)
        assert len(ids) == 1
        return ids[0]

    def send_at_once(self, verdict: Verdict, **more: Any) -> tuple[Outbound, str]:
        """
        Make and send a message whose verdict came too soon for a question; return it with its id.

        On a busy machine a send may outlast the broker's patience: then it is right to ask, and a client may
        have stored the half message under a second id. Such a message proves nothing, another one is sent.
        """
        for _ in range(_ATTEMPTS):
            message = self.message(**more)
            began = time.monotonic()
            message_id = self.send(message, verdict)
            if time.monotonic() - began < _AT_ONCE_SECONDS:
                return message, message_id
        raise AssertionError(f"each of {_ATTEMPTS} sends took {_AT_ONCE_SECONDS:g} s or more")

    def answer_check(self, check: Check) -> Any:
        """Remember a question and answer it by the message's script."""
        self.checks.append(check)
        script = self._on_check.get(check.properties.get(PROPERTY_TXN_ID, ""))
        return script(check) if script else Verdict.UNKNOWN

    def answer_delivery(self, delivery: Delivery) -> Any:
        """Remember a delivery and answer it by the message's script."""
        self.deliveries.append(delivery)
        script = self._on_delivery.get(delivery.properties.get(PROPERTY_TXN_ID, ""))
        return script(delivery) if script else Answer.ACK

    def checks_of(self, message: Outbound) -> list[Check]:
        """Return the questions about a message so far, in order."""
        return [check for check in list(self.checks) if _same(check.properties, message)]

    def deliveries_of(self, message: Outbound) -> list[Delivery]:
        """Return the deliveries of a message so far, in order."""
        return [delivery for delivery in list(self.deliveries) if _same(delivery.properties, message)]

    def wait_shown(self, message: Outbound, message_id: str) -> None:
        """Wait until the brokers show a message; their index of ids may be a little behind."""
        until(
            lambda: self.producer.is_published(message, message_id),
            f"message {message_id} is shown",
            self.features.delivery_within_seconds,
        )

    def wait_delivered(self, *messages: Outbound, times: int = 1, seconds: float | None = None) -> None:
        """Wait until each message was delivered that often."""
        until(
            lambda: all(len(self.deliveries_of(message)) >= times for message in messages),
            f"{len(messages)} messages delivered {times} time(s)",
            seconds or self.features.delivery_within_seconds,
        )

    def wait_redelivered(self, *messages: Outbound, times: int = 1) -> None:
        """Wait until each message came back that often."""
        self.wait_delivered(*messages, times=times + 1, seconds=self.features.redelivery_within_seconds)

    def wait_asked(self, *messages: Outbound, times: int = 1) -> None:
        """Wait until the broker asked about each message that often."""
        until(
            lambda: all(len(self.checks_of(message)) >= times for message in messages),
            f"{len(messages)} messages asked about {times} time(s)",
            self.features.check_within_seconds * times,
        )


def _same(properties: Any, message: Outbound) -> bool:
    found = properties.get(PROPERTY_TXN_ID)
    return bool(found == message.properties[PROPERTY_TXN_ID])


class Script:
    """Answers in turn; the last answer stays. An exception among them is raised."""

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)
        self._lock = threading.Lock()

    def __call__(self, _question: object) -> Any:
        """Give the next answer."""
        with self._lock:
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer
