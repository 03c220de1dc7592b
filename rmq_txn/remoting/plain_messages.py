"""
Plain messages, past the native client: what it can't do on a transactional producer (docs/hazards.md, B3);
and whether there is anything to send.

A second native client would do, but it says "no route" to everything, and the relay has to know a
message that is refused from a broker that is away; docs/decisions/0013.
"""

from __future__ import annotations

import math
import random
import time
from typing import Final

from rmq_txn.errors import BrokerUnavailableError, InvalidMessageError
from rmq_txn.message import Outbound
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.refusals import sentence
from rmq_txn.remoting.server import MESSAGE_ILLEGAL, RemotingError
from rmq_txn.remoting.wire import Line

_ROUTE_SECONDS: Final = 10.0
"""
For so long the masters of a topic are remembered. One that was deposed goes on to answer, and shows what its
successor never had; that it left the route disturbs, so nothing that it showed a minute before is deleted.
"""


class PlainSender:
    """
    Looks for messages and stores plain ones, by a request to a broker. For one thread at a time, but `close`.

    The connection to a broker is kept: making one for each message took longer than all else.
    """

    def __init__(self, broker: ClusterSettings, group: str) -> None:
        self._broker = broker
        self._group = group
        self._addresses: dict[str, tuple[float, list[str]]] = {}
        self._lines: dict[str, Line] = {}

    def send(self, message: Outbound, message_id: str) -> None:
        """See `ProducerTransport.send_plain`."""
        said: list[str] = []
        last: Exception | None = None
        for address in self._masters(message.topic):
            try:
                self._client(address).store(self._group, message, message_id)
            except RemotingError as error:
                why = sentence(self._broker, address, message, error)
                if error.code == MESSAGE_ILLEGAL:
                    raise InvalidMessageError(why) from error
                said.append(why)
                last = error
            except BrokerUnavailableError as error:
                said.append(str(error))
                last = error
            else:
                return
            self._addresses.pop(message.topic, None)  # by now it may be others
        raise BrokerUnavailableError(
            f"no broker of topic {message.topic!r} took the message: {'; '.join(said) or 'none is there'}"
        ) from last

    def is_published(self, message: Outbound, message_id: str) -> bool:
        """See `ProducerTransport.is_published`."""
        said: list[str] = []
        for address in self._masters(message.topic):
            try:
                found = self._client(address).messages_with_id(message.topic, message_id)
            except (RemotingError, BrokerUnavailableError) as error:
                said.append(f"{address}: {error}")
                self._addresses.pop(message.topic, None)
                continue
            if any(stored.is_copy_of(message) for stored in found):
                return True
        if said:
            raise BrokerUnavailableError(
                f"not every broker of topic {message.topic!r} says which messages it has: {'; '.join(said)}"
            )
        return False

    def _masters(self, topic: str) -> list[str]:
        """Return the addresses of the masters, in any order."""
        now = time.monotonic()
        asked_at, addresses = self._addresses.get(topic, (-math.inf, []))
        if now - asked_at > _ROUTE_SECONDS:
            addresses = [master.address for master in self._broker.masters(topic)]
            self._addresses[topic] = now, addresses
        return random.sample(addresses, len(addresses))

    def _client(self, address: str) -> RemotingClient:
        line = self._lines.setdefault(address, Line())
        return self._broker.ask(address, timeout_seconds=self._broker.send_timeout_seconds, line=line)

    def close(self) -> None:
        """End the connections that nothing is sent over now. Idempotent."""
        for line in tuple(self._lines.values()):
            line.close()
