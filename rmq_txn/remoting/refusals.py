"""
Why a broker does not take a message, or gives none: a sentence for each of its codes, with the next step.

The codes are those of ResponseCode.java and RemotingSysResponseCode.java (5.4.0) that a send is answered
with. Decided by codes, routes and configuration; what the broker said stands behind, for people.
"""

from __future__ import annotations

from typing import Final

from rmq_txn.errors import BrokerUnavailableError, RmqTxnError
from rmq_txn.logs import get_logger
from rmq_txn.message import Outbound
from rmq_txn.remoting.answers import RouteQueues
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.server import MESSAGE_ILLEGAL, NO_PERMISSION, RemotingError

log = get_logger("transport.refusals")

_READ: Final = 4
_WRITE: Final = 2
_PROBE_SECONDS: Final = 1.0

_NO_WRITES: Final = "takes no writes at all (brokerPermission in its configuration); set it to 6"
_SENTENCES: Final = {
    1: "had an error of its own (SYSTEM_ERROR); its log, broker.log, says which",
    2: "is too busy and takes nothing now (SYSTEM_BUSY); send less at once, or give its disk more speed",
    4: "could not store it as part of a transaction (TRANSACTION_FAILED); its log, broker.log, says why",
    10: "stored it and could not flush it to disk in time (FLUSH_DISK_TIMEOUT: flushDiskType=SYNC_FLUSH); "
    "its disk is slow, or syncFlushTimeout is too short",
    11: "stored it and has no replica that could confirm it (SLAVE_NOT_AVAILABLE: brokerRole=SYNC_MASTER); "
    "start the replica",
    12: "stored it and its replica did not confirm it in time (FLUSH_SLAVE_TIMEOUT: "
    "brokerRole=SYNC_MASTER); look at the replica and the network to it",
    14: "takes no messages now (SERVICE_NOT_AVAILABLE): its disk is full, it is shutting down, or it is a "
    "replica; look at its disk first",
    17: "does not have the topic (TOPIC_NOT_EXIST); create it on each broker",
    215: "limits how much is sent (FLOW_CONTROL); send less at once",
    501: "does not lead this queue now (NOT_LEADER_FOR_QUEUE); wait for its new leader",
}


def sentence(cluster: ClusterSettings, address: str, message: Outbound, error: RemotingError) -> str:
    """
    Say why a broker refused to store a message; asks for its configuration where that decides.

    Args:
        address: the broker's.
        error: what it answered.
    """
    if error.code == NO_PERMISSION:
        words = _forbidden(cluster, address, message.topic)
    elif error.code == MESSAGE_ILLEGAL:
        limit = _config(cluster, address).get("maxMessageSize", "4194304 by default")
        words = (
            f"refuses this message (MESSAGE_ILLEGAL): {len(message.body)} bytes of body and "
            f"{properties_bytes(message)} bytes of properties, its maxMessageSize is {limit}, and "
            "properties may have 32767"
        )
    else:
        words = _SENTENCES.get(error.code, "refuses the message")
    return f"broker {address} {words} (code {error.code}: {error.remark})"


def unwritable(cluster: ClusterSettings, address: str, topic: str, queues: RouteQueues) -> str:
    """Say why the name servers let nobody write a topic on a broker."""
    if not _permission(_config(cluster, address)) & _WRITE:
        return f"broker {address} {_NO_WRITES}"
    if queues.permission & _WRITE:
        return f"topic {topic!r} has no queue for writing on broker {address}: mqadmin updateTopic -w 4"
    return (
        f"topic {topic!r} may not be written on broker {address} (its permission is {queues.permission}, "
        f"2 is missing): mqadmin updateTopicPerm -t {topic} -p {queues.permission | _WRITE}"
    )


def require_pulls(cluster: ClusterSettings, group: str, topic: str) -> None:
    """
    Pull once as a consumer would, and say why its brokers let it not: the native client only waits.

    What is read is thrown away, no offset moves. Servers that do not answer are not this question's.

    Raises:
        BrokerUnavailableError: every broker of the topic forbids it; one of several is logged.
    """
    masters, refused = cluster.masters(topic), list[str]()
    for master in masters:
        address = master.address
        client = cluster.ask(address)
        try:
            if master.queues:
                client.pull(group, topic, 0, client.consumer_offset(group, topic, 0) or 0)
            else:
                refused.append(f"topic {topic!r} has no queue for reading on broker {address}")
        except RemotingError as error:
            if error.code == NO_PERMISSION:
                refused.append(_unreadable(cluster, address, group, topic, error))
        except BrokerUnavailableError as error:
            log.warning("it can't be asked whether messages may be pulled", topic=topic, error=str(error))
    if refused and len(refused) == len(masters):
        raise BrokerUnavailableError("; ".join(refused))
    for words in refused:
        log.error("messages of one broker will not be delivered", topic=topic, group=group, error=words)


def _unreadable(cluster: ClusterSettings, address: str, group: str, topic: str, error: RemotingError) -> str:
    if not _permission(_config(cluster, address)) & _READ:
        words = "lets nobody read (brokerPermission in its configuration); set it to 6"
    elif any(not queues.readable for queues in _queues(cluster, address, topic)):
        words = f"lets nobody read topic {topic!r}: mqadmin updateTopicPerm -t {topic} -p 6"
    else:
        words = (
            f"does not let group {group!r} consume topic {topic!r}: its access_key may not, or the group is "
            "switched off (consumeEnable=false): mqadmin updateSubGroup"
        )
    return f"broker {address} {words} (code {error.code}: {error.remark})"


def properties_bytes(message: Outbound) -> int:
    """Count names and values together, key and tag too."""
    texts = [*message.properties, *message.properties.values(), message.key or "", message.tag or ""]
    return sum(len(text.encode()) for text in texts)


def _forbidden(cluster: ClusterSettings, address: str, topic: str) -> str:
    config = _config(cluster, address)
    if not _permission(config) & _WRITE:
        return _NO_WRITES
    if config.get("rejectTransactionMessage") == "true":
        return (
            "takes no transactional messages (rejectTransactionMessage=true in its configuration); set it to "
            "false"
        )
    for queues in _queues(cluster, address, topic):
        if not queues.writable:
            return unwritable(cluster, address, topic, queues)
    refused = f"refuses access_key and secret_key, or their permission to write topic {topic!r}"
    return refused if config else f"{refused}; its configuration, which might say more, may not be read"


def _config(cluster: ClusterSettings, address: str) -> dict[str, str]:
    try:
        return cluster.ask(address, timeout_seconds=_PROBE_SECONDS).broker_config()
    except RmqTxnError:  # administrators only, with access control
        return {}


def _permission(config: dict[str, str]) -> int:
    permission = config.get("brokerPermission", "6")
    return int(permission) if permission in "0123456789" and permission else _READ | _WRITE


def _queues(cluster: ClusterSettings, address: str, topic: str) -> list[RouteQueues]:
    try:
        route = cluster.route(topic)
    except RmqTxnError:
        return []
    names = {broker.name for broker in route.brokers if broker.master_address == address}
    return [queues for queues in route.queues if queues.broker_name in names]
