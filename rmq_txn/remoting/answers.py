"""What name servers and brokers answer, as values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rmq_txn.remoting import wire

_MASTER_BROKER_ID: Final = 0
_READ: Final = 4
_WRITE: Final = 2
_SUBSCRIPTIONS: Final = '"subscriptionSet":'
_MOST_QUEUES: Final = 65_535  # far above what a broker can hold; each queue is a question or more


@dataclass(frozen=True)
class RouteBroker:
    """A broker of a route: its name and its addresses by broker id (0 is the master)."""

    name: str
    cluster: str
    addresses: Mapping[int, str]

    @property
    def master_address(self) -> str | None:
        """Return "host:port" of the master, None while it has none."""
        return self.addresses.get(_MASTER_BROKER_ID)


@dataclass(frozen=True)
class RouteQueues:
    """How many queues of a topic a broker has."""

    broker_name: str
    read_queues: int
    write_queues: int
    permission: int
    """Bits: 4 may be read, 2 may be written; what the broker itself forbids is taken out."""

    @property
    def readable(self) -> bool:
        """Whether the topic may be read on this broker."""
        return bool(self.permission & _READ) and self.read_queues > 0

    @property
    def writable(self) -> bool:
        """Whether the topic may be written on this broker."""
        return bool(self.permission & _WRITE) and self.write_queues > 0


@dataclass(frozen=True)
class Master:
    """A broker of a topic that asks about half messages and keeps offsets now."""

    broker_name: str
    address: str
    queues: int
    """How many queues of the topic it has for reading."""


@dataclass(frozen=True)
class TopicRoute:
    """Where a topic lives."""

    brokers: tuple[RouteBroker, ...]
    queues: tuple[RouteQueues, ...]

    def masters(self) -> tuple[Master, ...]:
        """Return each broker that has a master now, with its queues."""
        queues = Counter[str]()
        for item in self.queues:
            queues[item.broker_name] += item.read_queues
        return tuple(
            Master(broker.name, broker.master_address, queues[broker.name])
            for broker in self.brokers
            if broker.master_address is not None
        )


@dataclass(frozen=True)
class ClusterInfo:
    """The brokers a name server knows, and which cluster each belongs to."""

    brokers: Mapping[str, RouteBroker]
    clusters: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class ClientConnection:
    """One client registered with a broker under a group."""

    client_id: str
    address: str
    language: str
    version: int


@dataclass(frozen=True)
class StoredAt:
    """Where a broker put a message that it was asked to store."""

    offset_message_id: str
    """The broker's own id: its address and the offset in its commit log, in hex digits."""
    queue_offset: str
    transaction_id: str

    @property
    def commit_log_offset(self) -> int:
        """
        Read the offset in the commit log.

        Raises:
            MalformedAnswerError: the broker gave no such id.
        """
        digits = self.offset_message_id[-16:]  # after address and port
        try:
            return int(digits, 16)
        except ValueError as exc:
            raise wire.MalformedAnswerError(
                f"msgId is {self.offset_message_id!r:.80}, expected hex digits"
            ) from exc


def read_stored_at(fields: Mapping[str, object]) -> StoredAt:
    """Read where a message was stored, as far as the broker says it."""
    return StoredAt(
        offset_message_id=str(fields.get("msgId") or ""),
        queue_offset=str(fields.get("queueOffset") or ""),
        transaction_id=str(fields.get("transactionId") or ""),
    )


def read_broker(value: object) -> RouteBroker:
    """Read one broker of a route or of the cluster."""
    fields = wire.as_object(value, "broker")
    addresses = wire.as_object(fields.get("brokerAddrs") or {}, "brokerAddrs")
    try:
        by_id = {int(broker_id): str(address) for broker_id, address in addresses.items()}
        for address in by_id.values():
            wire.as_endpoint(address)
    except ValueError as exc:
        raise wire.MalformedAnswerError(
            f"brokerAddrs is {addresses!r:.80}, expected integers and 'host:port'"
        ) from exc
    return RouteBroker(wire.as_text(fields, "brokerName"), wire.as_text(fields, "cluster"), by_id)


def read_queues(value: object) -> RouteQueues:
    """Read the queues of a topic on one broker."""
    fields = wire.as_object(value, "queues")
    return RouteQueues(
        broker_name=wire.as_text(fields, "brokerName"),
        read_queues=_number_of_queues(fields, "readQueueNums"),
        write_queues=_number_of_queues(fields, "writeQueueNums"),
        permission=wire.as_number({"perm": _READ | _WRITE, **fields}, "perm"),
    )


def _number_of_queues(fields: Mapping[str, object], key: str) -> int:
    number = wire.as_number(fields, key)
    if not 0 <= number <= _MOST_QUEUES:
        raise wire.MalformedAnswerError(f"{key} is {number}, expected 0 to {_MOST_QUEUES}")
    return number


def read_subscriptions(body: bytes) -> dict[str, str]:
    """
    Read what a member of a group subscribed to, topic to expression, out of its ConsumerRunningInfo.

    The whole is no JSON, in any language: it has objects for keys. The part asked for is; inside
    a text its quotes would be escaped, so it is found by its name.
    """
    text = body.decode("utf-8", "replace")
    before, mark, part = text.partition(_SUBSCRIPTIONS)
    if not mark:
        raise wire.MalformedAnswerError(f"ConsumerRunningInfo is {before!r:.80}, without subscriptionSet")
    try:
        found, _end = json.JSONDecoder().raw_decode(part.lstrip())
    except (ValueError, RecursionError) as exc:
        raise wire.MalformedAnswerError(f"subscriptionSet is {part!r:.80}, expected JSON") from exc
    if not isinstance(found, list):
        raise wire.MalformedAnswerError(f"subscriptionSet is {found!r:.80}, expected a list")
    items = [wire.as_object(item, "subscription") for item in found]
    return {wire.as_text(item, "topic"): wire.as_text(item, "subString") for item in items}


def read_connection(value: object) -> ClientConnection:
    """Read one registered client."""
    fields = wire.as_object(value, "connection")
    return ClientConnection(
        client_id=wire.as_text(fields, "clientId"),
        address=wire.as_text(fields, "clientAddr"),
        language=wire.as_text(fields, "language"),
        version=wire.as_number(fields, "version"),
    )
