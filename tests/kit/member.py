"""
A producer process whose verdicts and answers all get lost, for the tests of the outbox.

Run as `python -m tests.kit.member '<json>'`: publishes, says so on stdout, and stays until stdin
ends. With "stops" it pauses itself right after that, before a broker can have asked about anything.
With "fixed_seconds" it removes its outbox rows as a naive design would: that long after the verdict,
whatever happened.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

from rmq_txn import Database, RocketMQ, TransactionProducer
from rmq_txn.producer import parts
from rmq_txn.producer.undisturbed_time import UndisturbedTime
from rmq_txn.producer.upkeep import OutboxTimes
from rmq_txn.transport import Checker, Execute
from rmq_txn.verdict import Verdict
from tests.kit.transports import Wrapped, never_answers


class FixedTime:
    """The naive policy: see `SentVerdicts`, whose place it takes."""

    fixed_seconds = 0.0

    def __init__(self, undisturbed: UndisturbedTime, _check_budget_seconds: float) -> None:
        self.now = undisturbed.now
        self._lock = threading.Lock()
        self._sent: list[tuple[float, str]] = []

    def add(self, txn_id: str, _began: float) -> None:
        """Remember."""
        with self._lock:
            self._sent.append((self.now(), txn_id))

    def settled(self) -> Iterator[list[str]]:
        """Take out what is old enough."""
        with self._lock:
            while self._sent and self.now() - self._sent[0][0] > self.fixed_seconds:
                yield [self._sent.pop(0)[1]]


def lost(_check: Checker) -> Checker:
    """Answer the broker's questions so that it learns nothing."""
    return lambda _question: Verdict.UNKNOWN


def main(arguments: dict[str, Any]) -> None:
    """Publish one message for each of `ids`, then wait for the end of stdin."""
    with ExitStack() as resources:
        if "fixed_seconds" in arguments:
            FixedTime.fixed_seconds = arguments["fixed_seconds"]
            resources.enter_context(mock.patch.object(parts, "SentVerdicts", FixedTime))
        database = Database.mysql(arguments["url"])
        resources.callback(database.close)
        armed = threading.Event()  # the half messages of the start are rolled back as ever

        def around(execute: Execute) -> Execute:
            return never_answers(execute) if armed.is_set() else execute

        broker = RocketMQ(arguments["name_server"])
        producer = TransactionProducer(
            group=arguments["group"],
            broker=Wrapped(broker, around_execute=around, around_check=lost),
            database=database,
            topics=[arguments["topic"]],
            check_budget_seconds=arguments["check_budget_seconds"],
            outbox_times=OutboxTimes(**arguments["outbox_times"]),
        )
        resources.enter_context(producer)
        armed.set()
        for id_ in arguments["ids"]:
            with producer.transaction() as txn:
                txn.execute("INSERT INTO effect (id) VALUES (%s)", (id_,))
                txn.publish(arguments["topic"], {"id": id_})
        print("published", flush=True)
        if arguments.get("stops"):
            os.kill(os.getpid(), signal.SIGSTOP)
        sys.stdin.read()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
