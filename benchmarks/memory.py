"""What stays after many messages each way: native objects, threads, files and resident memory."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import by_hand
from devstack import LocalStack
from rmq_txn import Database, Delivery, IdempotentConsumer, RocketMQ, Transaction, TransactionProducer
from rmq_txn.transport import binding

_PATIENCE_SECONDS = 120.0
_STEPS = 4


class Counted:
    """A native function that counts its calls."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._calls = itertools.count()

    def __call__(self, *arguments: Any) -> Any:
        """Call it."""
        next(self._calls)
        return self._function(*arguments)

    @property
    def calls(self) -> int:
        """How many there were; reading it is not one."""
        return int(self._calls.__reduce__()[1][0])


def measure(stack: LocalStack, url: str, resources: ExitStack, messages: int) -> None:
    """Send and consume `messages` through both helpers, four threads each, and print what is left."""
    dll = binding.ffi().dll
    made = dll.CreateMessage = Counted(dll.CreateMessage)
    destroyed = dll.DestroyMessage = Counted(dll.DestroyMessage)
    topic = f"memory{time.time_ns()}"
    stack.create_topic(topic)
    broker, database = RocketMQ(stack.name_server), Database.mysql(url)
    handled, all_handled = itertools.count(1), threading.Semaphore(0)
    consumer = IdempotentConsumer(group=f"c-{topic}", broker=broker, database=database)

    @consumer.handles(topic)
    def work(txn: Transaction, delivery: Delivery) -> None:
        txn.execute(by_hand.WORK, (500 + delivery.json()["n"] % 500,))
        if next(handled) % (messages // _STEPS) == 0:
            all_handled.release()

    resources.enter_context(consumer)
    producer = resources.enter_context(
        TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic])
    )

    def send(number: int) -> None:
        with producer.transaction() as txn:
            txn.execute(by_hand.WORK, (number % 500,))  # other rows: no lock of ours waits for one of theirs
            txn.publish(topic, {"n": number})

    print("\n   sent  native made  destroyed  threads  files  Python objects  resident MiB")
    for step in range(_STEPS + 1):
        if step:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(send, range(messages // _STEPS)))
            if not all_handled.acquire(timeout=_PATIENCE_SECONDS):
                raise TimeoutError(f"step {step} was not consumed in {_PATIENCE_SECONDS:g} s")
        gc.collect()
        print(
            f"{step * (messages // _STEPS):7} {made.calls:12} {destroyed.calls:10}"
            f" {len(list(Path('/proc/self/task').iterdir())):8} {len(os.listdir('/proc/self/fd')):6}"  # noqa: PTH208
            f" {len(gc.get_objects()):15} {resident_mib():13.1f}",
            flush=True,
        )


def resident_mib() -> float:
    """Return the memory this process has in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
