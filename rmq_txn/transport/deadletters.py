"""
The messages of a consumer group that the broker itself buried, in its topic `%DLQ%` + group.

Read by pulls of our own, which need no running client. How far the group has read is an offset on the
broker, as for any topic, and moves only when the caller says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.identity import OWN_PROPERTIES, PROPERTY_NAMES
from rmq_txn.message import Delivery
from rmq_txn.transport.remoting import NO_PERMISSION, TOPIC_NOT_EXIST, RemotingClient, RemotingError
from rmq_txn.transport.settings import ClusterSettings
from rmq_txn.transport.standing import pull
from rmq_txn.transport.stored import StoredMessage
from rmq_txn.transport.wire import MalformedAnswerError

_GET_MIN_OFFSET = 31


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One buried message, as its handler would have got it, and where it lies."""

    delivery: Delivery
    broker: str
    queue: int
    offset: int


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
    for broker in route.brokers:
        if (address := broker.master_address) is None:
            continue
        queues = sum(item.read_queues for item in route.queues if item.broker_name == broker.name)
        for queue in range(queues):
            yield from _read_queue(cluster, address, group, queue)


def mark_read(cluster: ClusterSettings, group: str, letter: DeadLetter) -> None:
    """Remember on the broker that this letter, and those before it in its queue, are taken care of."""
    cluster.ask(letter.broker).set_consumer_offset(group, topic_of(group), letter.queue, letter.offset + 1)


def _read_queue(cluster: ClusterSettings, address: str, group: str, queue: int) -> Iterator[DeadLetter]:
    client, topic = cluster.ask(address), topic_of(group)
    offset = max(client.consumer_offset(group, topic, queue) or 0, _first_offset(client, topic, queue))
    end = client.max_offset(topic, queue)
    while offset < end:
        try:
            found = pull(client, group, topic, queue, offset)
            letters = [
                DeadLetter(_as_delivery(item, cluster.extra_properties), address, queue, item.offset)
                for item in found
            ]
        except MalformedAnswerError as error:
            raise BrokerUnavailableError(
                f"topic {topic!r}, queue {queue}, can't be read from offset {offset} on: {error}"
            ) from error
        except RemotingError as error:
            if error.code != NO_PERMISSION:
                raise
            raise BrokerUnavailableError(
                f"topic {topic!r} may not be read, brokers of 4.x make it so: mqadmin updateTopicPerm "
                f"-t '{topic}' -p 6 ({error})"
            ) from error
        if not found:
            return
        yield from letters
        offset = found[-1].offset + 1


def _as_delivery(message: StoredMessage, extra_properties: tuple[str, ...]) -> Delivery:
    """Return what the handler got from the native client when it was not buried yet."""
    given = message.properties
    names = (*OWN_PROPERTIES, *given.get(PROPERTY_NAMES, "").split(","), *extra_properties)
    return Delivery(
        topic=given.get("RETRY_TOPIC", ""),  # where it was published
        body=message.plain_body,
        message_id=message.message_id,
        tag=given.get("TAGS"),
        key=given.get("KEYS"),
        redeliveries=message.redeliveries,
        born_milliseconds=message.born_milliseconds,
        stored_milliseconds=message.stored_milliseconds,
        properties={name: given[name] for name in names if given.get(name)},
    )


def _first_offset(client: RemotingClient, topic: str, queue: int) -> int:
    what = f"the beginning of queue {queue} of topic {topic!r}"
    header, _body = client.request(_GET_MIN_OFFSET, {"topic": topic, "queueId": str(queue)}, what)
    fields = header.get("extFields")
    return int(fields.get("offset", 0)) if isinstance(fields, dict) else 0
