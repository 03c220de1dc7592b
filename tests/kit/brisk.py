"""
A demo service that looks at brokers and tables each second, and not each 10 or 15.

Run as `python -m tests.kit.brisk`, BRISK_SERVICE being its package: what it says of a fault is the same,
and tests need not wait for it.
"""

from __future__ import annotations

import importlib
import os
from functools import partial

from rmq_txn.consumer import consumer
from rmq_txn.producer.upkeep import OutboxTimes

if __name__ == "__main__":
    service = importlib.import_module(f"{os.environ['BRISK_SERVICE']}.__main__")
    if hasattr(service, "WatchedProducer"):
        times = OutboxTimes(round_seconds=1.0)
        service.WatchedProducer = partial(service.WatchedProducer, outbox_times=times)
    consumer.Upkeep = partial(consumer.Upkeep, round_seconds=1.0)  # type: ignore[assignment, misc]
    service.end(service.main())
