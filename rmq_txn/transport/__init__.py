"""
The seam between this package and a broker client: two protocols whose prose is the contract.

A transport knows no database. What it is given are callables that never raise on purpose; what it
promises is written beside each method, and `tests/contract` runs the promises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rmq_txn.message import Delivery, Outbound
from rmq_txn.remoting.members import TagFilter as TagFilter  # for who writes a transport
from rmq_txn.verdict import Answer, Verdict


@dataclass(frozen=True, slots=True)
class Check:
    """One check-back question of the broker."""

    message_id: str
    """The id of the asked half message (`UNIQ_KEY`)."""
    properties: Mapping[str, str]
    """The properties of this package found on it, and `traceparent`; a missing one is absent."""


Execute = Callable[[str], Verdict]
"""Runs the local transaction; gets the id under which the broker stored the half message."""
Checker = Callable[[Check], Verdict]
"""Answers a check-back; any doubt is UNKNOWN."""
Deliver = Callable[[Delivery], Answer]
"""Handles one delivery; ACK only when its effect is committed."""


class ProducerTransport(Protocol):
    """
    Sends messages.

    Every method but `start`, `close`, `send_plain` and `is_published` may be called from any thread.
    """

    @property
    def instance(self) -> str:
        """How the id ends under which brokers know this client: unique, and known before the start."""

    def start(self, topics: Sequence[str] = ()) -> None:
        """
        Start the client. Once, in the process that will use it.

        Args:
            topics: when this returns, the brokers of these topics know this client, and so would
                ask it; those of others may only after its first send, and then some time.

        Raises:
            BrokerUnavailableError: no name server address can be reached, or the broker of a topic
                took no half message.
            NativeLibraryError: the client library is missing or fails its self-check.
        """

    def send_half(self, message: Outbound, execute: Execute) -> None:
        """
        Store a half message; then call `execute` with its id, and end it with the verdict returned.

        `execute` runs on the calling thread, at most once, before this method returns. It may call
        `send_half` again. If it raises, the verdict is UNKNOWN and the exception is raised here,
        unchanged. The end of a transaction is one-way: returning does *not* promise that the broker
        has the verdict.

        Raises:
            BrokerUnavailableError: the broker did not take the message; `execute` did not run. The
                broker may have stored it all the same and will then ask.
        """

    def send_plain(self, message: Outbound, message_id: str) -> None:
        """
        Store a message that consumers see at once. For one thread at a time.

        Consumers get it as if a half message of the same content had been committed under
        `message_id`. When this method raises, the broker may have stored it all the same.

        Raises:
            InvalidMessageError: the broker refuses this message and would refuse it again; others
                of its topic may pass.
            BrokerUnavailableError: no broker said that it has the message; another time it may.
        """

    def is_published(self, message: Outbound, message_id: str) -> bool:
        """
        Ask the brokers for a message that consumers see, of this id and content.

        One of another content does not count: who may send to the topic can repeat an id. False proves
        nothing: the brokers may keep no index of ids. On the thread of `send_plain`.

        Raises:
            BrokerUnavailableError: not all of them can be asked, and those that can do not have it.
        """

    def is_registered(self, topic: str) -> bool:
        """
        Ask the brokers of a topic whether they know this client, and so would ask it.

        Raises:
            BrokerUnavailableError: they can't be asked.
        """

    def registered_clients(self, topic: str) -> Mapping[str, frozenset[str]]:
        """
        Ask each broker of a topic which clients it knows under this producer group, by client id.

        Those are the ones that it would ask about any half message of the group. A broker is named
        so that another name means another process.

        Raises:
            BrokerUnavailableError: one of them can't be asked, or has no master now.
        """

    def close(self, timeout_seconds: float) -> None:
        """
        Answer UNKNOWN to new check-backs, wait until none runs, then stop. Idempotent.

        Args:
            timeout_seconds: how long running calls are waited for; after that the client is left
                open, with a log line.
        """


@dataclass(frozen=True, slots=True)
class Lag:
    """
    How far a consumer group is behind.

    Attributes:
        messages: how many wait.
        position: how far the group is in all its queues together; it grows as it consumes.
    """

    messages: int
    position: int


class ConsumerTransport(Protocol):
    """Receives deliveries and hands them to one callable, on several threads at once."""

    def start(self) -> None:
        """
        Start receiving.

        Raises: as `ProducerTransport.start`.
        """

    def is_registered(self, topic: str) -> bool:
        """
        Ask the brokers of a topic whether they know this client, and so would deliver to it.

        Raises:
            BrokerUnavailableError: they can't be asked.
        """

    def lag(self) -> Lag:
        """
        Ask the brokers how many messages wait for the group, redeliveries that are due included.

        Counted by the offsets that its members committed, so some seconds late.

        Raises:
            BrokerUnavailableError: they can't be asked.
        """

    def filters(self) -> tuple[TagFilter, ...]:
        """
        Ask which other members of the group leave messages out by their tag: no member gets those.

        A member that can't be asked, or is not answered for, is left out.

        Raises:
            BrokerUnavailableError: the brokers do not say who the members are.
        """

    def close(self, drain_seconds: float, timeout_seconds: float) -> None:
        """
        Let running deliveries finish, answer the rest with RETRY, then stop. Idempotent.

        Args:
            drain_seconds: how long deliveries that are already here are still handled.
            timeout_seconds: how long running deliveries are waited for after that; then the client
                is left open, with a log line.

        The broker may need a while (15 s for the native client) to learn that this consumer is gone
        and to give its queues to others; it learns at once when the process ends.
        """


class Transport(Protocol):
    """A broker as seen by the producer and the consumer helper."""

    def producer(self, group: str, check: Checker) -> ProducerTransport:
        """
        Make a client of producer group `group`.

        `check` is called by the broker's check-back, on a thread of the transport, possibly before
        `start` returned. It is asked about half messages of *any* producer of the group.
        """

    def consumer(
        self, group: str, subscriptions: Mapping[str, Sequence[str]], threads: int, deliver: Deliver
    ) -> ConsumerTransport:
        """
        Make a client of consumer group `group`.

        Args:
            subscriptions: topic to tags; `*` stands for every tag.
            threads: how many deliveries may be handled at once.
            deliver: called once a delivery, on a thread of the transport; what it raises counts as
                RETRY. Delivery is at least once and in no promised order.
        """
