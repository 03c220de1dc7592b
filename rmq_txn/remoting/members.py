"""
Which members of a consumer group are there, and which leave messages out by their tag.

The queues of a topic are shared among all members of a group, and each one's expression is its own: what
a member's filter leaves out is passed by for the whole group. Ours subscribe to everything; a member
in another language may not (docs/decisions/0058).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.logs import get_logger
from rmq_txn.remoting.answers import ClientConnection
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.server import SYSTEM_ERROR, RemotingError

log = get_logger("transport.members")

_EVERYTHING: Final = frozenset({"*", ""})
_PATIENCE_SECONDS: Final = 2.0
_MOST_ASKED: Final = 50
"""Members asked in one look; the others are asked in the next one."""
_UNREACHED: Final = "RemotingSendRequestException"
"""What a broker says if the connection of a member is closed; nothing but this name tells it."""


@dataclass(frozen=True, slots=True)
class TagFilter:
    """
    An expression other than `*` that a member of a consumer group subscribed with.

    Attributes:
        member: the client id, which begins with the address of its machine and its process id.
        language: as the member says it: JAVA, CPP, GO, ...
        topic: whose messages it leaves out unless they match.
        expression: what it wants: `created || paid`, or an SQL expression.
    """

    member: str
    language: str
    topic: str
    expression: str


def online(broker: RemotingClient, group: str) -> tuple[ClientConnection, ...]:
    """
    Return the members of a consumer group whose connection to this broker is open.

    A broker that handles a heartbeat after it saw the end of its connection goes on to name the dead client,
    for two minutes (RocketMQ 5.4.0). It is found out as the broker is made to ask it something. Who
    does not answer, may not be asked, or has two connections counts as online, and so does each one after
    the first 50.

    Raises:
        BrokerUnavailableError, RemotingError: the broker can't be asked, or refuses.
    """
    named = broker.consumer_connections(group)
    connections = Counter(connection.client_id for connection in named)
    gone = {
        client_id
        for client_id, number in list(connections.items())[:_MOST_ASKED]
        if number == 1 and _has_ended(broker, group, client_id)
    }
    return tuple(connection for connection in named if connection.client_id not in gone)


def _has_ended(broker: RemotingClient, group: str, client_id: str) -> bool:
    try:
        broker.consumer_subscriptions(group, client_id)
    except RemotingError as error:
        return error.code == SYSTEM_ERROR and _UNREACHED in error.remark
    except BrokerUnavailableError:
        pass  # a client that is frozen, or an answer that can't be read
    return False


class GroupMembers:
    """
    The members of one consumer group, each asked once for what it subscribed to. For one thread.

    Args:
        own_instance: how the id of the client ends that is not asked.
    """

    def __init__(self, broker: ClusterSettings, group: str, own_instance: str) -> None:
        self._broker = broker
        self._group = group
        self._own_instance = own_instance
        self._known: dict[str, tuple[TagFilter, ...]] = {}

    def filters(self, topics: Collection[str]) -> tuple[TagFilter, ...]:
        """
        Return the filters of the members that are there now, on these topics.

        A member that does not answer within 2 s, or may not be asked, counts as one without a filter,
        and is asked again at the next call. What a member subscribes to later is not seen.

        Raises:
            BrokerUnavailableError: a broker does not say who its members are.
        """
        present: dict[str, ClientConnection] = {}
        places: dict[str, RemotingClient] = {}
        try:
            for address in {master.address for topic in topics for master in self._broker.masters(topic)}:
                client = self._broker.ask(address, timeout_seconds=_PATIENCE_SECONDS)
                for connection in client.consumer_connections(self._group):
                    present[connection.client_id] = connection
                    places[connection.client_id] = client
        except RemotingError as error:
            raise BrokerUnavailableError(
                f"the members of group {self._group!r} are not told: {error}"
            ) from error
        self._known = {member: found for member, found in self._known.items() if member in present}
        unknown = [id_ for id_ in present if id_ not in self._known and not id_.endswith(self._own_instance)]
        for id_ in unknown[:_MOST_ASKED]:
            subscriptions = self._asked(places[id_], id_)
            if subscriptions is not None:
                self._known[id_] = tuple(
                    TagFilter(id_, present[id_].language, topic, expression)
                    for topic, expression in sorted(subscriptions.items())
                    if expression not in _EVERYTHING
                )
        return tuple(
            item for _, found in sorted(self._known.items()) for item in found if item.topic in topics
        )

    def _asked(self, broker: RemotingClient, member: str) -> Mapping[str, str] | None:
        try:
            return broker.consumer_subscriptions(self._group, member)
        except (BrokerUnavailableError, RemotingError) as error:
            log.debug("a member does not say what it subscribed to", member=member, error=str(error))
            return None
