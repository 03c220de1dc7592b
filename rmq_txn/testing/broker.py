"""How a small broker for tests is configured, and how it is asked whether clients find it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.server import RemotingError

READY_TOPIC: Final = "rmq-txn-ready"

_MEGABYTE: Final = 1024 * 1024
_DELAY_LEVELS: Final = 18
_FIXED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "brokerId": "0",
        "autoCreateTopicEnable": "false",  # it hides misspelt names
        "autoCreateSubscriptionGroup": "true",
        "flushDiskType": "ASYNC_FLUSH",
        # After its start the broker spins on a core for this long (10 s by default): the wait of
        # TransactionMetricsFlushService stands inside the condition that it waits for.
        "transactionMetricFlushInterval": "1000",
        # The least the broker accepts: a restarted name server knows it again after 10 s.
        "registerNameServerPeriod": "10000",
        # 200 ms by default: on a busy small machine sends would be refused ("broker busy").
        "waitTimeMillsInSendQueue": "5000",
        "osPageCacheBusyTimeOutMills": "5000",
        # Delete no messages because the disk is nearly full; 95 is the most it accepts.
        "diskMaxUsedSpaceRatio": "95",
        # Small files: they are as large as this from the first message on.
        "mappedFileSizeCommitLog": str(64 * _MEGABYTE),
        "mappedFileSizeConsumeQueue": str(20 * 50_000),
        "mappedFileSizeTimerLog": str(16 * _MEGABYTE),
        "maxHashSlotNum": "100000",
        "maxIndexNum": "400000",
    }
)
# The broker holds a consumer's question for 0.2 s instead of 15 s: consumers stop sooner.
SHORT_POLLS: Final[Mapping[str, str]] = MappingProxyType(
    {"longPollingEnable": "false", "shortPollingTimeMills": "200"}
)


def broker_properties(
    *,
    name: str,
    cluster: str,
    name_server: str,
    advertised_host: str,
    port: int,
    store: str,
    transaction_timeout_seconds: float,
    transaction_check_interval_seconds: float,
    transaction_check_max: int,
) -> dict[str, str]:
    """
    Return the lines of broker.conf.

    Args:
        name: name of the broker.
        cluster: name of its cluster.
        name_server: "host:port" as the broker reaches it.
        advertised_host: where clients are told to find the broker; its port is told as it is.
        port: the broker also listens on two below and one above.
        store: folder of its data, as the broker sees it.
        transaction_timeout_seconds: age of a half message when the broker asks about it first.
        transaction_check_interval_seconds: pause between two rounds of such questions.
        transaction_check_max: questions about a half message until the broker gives it up.
    """
    return {
        **_FIXED,
        "brokerName": name,
        "brokerClusterName": cluster,
        "namesrvAddr": name_server,
        "brokerIP1": advertised_host,
        "listenPort": str(port),
        "haListenPort": str(port + 1),
        "storePathRootDir": store,
        "transactionTimeOut": _milliseconds(transaction_timeout_seconds),
        "transactionCheckInterval": _milliseconds(transaction_check_interval_seconds),
        "transactionCheckMax": str(transaction_check_max),
    }


def delays_of(seconds: int) -> dict[str, str]:
    """Return the line that makes every redelivery, and every delay level, as long as this."""
    return {"messageDelayLevel": " ".join([f"{seconds}s"] * _DELAY_LEVELS)}


def as_text(properties: Mapping[str, str]) -> str:
    """Return the text of a properties file."""
    # A backslash escapes in Java properties; other characters of our values don't.
    lines = [f"{key}={value}".replace("\\", "\\\\") for key, value in properties.items()]
    return "\n".join(lines) + "\n"


def has_route(name_server: RemotingClient, topic: str, broker_address: str) -> bool:
    """
    Tell whether a name server sends clients of a topic to this broker.

    Raises:
        BrokerUnavailableError: the name server did not answer.
    """
    try:
        route = name_server.topic_route(topic)
    except RemotingError:
        return False
    return any(broker.master_address == broker_address for broker in route.brokers)


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
