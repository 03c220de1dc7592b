"""
Places at which the demo and the tests let this service die. Not used unless DEMO_CRASH is set.

A transport around the real one, so that no production module knows of it. It ends the process with
SIGKILL: nothing is flushed, no handler runs, as after a power cut.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence

import structlog

from rmq_txn.errors import SettingsError
from rmq_txn.message import Outbound
from rmq_txn.transport import Checker, ConsumerTransport, Deliver, Execute, ProducerTransport, Transport
from rmq_txn.verdict import Verdict

log = structlog.get_logger("account_service.crash_points")

VARIABLE = "DEMO_CRASH"
AFTER_HALF_MESSAGE = "after_half_message"
"""The broker has the half message, the local transaction is not committed."""
AFTER_COMMIT = "after_commit"
"""The local transaction is committed, the broker does not know."""
POINTS = (AFTER_HALF_MESSAGE, AFTER_COMMIT)


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
    if point not in POINTS or not key:
        raise SettingsError(f"{VARIABLE} is {text!r}, allowed is {' or '.join(POINTS)}, then :transfer-id")
    log.warning("this process will kill itself", point=point, key=key)
    return _CrashingTransport(broker, point, key)


class _CrashingTransport:
    """See `Transport`."""

    def __init__(self, inner: Transport, point: str, key: str) -> None:
        self._inner = inner
        self._point = point
        self._key = key

    def producer(self, group: str, check: Checker) -> ProducerTransport:
        return _CrashingProducer(self._inner.producer(group, check), self._point, self._key)

    def consumer(
        self, group: str, subscriptions: Mapping[str, Sequence[str]], threads: int, deliver: Deliver
    ) -> ConsumerTransport:
        return self._inner.consumer(group, subscriptions, threads, deliver)


class _CrashingProducer:
    """See `ProducerTransport`."""

    def __init__(self, inner: ProducerTransport, point: str, key: str) -> None:
        self._inner = inner
        self._point = point
        self._key = key

    def start(self) -> None:
        self._inner.start()

    def send_half(self, message: Outbound, execute: Execute) -> None:
        def execute_and_die(message_id: str) -> Verdict:
            if self._point == AFTER_HALF_MESSAGE:
                _die(self._point, self._key)
            verdict = execute(message_id)
            if verdict is Verdict.COMMIT:
                _die(self._point, self._key)
            return verdict

        self._inner.send_half(message, execute_and_die if message.key == self._key else execute)

    def send_plain(self, message: Outbound, message_id: str) -> None:
        self._inner.send_plain(message, message_id)

    def is_registered(self, topic: str) -> bool:
        return self._inner.is_registered(topic)

    def close(self, timeout_seconds: float) -> None:
        self._inner.close(timeout_seconds)


def _die(point: str, key: str) -> None:
    log.warning("killing this process now", point=point, key=key)
    os.kill(os.getpid(), signal.SIGKILL)
