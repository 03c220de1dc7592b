"""
Plain messages, past the native client: what it can't do on a transactional producer (docs/hazards.md, B3).

A second native client would do, but it says "no route" to everything, and the relay has to know a
message that is refused from a broker that is away; docs/decisions/0013.
"""

from __future__ import annotations

import random

from rmq_txn.errors import BrokerUnavailableError, InvalidMessageError
from rmq_txn.message import Outbound
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.refusals import sentence
from rmq_txn.remoting.server import MESSAGE_ILLEGAL, RemotingError
from rmq_txn.remoting.wire import Line


class PlainSender:
    """
    Stores plain messages, each by one request to one broker. For one thread at a time, but `close`.

    The connection to a broker is kept: making one for each message took longer than all else.
    """

    def __init__(self, broker: ClusterSettings, group: str) -> None:
        self._broker = broker
        self._group = group
        self._addresses: dict[str, list[str]] = {}
        self._lines: dict[str, Line] = {}

    def send(self, message: Outbound, message_id: str) -> None:
        """See `ProducerTransport.send_plain`."""
        addresses = self._addresses.pop(message.topic, None)
        if addresses is None:
            addresses = [master.address for master in self._broker.masters(message.topic)]
        random.shuffle(addresses)
        said: list[str] = []
        last: Exception | None = None
        for address in addresses:
            line = self._lines.setdefault(address, Line())
            client = self._broker.ask(address, timeout_seconds=self._broker.send_timeout_seconds, line=line)
            try:
                client.store(self._group, message, message_id)
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
                self._addresses[message.topic] = addresses  # remembered while it is good
                return
        raise BrokerUnavailableError(
            f"no broker of topic {message.topic!r} took the message: {'; '.join(said) or 'none is there'}"
        ) from last

    def close(self) -> None:
        """End the connections that nothing is sent over now. Idempotent."""
        for line in tuple(self._lines.values()):
            line.close()
