"""
What brokers still store of half messages, so that one which they dropped can be published after all.

A broker that asked about a half message as often as it does moves it to a topic of its own, which nobody
reads, and keeps it there like any message, for 72 hours by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.half_messages import GIVEN_UP_TOPIC, HALF_TOPIC, QUEUE
from rmq_txn.remoting.server import TOPIC_NOT_EXIST, RemotingError
from rmq_txn.remoting.stored_message import StoredMessage

_INDEX_SETTING: Final = "messageIndexEnable"

T = TypeVar("T")


class HalfMessageStore:
    """
    All brokers of a cluster, as the place where half messages lie. Reads only; for one thread.

    Attributes:
        gaps: what could not be asked, a sentence each, so far. While there is one, that nothing was found
            proves nothing.

    Raises:
        BrokerUnavailableError: no broker can be asked.
    """

    def __init__(self, cluster: ClusterSettings) -> None:
        self._masters, self.gaps = cluster.every_master()
        if not self._masters:
            raise BrokerUnavailableError("; ".join(self.gaps))
        self._each(self._require_index)

    def given_up(self, since_unix_seconds: float) -> Iterator[StoredMessage]:
        """Read what brokers gave up from then on, oldest first for each broker."""
        for name, client in list(self._masters):
            try:
                yield from _given_up(client, since_unix_seconds)
            except (BrokerUnavailableError, RemotingError) as error:
                self._leave_out(name, client, error)

    def copies(self, message_id: str) -> list[StoredMessage]:
        """Return each stored copy of a half message; a broker that asks about one stores it again."""
        return self._with_id((HALF_TOPIC, GIVEN_UP_TOPIC), message_id)

    def published(self, topic: str, message_id: str) -> list[StoredMessage]:
        """Return what has this id where consumers read: by a verdict, as a plain message, or a stranger's."""
        return self._with_id((topic,), message_id)

    def _with_id(self, topics: Iterable[str], message_id: str) -> list[StoredMessage]:
        found = self._each(
            lambda _name, client: [
                message for topic in topics for message in client.messages_with_id(topic, message_id)
            ]
        )
        return [message for messages in found for message in messages]

    def _require_index(self, name: str, client: RemotingClient) -> None:
        if client.broker_config().get(_INDEX_SETTING, "true").lower() != "true":
            self.gaps.append(
                f"broker {name} finds no messages by their id: {_INDEX_SETTING}=false in its configuration"
            )

    def _each(self, ask: Callable[[str, RemotingClient], T]) -> list[T]:
        """Ask each broker; one that refuses or is away is left out from then on, and named."""
        found: list[T] = []
        for name, client in list(self._masters):
            try:
                found.append(ask(name, client))
            except (BrokerUnavailableError, RemotingError) as error:
                self._leave_out(name, client, error)
        return found

    def _leave_out(self, name: str, client: RemotingClient, error: Exception) -> None:
        # Already, if it went away between two messages of `given_up`, asked about one of them.
        if (name, client) in self._masters:
            self.gaps.append(f"broker {name}: {error}")
            self._masters.remove((name, client))


def _given_up(client: RemotingClient, since_unix_seconds: float) -> Iterator[StoredMessage]:
    """Read one broker to the end that it has now."""
    try:
        end = client.max_offset(GIVEN_UP_TOPIC, QUEUE)
        first = client.offset_at(GIVEN_UP_TOPIC, QUEUE, max(0, int(since_unix_seconds * 1000)))
        begin = max(first, client.min_offset(GIVEN_UP_TOPIC, QUEUE), 0)
        yield from client.read(GIVEN_UP_TOPIC, QUEUE, begin, end - begin)
    except RemotingError as error:
        if error.code != TOPIC_NOT_EXIST:
            raise
        # The broker makes the topic when it gives up for the first time.
