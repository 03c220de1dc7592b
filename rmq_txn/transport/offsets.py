"""
Where a new consumer group begins, decided before its first client starts.

Left alone, the native client decides by itself, queue by queue, at its first look: it asks the
broker for the end of the queue, and what was stored a moment before is never delivered. That
happens at the first start of a group and again when a queue that never had a message changes
hands. An offset on the broker from the beginning leaves it nothing to decide.
"""

from __future__ import annotations

from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.logs import get_logger
from rmq_txn.transport.remoting import GROUP_NOT_EXIST, RemotingClient, RemotingError
from rmq_txn.transport.settings import ClusterSettings

log = get_logger("transport.offsets")


def pin_new_group(cluster: ClusterSettings, group: str, topic: str) -> int:
    """
    Give every queue of a topic an offset for the group, unless it has one.

    Not atomic: two processes of a new group that start at once may set a queue back to its
    beginning once; that is delivered again, never skipped.

    Returns:
        How many queues the topic has on the brokers that live.

    Raises:
        BrokerUnavailableError: a server can't be asked or refuses, or no live broker has the topic.
    """
    found = 0
    for address, queues in cluster.masters(topic):
        found += queues
        try:
            _pin_queues(cluster, address, group, topic, queues)
        except RemotingError as error:
            what = "refuses access_key and secret_key, or their permission" if error.refused else "says"
            raise BrokerUnavailableError(
                f"broker {address}, asked where group {group!r} stands in topic {topic!r}, {what}: {error}"
            ) from error
    return found


def _pin_queues(cluster: ClusterSettings, address: str, group: str, topic: str, queues: int) -> None:
    client = cluster.ask(address)
    for queue in range(queues):
        if client.consumer_offset(group, topic, queue) is None:
            latest = cluster.new_group_from == "latest"
            offset = client.max_offset(topic, queue) if latest else 0
            _set_offset(client, group, topic, queue, offset)
            log.info("new group", group=group, topic=topic, queue=queue, starts_at=offset)


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
