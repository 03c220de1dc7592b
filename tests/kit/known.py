"""Bare producers that their broker knows, so that it asks them at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from rmq_txn.identity import new_txn_id
from rmq_txn.message import Message
from rmq_txn.transport import ProducerTransport
from rmq_txn.verdict import Verdict
from tests.kit.wait import until

CLOSE_SECONDS = 10.0


def known_producer(
    make: Callable[[], ProducerTransport],
    topic: str,
    resources: ExitStack,
    is_known: Callable[[ProducerTransport], bool] | None = None,
) -> ProducerTransport:
    """
    Start bare producers until the broker knows one, which is closed with `resources`.

    Brokers ask those they have heard of. A native client reports itself some milliseconds after its
    start and then only each 30 s: when its first send came too late for that (a busy machine, a
    broker just started), another one is made; the last one is waited for (docs/hazards.md, A9).
    """
    is_known = is_known or (lambda producer: producer.is_registered(topic))
    for seconds in (*[1.0] * 8, 60.0):
        with ExitStack() as attempt:
            producer = make()
            attempt.callback(producer.close, CLOSE_SECONDS)
            producer.start()
            warm_up = Message(topic, b"warm-up").outbound(txn_id=new_txn_id(), position=0, owner="kit@tests")
            producer.send_half(warm_up, lambda _id: Verdict.ROLLBACK)
            try:
                until(lambda made=producer: is_known(made), "the broker knows the producer", seconds)
            except AssertionError:
                if seconds > 1.0:
                    raise
                continue
            resources.push(attempt.pop_all())
            return producer
    raise AssertionError("not reached: the last try returns or raises")
