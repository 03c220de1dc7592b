"""
Known to the brokers from the first second on, so that a restarted and idle producer is asked.

Brokers ask only producers that reported themselves. The native client reports itself to the brokers
of topics it has sent to, some milliseconds after its start and then only each 30 s (docs/hazards.md,
A9; docs/decisions/0011-registered-means-asked-for-and-seen.md).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from rmq_txn.checkback import Oracle
from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.logs import get_logger
from rmq_txn.message import Message
from rmq_txn.transport import ProducerTransport, Transport
from rmq_txn.verdict import Verdict

log = get_logger("registration")

_TRIES = 8
_SECONDS_A_TRY = 0.4


def start_registered(
    broker: Transport,
    group: str,
    topics: Sequence[str],
    oracle: Oracle,
    close_timeout_seconds: float,
    announce: Callable[[str], None],
) -> ProducerTransport:
    """
    Start a client that the brokers of all topics know; after some tries, one that they will know.

    Args:
        announce: called with `ProducerTransport.instance` before a client is started, and so before
            any broker can name it to the others of the group.

    Raises: as `ProducerTransport.start` and `send_half`, and what `announce` raises; then nothing is
        left open.
    """
    for tries_left in reversed(range(_TRIES)):
        client = broker.producer(group, oracle.check)
        announce(client.instance)
        try:
            client.start()
            for topic in topics:
                _warm_up(client, topic, oracle)
        except BaseException:
            client.close(close_timeout_seconds)
            raise
        if _known_soon(client, topics):
            return client
        if tries_left:
            client.close(close_timeout_seconds)
    log.warning("the brokers don't know this producer yet, check-backs may wait for 30 s", group=group)
    return client


def _brokers_know(client: ProducerTransport, topics: Sequence[str]) -> bool:
    try:
        return all(client.is_registered(topic) for topic in topics)
    except BrokerUnavailableError as error:
        log.warning("the brokers can't be asked who is registered", error=str(error))
        return False


def _known_soon(client: ProducerTransport, topics: Sequence[str]) -> bool:
    deadline = time.monotonic() + _SECONDS_A_TRY
    pause = threading.Event()
    while not _brokers_know(client, topics):
        if time.monotonic() >= deadline:
            return False
        pause.wait(0.02)
    return True


def _warm_up(client: ProducerTransport, topic: str, oracle: Oracle) -> None:
    """Make the brokers of a topic known to the client, by a half message rolled back at once."""
    txn_id = oracle.new_txn_id()
    message = Message(topic, b"rmq_txn warm-up, rolled back").outbound(
        txn_id=txn_id, position=0, owner=oracle.owner.name, stamp=oracle.owner.stamp(txn_id, 0)
    )
    client.send_half(message, lambda _message_id: Verdict.ROLLBACK)
