"""
A small client of the RocketMQ remoting protocol: the questions a probe asks.

The native client can send and consume, but it can't say whether a topic has a route, who is
registered with a broker, or where a consumer group stands. Name server and broker can.
Codes and headers are those of RequestCode.java and ResponseCode.java of Apache RocketMQ 4.9 to 5.4.
"""

from __future__ import annotations

import json
import time
from typing import Final, Literal

from rmq_txn.message import Outbound
from rmq_txn.remoting import answers, wire
from rmq_txn.remoting.answers import ClientConnection, ClusterInfo, StoredAt, TopicRoute
from rmq_txn.remoting.message_reader import MessageReader
from rmq_txn.remoting.server import CONSUMER_NOT_ONLINE, QUERY_NOT_FOUND, SYSTEM_ERROR, RemotingError

_SEND_MESSAGE: Final = 10
_QUERY_CONSUMER_OFFSET: Final = 14
_UPDATE_CONSUMER_OFFSET: Final = 15
_UPDATE_AND_CREATE_TOPIC: Final = 17
_GET_BROKER_CONFIG: Final = 26
_CONSUMER_SEND_MSG_BACK: Final = 36
_END_TRANSACTION: Final = 37
_GET_ROUTE_BY_TOPIC: Final = 105
_GET_BROKER_CLUSTER_INFO: Final = 106
_GET_CONSUMER_CONNECTION_LIST: Final = 203
_GET_PRODUCER_CONNECTION_LIST: Final = 204
_UPDATE_AND_CREATE_GROUP: Final = 200
_GET_CONSUMER_RUNNING_INFO: Final = 307
_GET_TOPIC_CONFIG: Final = 351

_PERM_READ_WRITE: Final = 6
_HALF: Final = 4
"""MessageSysFlag.TRANSACTION_PREPARED_TYPE."""
_ROLLBACK: Final = 12
"""MessageSysFlag.TRANSACTION_ROLLBACK_TYPE."""


