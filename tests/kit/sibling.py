"""
Another producer of a group, in a process of its own, that publishes nothing.

Run as `python -m tests.kit.sibling '<json>'`: starts, says so on stdout, and closes when stdin ends.
With "ahead_seconds" the clock of its machine is wrong by so much.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main(arguments: dict[str, Any]) -> None:
    """Start a producer and wait for the end of stdin."""
    ahead = arguments.get("ahead_seconds", 0)
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + ahead
    time.time_ns = lambda: nanoseconds() + ahead * 1_000_000_000
    # Only now: whoever takes a clock as a default argument gets the wrong one.
    from rmq_txn import Database, RocketMQ, TransactionProducer
    from rmq_txn.producer.upkeep import OutboxTimes

    producer = TransactionProducer(
        group=arguments["group"],
        broker=RocketMQ(arguments["name_server"]),
        database=Database.mysql(arguments["url"]),
        topics=[arguments["topic"]],
        outbox_times=OutboxTimes(round_seconds=0.3),
    )
    with producer:
        print("started", flush=True)
        for line in sys.stdin:
            assert line == "health\n"
            print(json.dumps(producer.health().problems), flush=True)
    print("closed", flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
