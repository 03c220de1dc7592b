"""
What old rows cost: work on tables with many rows beside work on empty ones, and pruning beside work.

Both are told by ratios within one run. Rows are made by the server itself, with ids and keys of the form
that ours have, so that they lie in the indexes as real ones would.
"""

from __future__ import annotations

import queue
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial

from benchmarks import by_hand, turns
from benchmarks.memory import resident_mib
from devstack import LocalStack
from rmq_txn import (
    Database,
    Delivery,
    IdempotentConsumer,
    Message,
    RocketMQ,
    Transaction,
    TransactionProducer,
)
from rmq_txn.database.sideline import Sideline
from rmq_txn.pruning import Pruned, PrunedInbox, PrunedLog, Pruning, cutoff

_DAY_SECONDS = 86_400
_CHUNK_ROWS = 100_000
_RETENTION_SECONDS = 7.0 * _DAY_SECONDS
_OFFERED = 200  # deliveries a second
_BATCH = 20
_WITHOUT_SECONDS, _WITH_SECONDS = 10.0, 30.0
_PATIENCE_SECONDS = 60.0

_NUMBERS = " CROSS JOIN ".join(
    f"(SELECT 0 AS n UNION SELECT 1 UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5"
    f" UNION SELECT 6 UNION SELECT 7 UNION SELECT 8 UNION SELECT 9) AS d{digit}"
    for digit in range(5)
)
_NUMBER = "(d0.n + 10 * d1.n + 100 * d2.n + 1000 * d3.n + 10000 * d4.n)"
_TXN_ID = f"CONCAT(LOWER(LPAD(HEX(FLOOR(%s + {_NUMBER} * %s)), 12, '0')), LEFT(MD5(RAND()), 20))"
_LOG_ROWS = (
    "INSERT INTO rmq_txn_log (txn_id, state, message_ids) "
    f"SELECT {_TXN_ID}, 1, UPPER(MD5(RAND())) FROM {_NUMBERS} WHERE {_NUMBER} < %s"
)
_INBOX_ROWS = (
    "INSERT INTO rmq_txn_inbox (consumer_group, dedup_key, handled_at) "
    f"SELECT %s, CONCAT({_TXN_ID}, '.0/transfers/0123456789abcdef'),"
    f" FROM_UNIXTIME((%s + {_NUMBER} * %s) / 1000) FROM {_NUMBERS} WHERE {_NUMBER} < %s"
)


def fill(database: Database, group: str, rows: int, *, oldest_days: float, newest_days: float) -> None:
    """Make rows in the log and in the inbox of a group, spread evenly over days before now."""
    first = (time.time() - oldest_days * _DAY_SECONDS) * 1000
    step = (oldest_days - newest_days) * _DAY_SECONDS * 1000 / rows
    for done in range(0, rows, _CHUNK_ROWS):
        begin, number = first + done * step, min(_CHUNK_ROWS, rows - done)
        with database.transaction() as txn:
            txn.execute(_LOG_ROWS, (begin, step, number))
            txn.execute(_INBOX_ROWS, (group, begin, step, begin, step, number))
    print(f"{rows} rows in the log and in the inbox of {group}, up to {oldest_days:g} days old", flush=True)


@dataclass
class Window:
    """What happened to deliveries while the pruning ran, or did not."""

    seconds: float
    delays: list[float] = field(default_factory=list)
    """From publishing to the handler, of each delivery."""


def beside_none(
    stack: LocalStack, urls: dict[str, str], resources: ExitStack, rows: int, rounds: int
) -> None:
    """Compare transactions and deliveries on a database with so many rows to those on an empty one."""
    broker = RocketMQ(stack.name_server)
    transactions: dict[str, turns.Contestant] = {}
    deliveries: dict[str, Callable[[], turns.Turn]] = {}
    for name, url in urls.items():
        topic = f"rows{time.time_ns()}"
        unread = f"{topic}-unread"  # of the transactions, so that deliveries are those of their own turn
        stack.create_topic(topic)
        stack.create_topic(unread)
        database = Database.mysql(url)
        if name == "full":
            fill(database, f"c-{topic}", rows, oldest_days=6.9, newest_days=0)
        producer = resources.enter_context(
            TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic, unread])
        )
        gate, handled = threading.Event(), queue.SimpleQueue[int]()
        consumer = IdempotentConsumer(group=f"c-{topic}", broker=broker, database=database, threads=4)
        consumer.handles(topic)(partial(turns.handle, gate, handled))
        resources.enter_context(consumer)
        transactions[name] = partial(turns.form_a, producer, unread)
        deliveries[name] = partial(turns.drain, producer, topic, gate, handled, 400)
    for threads in (1, 8):
        with ThreadPoolExecutor(threads) as pool:
            contest = {
                name: partial(turns.produce, pool, threads, work, 0.5) for name, work in transactions.items()
            }
            seen = turns.alternate(contest, rounds)
        turns.show(f"transactions, {threads} threads, {rows} rows and none", seen)
        turns.ratio(seen, "full", "empty")
    seen = turns.alternate(deliveries, rounds)
    turns.show(f"deliveries, {rows} rows and none", seen)
    turns.ratio(seen, "full", "empty")


