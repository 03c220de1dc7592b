"""The default transport: real RocketMQ through the native client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rmq_txn.message import check_group, check_tag, check_topic
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.transport import Checker, Deliver
from rmq_txn.transport.native_consumer import NativeConsumer
from rmq_txn.transport.native_producer import NativeProducer


@dataclass(frozen=True)
class RocketMQ(ClusterSettings):
    """
    A RocketMQ cluster reached by the native client. A value: nothing is connected yet.

    Args:
        name_servers: `host:port`, several separated by `;`. IPv4 only.
        access_key: credentials, together with `secret_key` or not at all. Not shown by `repr`.
        secret_key: see `access_key`.
        send_timeout_seconds: of one attempt to store a half message; the client makes up to five.
        cache_messages: how many messages not yet handled a consumer keeps of each queue, at most. It keeps
            what it handles in two seconds, within 32 MiB a queue, and a hundred in any case. Of one queue no
            more than are kept are handled in a second. What is left of them `drain_seconds` after `close`
            began is given back.
        new_group_from: where a consumer group that never consumed a topic begins: "earliest", with
            everything the broker still has, or "latest", with what is sent after its start.
        extra_properties: properties of messages from other clients that handlers want to read; the
            client can only read a property whose name it is told. Ours need no mention.

    Raises:
        SettingsError: an address, a number or the credentials are not usable.
    """

    def producer(self, group: str, check: Checker) -> NativeProducer:
        """See `Transport.producer`."""
        return NativeProducer(self, check_group(group), check)

    def consumer(
        self, group: str, subscriptions: Mapping[str, Sequence[str]], threads: int, deliver: Deliver
    ) -> NativeConsumer:
        """See `Transport.consumer`."""
        expressions = {
            check_topic(topic): "*" if "*" in tags else " || ".join(map(check_tag, tags))
            for topic, tags in subscriptions.items()
        }
        return NativeConsumer(self, check_group(group), expressions, threads, deliver)
