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
from rmq_txn.remoting.client import MESSAGE_ILLEGAL, RemotingClient, RemotingError
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.refusals import sentence

_SEND_MESSAGE = 10
_HALF = 4  # MessageSysFlag.TRANSACTION_PREPARED_TYPE


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
        said: list[str] = []
        last: Exception | None = None
        for address in addresses:
            client = self._broker.ask(address, timeout_seconds=self._broker.send_timeout_seconds)
            try:
                store(client, self._group, message, message_id)
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


def store(
    client: RemotingClient, group: str, message: Outbound, message_id: str, *, half: bool = False
) -> dict[str, object]:
    """
    Ask a broker to store a message, one that consumers see or a half message.

    Returns:
        The fields of its answer: `msgId`, `queueOffset` and others.

    Raises:
        BrokerUnavailableError, RemotingError: it does not answer, or refuses.
    """
    properties = {**message.properties, "UNIQ_KEY": message_id, "WAIT": "true"}
    if half:
        properties |= {"TRAN_MSG": "true", "PGROUP": group}
    if message.key is not None:
        properties["KEYS"] = message.key
    if message.tag is not None:
        properties["TAGS"] = message.tag
    fields = {
        "producerGroup": group,
        "topic": message.topic,
        "defaultTopic": "TBW102",  # required by the header; for topics that don't exist
        "defaultTopicQueueNums": "4",
        "queueId": "-1",  # the broker takes any of its queues
        "sysFlag": str(_HALF if half else 0),
        "bornTimestamp": str(time.time_ns() // 1_000_000),
        "flag": "0",
        # As clients write them: name \x01 value \x02.
        "properties": "".join(f"{name}\x01{value}\x02" for name, value in properties.items()),
        "reconsumeTimes": "0",
        "unitMode": "false",
        "batch": "false",
    }
    return client.tell(_SEND_MESSAGE, fields, "to store a message", message.body)
