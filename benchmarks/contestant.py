"""
One contestant of `./dev bench --all`: a process that is told by lines, and answers each with a line, in JSON.

So that Python and Java, one process and four, are told the same: `Contestant.java` takes the same lines.

* `{"do": "produce", "threads": 8, "seconds": 0.3, "first": 0, "step": 1}`: transactions until the time is
  over, on rows `first`, `first + step`, ...
* `{"do": "delay", "count": 100, "pause": 0.02}`: so many transactions, one at a time, and how long after its
  COMMIT began a consumer in the same process was handed the message.
* `{"do": "drain"}`: let the handlers that waited at the gate go on, until nothing came for half a second.
"""

from __future__ import annotations

import json
import os
import queue
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from benchmarks import by_hand, rivals
from benchmarks.memory import resident_mib
from benchmarks.turns import form_a, handle, produce
from rmq_txn import Database, IdempotentConsumer, Message, RocketMQ, TransactionProducer

_MOST_THREADS = 32
_QUIET_SECONDS = 0.5
_PATIENCE_SECONDS = 60.0

PRODUCERS = (
    "form A",
    "form B",
    "by hand",
    "naive",
    "polled outbox",
    "plain",
    "no message",
)
OF_THREE_MESSAGES = ("form A, 3 messages", "form B, 3 messages")
CONSUMERS = ("delivery", "by hand", "naive")

BeforeCommit = Callable[[], None]


class Produces:
    """A producer of one kind; `work(number)` is one transaction."""

    def __init__(self, kind: str, name_server: str, url: str, topic: str) -> None:
        self._topic = topic
        self._pool = ThreadPoolExecutor(_MOST_THREADS)
        self.settle: Callable[[], None] = lambda: None
        self.work: Callable[[int], object]
        self.timed: Callable[[int, BeforeCommit], None] | None = None
        if kind in ("by hand", "naive"):
            floor = by_hand.Producer(name_server, url, topic)
            self.work = floor.same_form_a if kind == "by hand" else floor.naive
        elif kind == "polled outbox":
            polled = rivals.PolledOutbox(name_server, url, topic)
            self.work, self.timed, self.settle = polled.work, polled.work, polled.wait_until_sent
        elif kind == "plain":
            plain = rivals.PlainAfterCommit(name_server, url, topic)
            self.work = self.timed = plain.work
        elif kind == "no message":
            self.work = rivals.Writer(url).only_work
        else:
            self._ours(kind, name_server, url)

    def _ours(self, kind: str, name_server: str, url: str) -> None:
        broker, topic = RocketMQ(name_server), self._topic
        # A connection a thread, as all others have.
        database = Database.mysql(url, pool_size=_MOST_THREADS)
        producer = TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic])
        producer.start()

        def three(number: int) -> None:
            with producer.transaction() as txn:
                txn.execute(by_hand.WORK, (number % 1000,))
                for _ in range(3):
                    txn.publish(topic, {"n": number})

        def form_b(number: int) -> None:
            message = Message(topic, {"n": number})
            producer.send_in_transaction(message, lambda txn: txn.execute(by_hand.WORK, (number % 1000,)))

        def three_b(number: int) -> None:
            messages = [Message(topic, {"n": number}) for _ in range(3)]
            producer.send_in_transaction(messages, lambda txn: txn.execute(by_hand.WORK, (number % 1000,)))

        def timed(number: int, before_commit: BeforeCommit) -> None:
            with producer.transaction() as txn:
                txn.execute(by_hand.WORK, (number % 1000,))
                txn.publish(topic, {"n": number})
                before_commit()

        kinds: dict[str, Callable[[int], object]] = {
            "form A": partial(form_a, producer, topic),
            "form A, 3 messages": three,
            "form B": form_b,
            "form B, 3 messages": three_b,
        }
        self.work = kinds[kind]
        self.timed = timed

    def produce(self, threads: int, seconds: float, first: int, step: int) -> dict[str, object]:
        """See the module."""
        took: list[float] = []

        def timed(number: int) -> None:
            began = time.perf_counter()
            self.work(first + step * number)
            took.append(time.perf_counter() - began)

        began, cpu = time.perf_counter(), time.process_time()
        produce(self._pool, threads, timed, seconds)
        self.settle()
        return {
            "done": len(took),
            "seconds": time.perf_counter() - began,
            "cpu": time.process_time() - cpu,
            **percentiles(took),
        }

    def delay(self, name_server: str, count: int, pause: float) -> dict[str, object]:
        """See the module."""
        assert self.timed is not None
        began: dict[int, float] = {}
        delays: list[float] = []
        arrived = threading.Semaphore(0)

        def seen(number: int) -> None:
            if (at := began.get(number)) is not None:
                delays.append(time.perf_counter() - at)
            arrived.release()

        by_hand.Listener(name_server, self._topic, f"d-{self._topic}", seen)
        while not arrived.acquire(timeout=2.0):  # a new consumer begins at the end, wherever that is by then
            self.timed(-1, lambda: None)
            self.settle()
        for number in range(count):
            self.timed(number, partial(_note, began, number))
            time.sleep(pause)
        deadline = time.perf_counter() + _PATIENCE_SECONDS
        while len(delays) < count:
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{len(delays)} of {count} messages arrived")
            arrived.acquire(timeout=1.0)
        self.settle()
        return {"done": count, **percentiles(delays)}