class RemotingClient(MessageReader):
    """
    The questions and orders for one name server or one broker.

    Every call raises BrokerUnavailableError when nobody answered in time, and RemotingError when
    the answer is an error code.
    """

    def topic_route(self, topic: str) -> TopicRoute:
        """
        Ask a name server where a topic lives.

        Raises:
            RemotingError: code 17 (TOPIC_NOT_EXIST) when no live broker has it.
        """
        # acceptStandardJsonOnly is understood from 4.9.4 on; older servers ignore it.
        fields = {"topic": topic, "acceptStandardJsonOnly": "true"}
        what = f"the route of topic {topic!r}"
        with self._asking(what, "name server"):
            answer = wire.as_object(self._ask_body(_GET_ROUTE_BY_TOPIC, fields, what), "route")
            return TopicRoute(
                brokers=tuple(answers.read_broker(item) for item in wire.as_list(answer, "brokerDatas")),
                queues=tuple(answers.read_queues(item) for item in wire.as_list(answer, "queueDatas")),
            )

    def cluster_info(self) -> ClusterInfo:
        """Ask a name server which brokers are registered with it."""
        what = "the brokers of the cluster"
        with self._asking(what, "name server"):
            answer = wire.as_object(self._ask_body(_GET_BROKER_CLUSTER_INFO, {}, what), "cluster info")
            brokers = wire.as_object(answer.get("brokerAddrTable") or {}, "brokerAddrTable")
            clusters = wire.as_object(answer.get("clusterAddrTable") or {}, "clusterAddrTable")
            return ClusterInfo(
                brokers={name: answers.read_broker(item) for name, item in brokers.items()},
                clusters={
                    name: tuple(str(item) for item in wire.as_list(clusters, name)) for name in clusters
                },
            )

    def create_topic(
        self,
        topic: str,
        *,
        queues: int = 4,
        message_type: Literal["NORMAL", "FIFO", "DELAY", "TRANSACTION"] | None = None,
    ) -> None:
        """
        Create a topic on the broker asked, or change the number of its queues.

        The broker tells its name servers by itself; until then topic_route says code 17.

        Args:
            topic: the name.
            queues: read and write queues, 1 or more.
            message_type: what gRPC clients may send to it. None keeps what the topic has, a new
                one is NORMAL. Clients of the remoting protocol are never restricted by it.
        """
        if queues < 1:
            raise ValueError(f"queues is {queues!r}, allowed is 1 or more")
        fields = {
            "topic": topic,
            "defaultTopic": "TBW102",  # required by the header, read by nobody since 3.x
            "readQueueNums": str(queues),
            "writeQueueNums": str(queues),
            "perm": str(_PERM_READ_WRITE),
            "topicFilterType": "SINGLE_TAG",
            "topicSysFlag": "0",
            "order": "false",
        }
        if message_type is not None:
            fields["attributes"] = f"+message.type={message_type}"
        what = f"to create topic {topic!r}"
        self._tell(_UPDATE_AND_CREATE_TOPIC, fields, what)

    def producer_connections(self, group: str) -> tuple[ClientConnection, ...]:
        """
        Ask a broker which clients are registered under a producer group.

        Empty also for a group the broker doesn't know: it answers SYSTEM_ERROR then, its only
        refusal of this request.
        """
        fields = {"producerGroup": group}
        return self._connections(_GET_PRODUCER_CONNECTION_LIST, fields, "producer", SYSTEM_ERROR)

    def consumer_connections(self, group: str) -> tuple[ClientConnection, ...]:
        """Ask a broker which clients are registered under a consumer group; none: empty."""
        fields = {"consumerGroup": group}
        return self._connections(_GET_CONSUMER_CONNECTION_LIST, fields, "consumer", CONSUMER_NOT_ONLINE)

    def consumer_subscriptions(self, group: str, client_id: str) -> dict[str, str]:
        """
        Ask a member of a consumer group, through a broker that knows it, what it subscribed to.

        Returns:
            Topic to expression, the retry topic of the group included.

        Raises:
            RemotingError: no such member, it does not answer, or we may not ask.
        """
        fields = {"consumerGroup": group, "clientId": client_id, "jstackEnable": "false"}
        what = f"what member {client_id} of group {group!r} subscribed to"
        with self._asking(what):
            _header, body = self._ask(_GET_CONSUMER_RUNNING_INFO, fields, what)
            return answers.read_subscriptions(body)

    def create_consumer_group(self, group: str) -> None:
        """
        Create a consumer group on the broker asked, with the broker's defaults.

        What a broker does itself at the first heartbeat of a group, only earlier. Overwrites the
        configuration of a group that exists: ask first.
        """
        what = f"to create consumer group {group!r}"
        self._tell(_UPDATE_AND_CREATE_GROUP, {}, what, json.dumps({"groupName": group}).encode())

    def consumer_offset(self, group: str, topic: str, queue: int) -> int | None:
        """Ask a broker where a consumer group stands in a queue; None if it never committed."""
        fields = {"consumerGroup": group, "topic": topic, "queueId": str(queue), "setZeroIfNotFound": "false"}
        what = f"the offset of group {group!r} in queue {queue} of topic {topic!r}"
        with self._asking(what):
            try:
                offset = self._ask_offset(_QUERY_CONSUMER_OFFSET, fields, what)
            except RemotingError as exc:
                if exc.code == QUERY_NOT_FOUND:
                    return None
                raise
        return offset if offset >= 0 else None

    def set_consumer_offset(self, group: str, topic: str, queue: int, offset: int) -> None:
        """Tell a broker where a consumer group stands in a queue."""
        fields = {"consumerGroup": group, "topic": topic, "queueId": str(queue), "commitOffset": str(offset)}
        what = f"to set the offset of group {group!r} in queue {queue} of topic {topic!r}"
        self._tell(_UPDATE_CONSUMER_OFFSET, fields, what)

    def send_back(self, group: str, topic: str, commit_log_offset: int, message_id: str) -> None:
        """Give a message back to the broker that stores it: it delivers it to the group again, later."""
        fields = {
            "group": group,
            "offset": str(commit_log_offset),
            "originTopic": topic,
            "originMsgId": message_id,
            "delayLevel": "0",  # the broker's own: longer with each redelivery
            "unitMode": "false",
            "maxReconsumeTimes": "16",
        }
        what = f"to take message {message_id} back from group {group!r}"
        self._tell(_CONSUMER_SEND_MSG_BACK, fields, what)

    def store(self, group: str, message: Outbound, message_id: str, *, half: bool = False) -> StoredAt:
        """
        Ask a broker to store a message, in any queue: one that consumers see, or a half message of `group`.

        Args:
            message_id: its unique key (`UNIQ_KEY`).
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
        return answers.read_stored_at(self._tell(_SEND_MESSAGE, fields, "to store a message", message.body))

    def roll_back(self, group: str, topic: str, half_message: StoredAt) -> None:
        """
        Tell a broker that a half message shall never be seen. It answers nothing that could be checked.

        Args:
            half_message: what `store` returned.
        """
        fields = {
            "topic": topic,
            "producerGroup": group,
            "tranStateTableOffset": half_message.queue_offset,
            "commitLogOffset": str(half_message.commit_log_offset),
            "commitOrRollback": str(_ROLLBACK),
            "fromTransactionCheck": "false",
            "msgId": half_message.offset_message_id,
            "transactionId": half_message.transaction_id,
        }
        self._tell(_END_TRANSACTION, fields, "to roll a half message back")

    def topic_message_type(self, topic: str) -> str:
        """
        Ask a broker for the message type of a topic: NORMAL if it was made without one.

        Brokers before 5.0 do not know the question.
        """
        what = f"the configuration of topic {topic!r}"
        with self._asking(what):
            answer = wire.as_object(self._ask_body(_GET_TOPIC_CONFIG, {"topic": topic}, what), "topic config")
            attributes = wire.as_object(answer.get("attributes") or {}, "attributes")
            return str(attributes.get("message.type") or "NORMAL")

    def broker_config(self) -> dict[str, str]:
        """Ask a broker for its configuration; administrators may, where access control is enforced."""
        what = "its configuration"
        with self._asking(what):
            _header, body = self._ask(_GET_BROKER_CONFIG, {}, what)
            pairs = (line.partition("=") for line in body.decode(errors="replace").splitlines())
            return {name.strip(): value.strip() for name, mark, value in pairs if mark}

    def _connections(
        self, code: int, fields: dict[str, str], kind: str, none_code: int
    ) -> tuple[ClientConnection, ...]:
        (group,) = fields.values()
        what = f"the connections of {kind} group {group!r}"
        with self._asking(what):
            try:
                answer = wire.as_object(self._ask_body(code, fields, what), "connections")
            except RemotingError as exc:
                if exc.code == none_code:
                    return ()
                raise
            return tuple(answers.read_connection(item) for item in wire.as_list(answer, "connectionSet"))
