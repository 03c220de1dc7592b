"""
What a broker stores, read by questions alone: no offset moves, and no consumer has to run.

Codes and headers are those of RequestCode.java and ResponseCode.java of Apache RocketMQ 4.9 to 5.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rmq_txn.remoting import wire
from rmq_txn.remoting.server import QUERY_NOT_FOUND, RemotingError, RemotingServer
from rmq_txn.remoting.stored_message import StoredMessage, read_messages

_PULL_MESSAGE: Final = 11
_QUERY_MESSAGE: Final = 12
_SEARCH_OFFSET_BY_TIMESTAMP: Final = 29
_GET_MAX_OFFSET: Final = 30
_GET_MIN_OFFSET: Final = 31
_VIEW_MESSAGE_BY_ID: Final = 33
_QUERY_TOPIC_CONSUME_BY_WHO: Final = 300

_NOTHING_THERE: Final = frozenset({19, 20, 21})  # PULL_NOT_FOUND, PULL_RETRY_IMMEDIATELY, PULL_OFFSET_MOVED
_PULLED_AT_ONCE: Final = 32
_READING_GROUP: Final = "TOOLS_CONSUMER"
"""Each broker has it, for its own tools: nothing is made by a pull, and no service's figures change."""
_HAS_SUBSCRIPTION: Final = 4
"""Of the flags of a pull: it neither commits nor waits, and needs no consumer of the group online."""


class MessageReader(RemotingServer):
    """
    The questions to one broker about messages that it stores.

    Every call raises BrokerUnavailableError when nobody answered in time, and RemotingError when
    the answer is an error code.
    """

    def max_offset(self, topic: str, queue: int) -> int:
        """Ask a broker for the offset that the next message of a queue will get."""
        what = f"the end of queue {queue} of topic {topic!r}"
        with self._asking(what):
            return self._ask_offset(_GET_MAX_OFFSET, {"topic": topic, "queueId": str(queue)}, what)

    def min_offset(self, topic: str, queue: int) -> int:
        """Ask a broker for the offset of the oldest message that a queue still has."""
        what = f"the beginning of queue {queue} of topic {topic!r}"
        with self._asking(what):
            return self._ask_offset(_GET_MIN_OFFSET, {"topic": topic, "queueId": str(queue)}, what)

    def pull(self, group: str, topic: str, queue: int, offset: int) -> list[StoredMessage]:
        """
        Read the next messages of a queue, at most 32, none if there are no more; moves no offset.

        Their offsets ascend, from `offset` on.
        """
        fields = {
            "consumerGroup": group,
            "topic": topic,
            "queueId": str(queue),
            "queueOffset": str(offset),
            "maxMsgNums": str(_PULLED_AT_ONCE),
            "sysFlag": str(_HAS_SUBSCRIPTION),
            "commitOffset": "0",
            "suspendTimeoutMillis": "0",
            "subscription": "*",
            "subVersion": "0",
            "expressionType": "TAG",
        }
        what = f"queue {queue} of topic {topic!r} from offset {offset} on"
        with self._asking(what):
            try:
                _header, body = self._ask(_PULL_MESSAGE, fields, what)
            except RemotingError as error:
                if error.code in _NOTHING_THERE:
                    return []
                raise
            found = read_messages(body)
            for before, message in zip([offset - 1, *(item.offset for item in found)], found, strict=False):
                if message.offset <= before:  # who reads on from there would never end
                    raise wire.MalformedAnswerError(f"offset {message.offset} after {before}")
            return found

    def read(self, topic: str, queue: int, offset: int, most: int) -> Iterator[StoredMessage]:
        """Read a queue from an offset on to its end, or `most` messages of it, as nobody's consumer."""
        while most > 0:
            found = self.pull(_READING_GROUP, topic, queue, offset)[:most]
            if not found:
                return
            yield from found
            most -= len(found)
            offset = found[-1].offset + 1

    def messages_with_id(self, topic: str, message_id: str) -> list[StoredMessage]:
        """
        Ask a broker for the messages of a topic with a unique key (`UNIQ_KEY`), oldest first.

        From its index of keys, some milliseconds behind; none also if it keeps no index. At most 32.
        """
        fields = {
            "topic": topic,
            "key": message_id,
            "maxNum": "32",
            "beginTimestamp": "0",
            "endTimestamp": str(2**63 - 1),
            "_UNIQUE_KEY_QUERY": "true",
        }
        what = f"the messages of topic {topic!r} with id {message_id!r}"
        with self._asking(what):
            try:
                _header, body = self._ask(_QUERY_MESSAGE, fields, what)
            except RemotingError as error:
                if error.code == QUERY_NOT_FOUND:
                    return []
                raise
            # The index has hashes: what only shares one comes along.
            found = {
                message.commit_log_offset: message
                for message in read_messages(body)
                if (message.topic, message.message_id) == (topic, message_id)
            }
            return [message for _offset, message in sorted(found.items())]

    def offset_at(self, topic: str, queue: int, unix_milliseconds: int) -> int:
        """Ask a broker for the offset of about the first message of a queue that it stored from then on."""
        fields = {"topic": topic, "queueId": str(queue), "timestamp": str(unix_milliseconds)}
        what = f"the offset in queue {queue} of topic {topic!r} at a time"
        with self._asking(what):
            return self._ask_offset(_SEARCH_OFFSET_BY_TIMESTAMP, fields, what)

    def groups_of(self, topic: str) -> tuple[str, ...]:
        """Ask a broker which consumer groups read a topic: those online, and those with an offset."""
        what = f"the consumer groups of topic {topic!r}"
        with self._asking(what):
            fields = {"topic": topic}
            answer = wire.as_object(self._ask_body(_QUERY_TOPIC_CONSUME_BY_WHO, fields, what), "groups")
            return tuple(str(group) for group in wire.as_list(answer, "groupList"))

    def stored_message(self, commit_log_offset: int) -> StoredMessage:
        """Ask a broker for the message at an offset of its commit log: a half message, for instance."""
        what = f"the message at {commit_log_offset} of its commit log"
        with self._asking(what):
            _header, body = self._ask(_VIEW_MESSAGE_BY_ID, {"offset": str(commit_log_offset)}, what)
            found = read_messages(body)
            if len(found) != 1:
                raise wire.MalformedAnswerError(f"{len(found)} messages, expected one")
            return found[0]