def _note(began: dict[int, float], number: int) -> None:
    began[number] = time.perf_counter()


class Consumes:
    """A consumer of one kind whose handlers wait at a gate until they may go."""

    def __init__(self, kind: str, name_server: str, url: str, topic: str, threads: int) -> None:
        group = f"c-{topic}"
        if kind == "delivery":
            self._gate, self._handled = threading.Event(), queue.SimpleQueue[int]()
            consumer = IdempotentConsumer(
                group=group, broker=RocketMQ(name_server), database=Database.mysql(url), threads=threads
            )
            consumer.handles(topic)(partial(handle, self._gate, self._handled))
            consumer.start()
        else:
            floor = by_hand.Consumer(
                name_server, url, topic, group, threads=threads, tripwire=kind != "naive"
            )
            self._gate, self._handled = floor.gate, floor.handled

    def drain(self) -> dict[str, object]:
        """See the module; `last` is the clock that all processes of a machine share."""
        cpu, done, last = time.process_time(), 0, time.monotonic()
        self._gate.set()
        while True:
            try:
                self._handled.get(timeout=_QUIET_SECONDS)
            except queue.Empty:
                break
            done, last = done + 1, time.monotonic()
        self._gate.clear()
        return {"done": done, "last": last, "cpu": time.process_time() - cpu}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the percentiles in milliseconds."""
    if len(seconds) < 2:
        return dict.fromkeys(("p50", "p95", "p99"), seconds[0] * 1000 if seconds else 0.0)
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"p{n}": cuts[n - 1] * 1000 for n in (50, 95, 99)}


def main(role: str, kind: str, name_server: str, url: str, topic: str, threads: str) -> None:
    """Obey until the input ends."""
    try:
        obey(role, kind, name_server, url, topic, threads)
    except Exception:
        traceback.print_exc()
        raise
    finally:
        os._exit(
            0
        )  # clients are not closed, threads may wait: nobody is told anything by this process any more


def obey(role: str, kind: str, name_server: str, url: str, topic: str, threads: str) -> None:
    """Make the contestant, and do what the lines say."""
    made: Any
    if role == "produce":
        made = Produces(kind, name_server, url, topic)
    else:
        made = Consumes(kind, name_server, url, topic, int(threads))
    print("{}", flush=True)  # ready
    for line in sys.stdin:
        command = json.loads(line)
        what = command.pop("do")
        if what == "produce":
            answer = made.produce(**command)
        elif what == "delay":
            answer = made.delay(name_server, **command)
        else:
            answer = made.drain()
        print(json.dumps({**answer, "resident": resident_mib()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
