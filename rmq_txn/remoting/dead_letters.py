"""
The messages of a consumer group that the broker itself buried, in its topic `%DLQ%` + group.

Read by pulls of our own, which need no running client. How far the group has read is an offset on the
broker, as for any topic, and moves only when the caller says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.message import Delivery
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.server import NO_PERMISSION, TOPIC_NOT_EXIST, RemotingError
from rmq_txn.remoting.stored_message import StoredMessage


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One buried message, and where it lies."""

    message: StoredMessage
    broker: str
    queue: int
    extra_properties: tuple[str, ...] = ()

    @property
    def delivery(self) -> Delivery:
        """
        Return what the handler got from the native client when it was not buried yet.

        Raises:
            InvalidMessageError: its body can't be read, or is too large to be.
        """
        given = self.message.properties
        return Delivery(
            topic=self.topic,
            body=self.message.plain_body,
            message_id=self.message.message_id,
            tag=given.get("TAGS"),
            key=given.get("KEYS"),
            redeliveries=self.message.redeliveries,
            born_milliseconds=self.message.born_milliseconds,
            stored_milliseconds=self.message.stored_milliseconds,
            properties=self.message.publisher_properties(*self.extra_properties),
        )

    @property
    def topic(self) -> str:
        """Where it was published."""
        return self.message.properties.get("RETRY_TOPIC", "")


def topic_of(group: str) -> str:
    """Return the dead-letter topic of a consumer group."""
    return f"%DLQ%{group}"


def unread(cluster: ClusterSettings, group: str) -> Iterator[DeadLetter]:
    """
    Read the dead letters of a group that were not marked as read, oldest first in each queue.

    Raises:
        BrokerUnavailableError: a server can't be asked, or refuses.
    """
    topic = topic_of(group)
    try:
        route = cluster.ask(cluster.name_servers).topic_route(topic)
    except RemotingError as error:
        if error.code != TOPIC_NOT_EXIST:
            raise
        return  # the broker makes the topic when it buries the first message
    for master in route.masters():
        for queue in range(master.queues):
            yield from _read_queue(cluster, master.address, group, queue)


def mark_read(cluster: ClusterSettings, group: str, letter: DeadLetter) -> None:
    """Remember on the broker that this letter, and those before it in its queue, are taken care of."""
    cluster.ask(letter.broker).set_consumer_offset(
        group, topic_of(group), letter.queue, letter.message.offset + 1
    )


def _read_queue(cluster: ClusterSettings, address: str, group: str, queue: int) -> Iterator[DeadLetter]:
    client, topic = cluster.ask(address), topic_of(group)
    offset = max(client.consumer_offset(group, topic, queue) or 0, client.min_offset(topic, queue))
    end = client.max_offset(topic, queue)
    while offset < end:
        try:
            found = client.pull(group, topic, queue, offset)
        except RemotingError as error:
            if error.code != NO_PERMISSION:
                raise
            raise BrokerUnavailableError(
                f"topic {topic!r} may not be read, brokers of 4.x make it so: mqadmin updateTopicPerm "
                f"-t '{topic}' -p 6 ({error})"
            ) from error
        if not found:
            return
        for message in found:
            yield DeadLetter(message, address, queue, cluster.extra_properties)
        offset = found[-1].offset + 1
