"""
Where a new consumer group begins, decided before its first client starts.

Left alone, the native client decides by itself, queue by queue, at its first look: it asks the
broker for the end of the queue, and what was stored a moment before is never delivered. That
happens at the first start of a group and again when a queue that never had a message changes
hands. An offset on the broker from the beginning leaves it nothing to decide.

Only a group that is new to the whole topic may begin at its end: a queue without an offset of a group
that has one elsewhere came while the group was away, and what it holds was never delivered
(docs/decisions/0038).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.logs import get_logger
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.server import GROUP_NOT_EXIST, RemotingError

log = get_logger("transport.offsets")

T = TypeVar("T")


def pin_new_group(cluster: ClusterSettings, group: str, topic: str) -> int:
    """
    Give every queue of a topic an offset for the group, unless it has one.

    Its beginning, or with `new_group_from="latest"` its end, if the group has no offset in any queue
    of the topic on any broker that lives.

    Not atomic. Of two processes of a new group that start at once, and after a crash in the middle,
    some queues may begin at the beginning although "latest" was asked for; a queue may be set back
    to where the group began. That is delivered again, never skipped.

    Returns:
        How many queues the topic has on the brokers that live.

    Raises:
        BrokerUnavailableError: a server can't be asked or refuses, or no live broker has the topic.
    """
    queues = [
        _Queue(cluster.ask(master.address), topic, number)
        for master in cluster.masters(topic)
        for number in range(master.queues)
    ]
    # First where the topic ends, then whether the group is new: another process that makes it one in
    # between finished no start yet, so what was sent until then may be passed over, and nothing later.
    latest = cluster.new_group_from == "latest"
    ends = [_asked(queue, group, queue.end) if latest else 0 for queue in queues]
    offsets = [_asked(queue, group, partial(queue.offset, group)) for queue in queues]
    is_new = all(offset is None for offset in offsets)
    for queue, end, offset in zip(queues, ends, offsets, strict=True):
        if offset is None:
            begins_at = end if is_new else 0
            _asked(queue, group, partial(_set_offset, queue.client, group, topic, queue.number, begins_at))
            what = "new group" if is_new else "new queue of a group, it begins at its beginning"
            log.info(what, group=group, topic=topic, queue=queue.number, starts_at=begins_at)
    return len(queues)


@dataclass(frozen=True, slots=True)
class _Queue:
    client: RemotingClient
    topic: str
    number: int

    def end(self) -> int:
        return self.client.max_offset(self.topic, self.number)

    def offset(self, group: str) -> int | None:
        return self.client.consumer_offset(group, self.topic, self.number)


def _asked(queue: _Queue, group: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except RemotingError as error:
        what = "refuses access_key and secret_key, or their permission" if error.refused else "says"
        raise BrokerUnavailableError(
            f"broker {queue.client.address}, asked where group {group!r} stands in topic {queue.topic!r}, "
            f"{what}: {error}"
        ) from error


def _set_offset(client: RemotingClient, group: str, topic: str, queue: int, offset: int) -> None:
    try:
        client.set_consumer_offset(group, topic, queue, offset)
    except RemotingError as error:
        if error.code != GROUP_NOT_EXIST:
            raise
        if not _create_group(client, group):
            return
        # The broker makes the topic of redeliveries at the group's first heartbeat, and the client
        # looks for it before that and again ten seconds later: the first redelivery would wait.
        client.create_topic(f"%RETRY%{group}", queues=1)
        client.set_consumer_offset(group, topic, queue, offset)


def _create_group(client: RemotingClient, group: str) -> bool:
    try:
        client.create_consumer_group(group)
    except RemotingError as error:
        if not error.refused:
            raise
        log.warning(
            "the broker lets this user create no consumer group: messages stored before this new group's "
            "first pull may be skipped; create the group, or let an administrator start it once",
            group=group,
            error=str(error),
        )
        return False
    return True