def prune_beside_deliveries(stack: LocalStack, url: str, resources: ExitStack, rows: int) -> None:
    """Prune `rows` of log and of inbox while deliveries go on; stop it and let it go on in turns."""
    topic = f"pruning{time.time_ns()}"
    group = f"c-{topic}"
    stack.create_topic(topic)
    database = Database.mysql(url)
    fill(database, group, rows, oldest_days=15, newest_days=8)
    handled: deque[float] = deque()
    consumer = IdempotentConsumer(
        group=group, broker=RocketMQ(stack.name_server), database=database, threads=4, prune=False
    )

    @consumer.handles(topic)
    def work(txn: Transaction, delivery: Delivery) -> None:
        body = delivery.json()
        txn.execute(by_hand.WORK, (body["n"] % 1000,))
        handled.append(time.time() - body["at"])

    resources.enter_context(consumer)
    producer = resources.enter_context(
        TransactionProducer(
            group=f"g-{topic}",
            broker=RocketMQ(stack.name_server),
            database=database,
            topics=[topic],
            prune=False,
        )
    )
    windows: dict[str, list[Window]] = {"without": [], "with": []}
    with publishing(producer, topic), Pruner(url, group) as pruner:
        watch(handled, _WITHOUT_SECONDS)  # a first one, to get warm
        while pruner.is_left:
            windows["without"].append(watch(handled, _WITHOUT_SECONDS))
            pruner.say("go")
            windows["with"].append(watch(handled, _WITH_SECONDS))
            pruner.say("stop")
    show_windows(windows, consumer)
    print(
        f"  {rows} rows of each table in {len(windows['with']) * _WITH_SECONDS:.0f} s; the process that "
        f"pruned had {pruner.resident[0]:.1f} MiB at first, {max(pruner.resident):.1f} at most",
        flush=True,
    )


@contextmanager
def publishing(producer: TransactionProducer, topic: str) -> Iterator[None]:
    """Publish so many messages a second, beside the caller."""
    stop = threading.Event()

    def run() -> None:
        began, number = time.monotonic(), 0
        while not stop.wait(max(0.0, began + number / _OFFERED - time.monotonic())):
            batch = [Message(topic, {"n": number + n, "at": time.time()}) for n in range(_BATCH)]
            producer.send_in_transaction(batch, lambda _txn: None)
            number += _BATCH

    thread = threading.Thread(target=run, name="publishing")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_PATIENCE_SECONDS)


class Pruner:
    """
    A process that prunes when it is told to, as the upkeep of a producer and of a consumer does.

    Attributes:
        is_left: whether anything old is left, as of the last stop.
        resident: MiB that it had in use, at each stop.
    """

    def __init__(self, url: str, group: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.many_rows", url, group],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.is_left = True
        self.resident: list[float] = []

    def __enter__(self) -> Pruner:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def say(self, word: str) -> None:
        """Tell it to go on, or to stop, which is waited for."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(word, file=self._process.stdin, flush=True)
        left, resident, log, inbox = self._process.stdout.readline().split()
        self.is_left = left == "True"
        self.resident.append(float(resident))
        if word == "stop":
            print(f"  pruned so far: {log} rows of the log, {inbox} of the inbox", flush=True)


class _Counted(Pruned):
    """Counts what is deleted."""

    rows = 0

    def delete(self, sideline: Sideline, keys: Sequence[bytes], before: float) -> int:
        """Delete, and count."""
        deleted = super().delete(sideline, keys, before)  # type: ignore[safe-super]
        self.rows += deleted
        return deleted


class CountedLog(_Counted, PrunedLog):
    """The log."""


class CountedInbox(_Counted, PrunedInbox):
    """The inbox of a group."""


def prune_as_told(url: str, group: str) -> None:
    """Be that process: prune log and inbox, each on its thread and with the shipped pauses."""
    database = Database.mysql(url)
    parts = [CountedLog(_RETENTION_SECONDS), CountedInbox(group, _RETENTION_SECONDS)]
    running: list[Pruning] = []
    with closing(database.sideline("bench")) as sideline:
        for line in sys.stdin:
            if line.strip() == "go":
                running = [Pruning(database, "bench", part, round_seconds=0.01) for part in parts]
                for one in running:
                    one.start()
            else:
                for one in running:
                    one.close(_PATIENCE_SECONDS)
            left = any(part.old(sideline, b"", cutoff(part, sideline)) for part in parts)
            print(left, resident_mib(), *(part.rows for part in parts), flush=True)


def watch(handled: deque[float], seconds: float) -> Window:
    """Return the deliveries of the next seconds, whose number is what is measured."""
    handled.clear()
    began = time.monotonic()
    time.sleep(seconds)
    return Window(time.monotonic() - began, list(handled))


def show_windows(windows: dict[str, list[Window]], consumer: IdempotentConsumer) -> None:
    """Print what deliveries did in both kinds of windows."""
    rates = {name: [len(one.delays) / one.seconds for one in found] for name, found in windows.items()}
    for name, found in windows.items():
        delays = sorted(delay for one in found for delay in one.delays)
        p50, p95, p99 = (delays[int(len(delays) * share)] * 1000 for share in (0.5, 0.95, 0.99))
        print(
            f"  {name:8} pruning, {len(found)} windows: {statistics.median(rates[name]):.0f} deliveries "
            f"a second ({min(rates[name]):.0f} to {max(rates[name]):.0f}), "
            f"publish to handler p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms"
        )
    health = consumer.health()
    print(
        f"  with / without: {statistics.median(rates['with']) / statistics.median(rates['without']):.2f}; "
        f"failing {health.failing}, parked {health.parked}",
        flush=True,
    )


if __name__ == "__main__":
    prune_as_told(*sys.argv[1:])
