"""
Plain messages, past the native client: what it can't do on a transactional producer (docs/hazards.md, B3).

A second native client would do, but it says "no route" to everything, and the relay has to know a
message that is refused from a broker that is away; docs/decisions/0013.
"""

from __future__ import annotations

import random
import time

from rmq_txn.errors import BrokerUnavailableError, InvalidMessageError
from rmq_txn.message import Outbound
from rmq_txn.transport.remoting import RemotingError
from rmq_txn.transport.settings import ClusterSettings

_SEND_MESSAGE = 10
_MESSAGE_ILLEGAL = 13


class PlainSender:
    """Stores plain messages, each by one request to one broker. For one thread at a time."""

    def __init__(self, broker: ClusterSettings, group: str) -> None:
        self._broker = broker
        self._group = group
        self._addresses: dict[str, list[str]] = {}

    def send(self, message: Outbound, message_id: str) -> None:
        """See `ProducerTransport.send_plain`."""
        addresses = self._addresses.pop(message.topic, None)
        if addresses is None:
            addresses = [address for address, _queues in self._broker.masters(message.topic)]
        random.shuffle(addresses)
        failures: list[Exception] = []
        for address in addresses:
            try:
                self._send_to(address, message, message_id)
            except RemotingError as error:
                if error.code == _MESSAGE_ILLEGAL:
                    raise InvalidMessageError(f"broker {address} refuses the message: {error}") from error
                failures.append(error)
            except BrokerUnavailableError as error:
                failures.append(error)
            else:
                self._addresses[message.topic] = addresses  # remembered while it is good
                return
        raise BrokerUnavailableError(
            f"no broker of topic {message.topic!r} took the message: "
            f"{'; '.join(map(str, failures)) or 'none is there'}"
        ) from (failures[-1] if failures else None)

    def _send_to(self, address: str, message: Outbound, message_id: str) -> None:
        fields = {
            "producerGroup": self._group,
            "topic": message.topic,
            "defaultTopic": "TBW102",  # required by the header; for topics that don't exist
            "defaultTopicQueueNums": "4",
            "queueId": "-1",  # the broker takes any of its queues
            "sysFlag": "0",
            "bornTimestamp": str(time.time_ns() // 1_000_000),
            "flag": "0",
            "properties": _on_the_wire(message, message_id),
            "reconsumeTimes": "0",
            "unitMode": "false",
            "batch": "false",
        }
        timeout_seconds = self._broker.send_timeout_seconds
        client = self._broker.ask(address, timeout_seconds=timeout_seconds)
        client.tell(_SEND_MESSAGE, fields, "to store a message", message.body)


def _on_the_wire(message: Outbound, message_id: str) -> str:
    """Write the properties as clients do: name \\x01 value \\x02."""
    properties = {**message.properties, "UNIQ_KEY": message_id, "WAIT": "true"}
    if message.key is not None:
        properties["KEYS"] = message.key
    if message.tag is not None:
        properties["TAGS"] = message.tag
    return "".join(f"{name}\x01{value}\x02" for name, value in properties.items())
