"""
What RocketMQ's controllers say about the replicas of a broker, and what a replica says about itself.

Codes and headers are those of RequestCode.java and BrokerReplicasInfo.java of Apache RocketMQ 5.4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rmq_txn.remoting import wire
from rmq_txn.remoting.server import RemotingServer

_GET_ALL_TOPIC_CONFIG: Final = 21
_GET_METADATA: Final = 1005
_GET_SYNC_STATE_DATA: Final = 1006


@dataclass(frozen=True, slots=True)
class Replication:
    """
    The replicas of one broker name, as the leading controller sees them.

    Attributes:
        master: "host:port"; None while none is elected.
        in_sync: addresses of those that may become master, the master among them.
    """

    master: str | None
    in_sync: frozenset[str]


class Controllers(RemotingServer):
    """The controllers of a cluster: give all their addresses, separated by ';'. Errors as RemotingServer."""

    def leader(self) -> str | None:
        """Return the address of the controller that decides; None while they have not agreed on one."""
        fields = self._tell(_GET_METADATA, {}, "who leads the controllers")
        return wire.as_text(fields, "controllerLeaderAddress") or None

    def replication(self, broker_name: str) -> Replication | None:
        """Return how a broker is replicated; None while nobody leads, or nobody registered under the name."""
        leader = self.leader()
        if leader is None:
            return None
        return _Leader(leader, timeout_seconds=self.timeout_seconds).replication(broker_name)


class _Leader(RemotingServer):
    def replication(self, broker_name: str) -> Replication | None:
        what = f"the replicas of {broker_name!r}"
        with self._asking(what):
            _header, body = self._ask(_GET_SYNC_STATE_DATA, {}, what, json.dumps([broker_name]).encode())
            table = wire.as_object(wire.as_object(wire.loads(body), "answer")["replicasInfoTable"], "table")
            if broker_name not in table:
                return None
            found = wire.as_object(table[broker_name], "replicas")
            return Replication(
                wire.as_text(found, "masterAddress") or None,
                frozenset(_address(item) for item in wire.as_list(found, "inSyncReplicas")),
            )


class ReplicaQuestions(RemotingServer):
    """What one broker of a replicated cluster, master or slave, can be asked. Errors as RemotingServer."""

    def topics(self) -> frozenset[str]:
        """Return the topics that this broker itself knows: a slave copies them each ten seconds."""
        what = "its topics"
        with self._asking(what):
            answer = wire.as_object(self._ask_body(_GET_ALL_TOPIC_CONFIG, {}, what), "topics")
            return frozenset(wire.as_object(answer.get("topicConfigTable") or {}, "topicConfigTable"))


def _address(item: object) -> str:
    fields: Mapping[str, object] = wire.as_object(item, "replica")
    return wire.as_text(fields, "brokerAddress")
