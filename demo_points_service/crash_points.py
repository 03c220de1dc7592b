"""
The place at which the demo and the tests let this service die. Not used unless DEMO_CRASH is set.

A transport around the real one, so that no production module knows of it. It ends the process with
SIGKILL: nothing is flushed, no handler runs, as after a power cut.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence

import structlog

from rmq_txn import Delivery
from rmq_txn.errors import SettingsError
from rmq_txn.transport import Checker, ConsumerTransport, Deliver, ProducerTransport, Transport
from rmq_txn.verdict import Answer

log = structlog.get_logger("points_service.crash_points")

VARIABLE = "DEMO_CRASH"
AFTER_COMMIT_BEFORE_ACK = "after_commit_before_ack"
"""The handler's transaction is committed, the broker has no ack and will deliver again."""


def with_crash_point(broker: Transport, environment: Mapping[str, str]) -> Transport:
    """
    Return `broker`, with the crash point of DEMO_CRASH if that is set: `point:transfer id`.

    Raises:
        SettingsError: there is no such crash point, or no transfer id.
    """
    text = environment.get(VARIABLE, "")
    if not text:
        return broker
    point, _, key = text.partition(":")
    if point != AFTER_COMMIT_BEFORE_ACK or not key:
        raise SettingsError(f"{VARIABLE} is {text!r}, allowed is {AFTER_COMMIT_BEFORE_ACK}:transfer-id")
    log.warning("this process will kill itself", point=point, key=key)
    return _CrashingTransport(broker, key)


class _CrashingTransport:
    """See `Transport`."""

    def __init__(self, inner: Transport, key: str) -> None:
        self._inner = inner
        self._key = key

    def producer(self, group: str, check: Checker) -> ProducerTransport:
        return self._inner.producer(group, check)

    def consumer(
        self, group: str, subscriptions: Mapping[str, Sequence[str]], threads: int, deliver: Deliver
    ) -> ConsumerTransport:
        def deliver_and_die(delivery: Delivery) -> Answer:
            answer = deliver(delivery)
            if answer is Answer.ACK and delivery.key == self._key:
                log.warning("killing this process now", key=delivery.key)
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return self._inner.consumer(group, subscriptions, threads, deliver_and_die)
