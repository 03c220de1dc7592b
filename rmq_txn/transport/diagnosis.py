"""
Why a half message was not stored: the native client says "No route info" for nearly everything.

Asked after the failure, within a few seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.message import Outbound
from rmq_txn.transport.remoting import RemotingError
from rmq_txn.transport.settings import ClusterSettings

_PROBE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a send failed."""

    text: str
    brokers_answer: bool
    """Name server and brokers answer now: the cause has passed, or is the message itself."""


def explain(cluster: ClusterSettings, group: str, message: Outbound, native: str) -> Cause:
    """
    Find the likeliest cause that a send failed, in words and with the next step.

    Args:
        native: what the client said.
    """
    try:
        route = cluster.route(message.topic)
        brokers = {broker.name: broker.master_address for broker in route.brokers}
        for name, address in brokers.items():
            if address is None:
                return Cause(f"broker {name} has no master now; wait for it or start it", False)
            cluster.ask(address, timeout_seconds=_PROBE_SECONDS).producer_connections(group)
    except BrokerUnavailableError as error:
        return Cause(str(error), False)
    except RemotingError as error:
        if error.refused:
            text = f"the broker refuses access_key and secret_key, or their permission: {error.remark}"
            return Cause(text, False)
        return Cause(str(error), False)
    text = (
        f"every broker of the topic answers now ({', '.join(map(str, brokers.values()))}), so the cause "
        f"has passed or is the message: {len(message.body)} bytes of body, the broker's maxMessageSize is "
        f"4194304 by default; the client said: {native}"
    )
    return Cause(text, True)
