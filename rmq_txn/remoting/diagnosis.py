"""
Why a half message was not stored: the native client says "No route info" for nearly everything.

Asked after the failure, within a few seconds, of the broker itself: with a half message of our own,
which it refuses as it refused the other (docs/decisions/0045).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.identity import new_txn_id
from rmq_txn.message import SCOUT_GROUP, Outbound
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.refusals import properties_bytes, sentence, unwritable
from rmq_txn.remoting.server import RemotingError
from rmq_txn.remoting.wire import MalformedAnswerError

_PROBE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a send failed."""

    text: str
    brokers_answer: bool
    """Name server and brokers answer and take such a message now: the cause has passed."""


def explain(cluster: ClusterSettings, message: Outbound, native: str) -> Cause:
    """
    Find the likeliest cause that a send failed, in words and with the next step.

    Args:
        native: what the client said.
    """
    try:
        route = cluster.route(message.topic)
        masters = {broker.name: broker.master_address for broker in route.brokers}
        for name, address in masters.items():
            if address is None:
                return Cause(f"broker {name} has no master now; wait for it or start it", False)
        # A broker without a writable queue does no harm beside one that has some.
        if not any(queues.writable for queues in route.queues):
            for queues in route.queues:
                address = masters.get(queues.broker_name)
                if address is not None:
                    return Cause(unwritable(cluster, address, message.topic, queues), False)
        for address in filter(None, masters.values()):
            try:
                _try_half(cluster.ask(address, timeout_seconds=_PROBE_SECONDS), message)
            except RemotingError as error:
                return Cause(sentence(cluster, address, message, error), False)
    except (BrokerUnavailableError, RemotingError) as error:
        return Cause(str(error), False)
    text = (
        f"every broker of the topic takes such a message now ({', '.join(map(str, masters.values()))}), "
        f"so the cause has passed; the client said: {native}"
    )
    return Cause(text, True)


def _try_half(client: RemotingClient, message: Outbound) -> None:
    """
    Have a broker store a half message as large as another, and roll it back.

    In the group of the scouts, of which each says ROLLBACK, and without the other's content: whatever
    becomes of it, nobody can be given it for the other.

    Raises:
        RemotingError, BrokerUnavailableError: it refuses, or does not answer.
    """
    sizes = {"rmq_txn_probe": "x" * max(1, properties_bytes(message))}
    probe = Outbound(message.topic, bytes(len(message.body)), key=None, tag=None, properties=sizes)
    stored_at = client.store(SCOUT_GROUP, probe, new_txn_id(), half=True)
    with suppress(MalformedAnswerError):  # then it is asked about
        client.roll_back(SCOUT_GROUP, message.topic, stored_at)
