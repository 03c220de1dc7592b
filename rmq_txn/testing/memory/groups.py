"""Messages as the memory broker holds them, and the clients and groups that it knows. Values and records."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field

from rmq_txn.message import Delivery, Outbound
from rmq_txn.transport import Deliver, TagFilter

_MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""`maxMessageSize` of a broker."""


def new_message_id() -> str:
    """Make an id as clients do: 32 hex characters in capitals, another one for each attempt to send."""
    return uuid.uuid4().hex.upper()


def unix_milliseconds() -> int:
    """
    Return what messages are stamped with: this machine's time, not the virtual one.

    Ages go by the database's clock, which nobody advances (docs/decisions/0040).
    """
    return int(time.time() * 1000)


def too_large(message: Outbound) -> str:
    """Say why a broker refuses a message for its size; empty if it does not."""
    size = len(message.body) + sum(
        len(f"{name}{value}".encode()) for name, value in message.properties.items()
    )
    if size <= _MAX_MESSAGE_BYTES:
        return ""
    return (
        f"the memory broker refuses the message: body and properties are {size} bytes, the limit is "
        f"{_MAX_MESSAGE_BYTES}"
    )


@dataclass(eq=False, slots=True)
class Stored:
    """
    One stored message.

    Attributes:
        group: the producer group that sent it.
        stored_at: seconds of the virtual clock.
        checks: questions asked about it, while it is a half message.
    """

    message: Outbound
    message_id: str
    group: str
    stored_at: float
    born_milliseconds: int = field(default_factory=unix_milliseconds)
    checks: int = 0


@dataclass(eq=False, slots=True)
class Waiting:
    """One message that waits for one consumer group; `redeliveries` of it were made so far."""

    stored: Stored
    redeliveries: int = 0
    stored_milliseconds: int = field(default_factory=unix_milliseconds)

    def delivery(self) -> Delivery:
        """Return it as a handler gets it."""
        message = self.stored.message
        return Delivery(
            topic=message.topic,
            body=message.body,
            message_id=self.stored.message_id,
            tag=message.tag,
            key=message.key,
            redeliveries=self.redeliveries,
            born_milliseconds=self.stored.born_milliseconds,
            properties=dict(message.properties),
            stored_milliseconds=self.stored_milliseconds,
        )


@dataclass(eq=False, slots=True)
class ProducerMember:
    """A started producer client; `questions` wait for its one check-back thread."""

    group: str
    instance: str
    closing: threading.Event = field(default_factory=threading.Event)
    questions: deque[Stored] = field(default_factory=deque)
    asking: int = 0


@dataclass(eq=False, slots=True)
class ConsumerMember:
    """
    A consumer client; `running` of its deliveries are being handled.

    Attributes:
        subscriptions: topic to tags; None: all of them.
    """

    group: str
    subscriptions: Mapping[str, frozenset[str] | None]
    deliver: Deliver
    instance: str
    closing: threading.Event = field(default_factory=threading.Event)
    running: int = 0

    def wants(self, message: Outbound) -> bool:
        """Whether the tag of a message of its topics is among those that it asked for."""
        tags = self.subscriptions[message.topic]
        return tags is None or message.tag in tags

    def filters(self, topics: Container[str]) -> Iterator[TagFilter]:
        """Tell what it leaves out of some topics."""
        for topic, tags in self.subscriptions.items():
            if tags is not None and topic in topics:
                yield TagFilter(self.instance, "PYTHON", topic, " || ".join(sorted(tags)))


@dataclass(eq=False, slots=True)
class ConsumerGroup:
    """
    What one consumer group has before it.

    Attributes:
        topics: those that a member ever subscribed to.
        ready: what its members may take now.
        later: the virtual time at which each redelivery or delayed delivery comes.
        running: deliveries that are being handled.
        consumed: how many deliveries ended.
        buried: its dead letters.
    """

    name: str
    topics: set[str] = field(default_factory=set)
    ready: deque[Waiting] = field(default_factory=deque)
    later: dict[Waiting, float] = field(default_factory=dict)
    running: dict[Waiting, ConsumerMember] = field(default_factory=dict)
    consumed: int = 0
    buried: list[Delivery] = field(default_factory=list)
