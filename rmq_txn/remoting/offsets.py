"""
Where a consumer group stands in each queue, which message stops it there, and how to get past it.

For the message that the native client dies on (docs/hazards.md, B2). A group whose consumers die
commits nothing, and the client pulls up to 32 messages at once: the culprit may lie behind others
that were not handled. So each queue is read forward from the committed offset, and `skip` gives
what lies before the culprit back to the broker, which delivers it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rmq_txn.errors import BrokerUnavailableError, RmqTxnError, SettingsError
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.members import online
from rmq_txn.remoting.server import TOPIC_NOT_EXIST, RemotingError
from rmq_txn.remoting.stored_message import StoredMessage

LOOK_AHEAD: Final = 1024
"""
How many messages of a queue are looked at. More than a consumer holds by default (100, and one
pull) and than it usually handles between two commits of its offset, 5 s apart.
"""


@dataclass(frozen=True, slots=True)
class Place:
    """How far a group is in one queue."""

    topic: str
    broker: str
    address: str
    queue: int
    offset: int
    end: int
    """The offset that the next message will get."""


@dataclass(frozen=True, slots=True)
class Standing(Place):
    """Where a group stands in one queue, and what comes next there."""

    ahead: tuple[StoredMessage, ...]
    """What comes next, up to and including the first message that the native client can't decode."""

    @property
    def culprit(self) -> StoredMessage | None:
        """The first message that the native client dies on, if it was seen."""
        return self.ahead[-1] if self.ahead and self.ahead[-1].undecodable else None


def places(cluster: ClusterSettings, group: str, topics: Sequence[str]) -> Iterator[Place]:
    """
    Ask how far a group is in each queue of the topics, and of its redeliveries.

    Queues in which it never stood are left out.

    Raises:
        BrokerUnavailableError, RemotingError: a server can't be asked.
    """
    retry_topic = f"%RETRY%{group}"
    for topic in dict.fromkeys((*topics, retry_topic)):
        try:
            route = cluster.ask(cluster.name_servers).topic_route(topic)
        except RemotingError as error:
            if topic == retry_topic and error.code == TOPIC_NOT_EXIST:
                continue  # nothing was ever redelivered
            raise
        for master in route.masters():
            client = cluster.ask(master.address)
            for queue in range(master.queues):
                offset = client.consumer_offset(group, topic, queue)
                if offset is not None:
                    end = client.max_offset(topic, queue)
                    yield Place(topic, master.broker_name, master.address, queue, offset, end)


def standings(cluster: ClusterSettings, group: str, topics: Sequence[str]) -> Iterator[Standing]:
    """Read each queue from where the group stands; as `places` otherwise."""
    for place in places(cluster, group, topics):
        client = cluster.ask(place.address)
        ahead = tuple(_ahead(client, group, place.topic, place.queue, place.offset))
        yield Standing(
            topic=place.topic,
            broker=place.broker,
            address=place.address,
            queue=place.queue,
            offset=place.offset,
            end=place.end,
            ahead=ahead,
        )


def skip(cluster: ClusterSettings, group: str, standing: Standing) -> int:
    """
    Move a group past the culprit of a queue; return how many messages before it were given back.

    Those are delivered to the group again by way of its topic of redeliveries, some ten seconds
    later; what was handled already is skipped by the inbox. The culprit is not deleted, other groups
    still meet it. If this ends half way, the offset is as it was and nothing is lost.

    Raises:
        RmqTxnError: a consumer of the group is online, or the group's offset changed.
        BrokerUnavailableError, RemotingError: the broker can't be asked, or refuses.
    """
    culprit = standing.culprit
    if culprit is None:
        raise SettingsError("there is no message to skip in this queue")
    client = cluster.ask(standing.address)
    where = f"queue {standing.queue} of topic {standing.topic!r}"
    # It writes its own offset every five seconds, over whatever stands there.
    members = online(client, group)
    if members:
        raise RmqTxnError(
            f"a consumer of group {group!r} is online ({members[0].client_id} at {members[0].address}) and "
            "would overwrite the offset; stop it, or try again: in a crash loop it is there for moments"
        )
    before = standing.ahead[:-1]
    for message in before:
        client.send_back(group, message.topic, message.commit_log_offset, message.message_id)
    now = client.consumer_offset(group, standing.topic, standing.queue)
    if now != standing.offset:
        raise RmqTxnError(f"the offset of group {group!r} in {where} moved from {standing.offset} to {now}")
    client.set_consumer_offset(group, standing.topic, standing.queue, culprit.offset + 1)
    now = client.consumer_offset(group, standing.topic, standing.queue)
    if now != culprit.offset + 1:
        raise BrokerUnavailableError(f"the broker was told {culprit.offset + 1} for {where} and says {now}")
    return len(before)


def _ahead(
    client: RemotingClient, group: str, topic: str, queue: int, offset: int
) -> Iterator[StoredMessage]:
    seen = 0
    while seen < LOOK_AHEAD:
        messages = client.pull(group, topic, queue, offset)
        if not messages:
            return
        for message in messages:
            yield message
            if message.undecodable:
                return
        seen += len(messages)
        offset = messages[-1].offset + 1
