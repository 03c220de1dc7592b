"""Contestants that take short turns in many rounds of one run, and how they compare within a round."""

from __future__ import annotations

import itertools
import queue
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from benchmarks import by_hand
from rmq_txn import Delivery, Message, Transaction, TransactionProducer

_PATIENCE_SECONDS = 60.0

Contestant = Callable[[int], object]


@dataclass(frozen=True)
class Turn:
    """What one contestant did in one round."""

    rate: float
    """A second."""
    cpu: float
    """Milliseconds of processor time each, in this process."""


T = TypeVar("T")
Turns = dict[str, list[Turn]]


def produce(pool: ThreadPoolExecutor, threads: int, work: Contestant, seconds: float) -> Turn:
    """Run `work` on some threads for a while; each works on rows of its own."""
    stop, together = threading.Event(), threading.Barrier(threads + 1)

    def run(thread: int) -> int:
        together.wait()
        for done in itertools.count():
            if stop.is_set():
                return done
            work(thread + done * threads)
        raise AssertionError("count() does not end")

    running = [pool.submit(run, thread) for thread in range(threads)]
    together.wait()
    began, cpu = time.perf_counter(), time.process_time()
    stop.wait(seconds)
    stop.set()
    done = sum(future.result() for future in running)
    return Turn(done / (time.perf_counter() - began), (time.process_time() - cpu) * 1000 / done)


def form_a(producer: TransactionProducer, topic: str, number: int) -> None:
    """Do a transaction of form A with the work of the floors."""
    with producer.transaction() as txn:
        txn.execute(by_hand.WORK, (number % 1000,))
        txn.publish(topic, {"n": number})


def handle(
    gate: threading.Event, handled: queue.SimpleQueue[int], txn: Transaction, delivery: Delivery
) -> None:
    """Do the work of the floors in a handler."""
    number = delivery.json()["n"]
    gate.wait()
    txn.execute(by_hand.WORK, (number % 1000,))
    handled.put(number)


def drain(
    supplier: TransactionProducer,
    topic: str,
    gate: threading.Event,
    handled: queue.SimpleQueue[int],
    messages: int,
) -> Turn:
    """Publish while handlers wait at the gate, then open it until all are handled."""
    gate.clear()
    for start in range(0, messages, 20):
        batch = [Message(topic, {"n": n}) for n in range(start, min(start + 20, messages))]
        supplier.send_in_transaction(batch, lambda _txn: None)
    began, cpu = time.perf_counter(), time.process_time()
    gate.set()
    for _ in range(messages):
        handled.get(timeout=_PATIENCE_SECONDS)
    return Turn(messages / (time.perf_counter() - began), (time.process_time() - cpu) * 1000 / messages)


def alternate(turns: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Let all take their turn in each round, each round begun by another; drop a first, warm one."""
    names = list(turns)
    seen: dict[str, list[T]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            turn = turns[name]()
            if number:
                seen[name].append(turn)
    return seen


def quartiles(values: Sequence[float], digits: int) -> str:
    """Return the median, and between which values half of them lie."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def show(title: str, seen: Turns) -> None:
    """Print what each contestant did."""
    print(f"\n{title}; median of {len(next(iter(seen.values())))} rounds (half of them between)")
    for name, turns in seen.items():
        rate = quartiles([turn.rate for turn in turns], 0)
        cpu = quartiles([turn.cpu for turn in turns], 2)
        print(f"  {name:21} {rate:24} a second, {cpu:22} ms of processor time")


def ratio(seen: Turns, ours: str, floor: str) -> None:
    """Print how we compare to a floor in the same round: speed by the clock, and by processor time."""
    pairs = list(zip(seen[ours], seen[floor], strict=True))
    clock = quartiles([mine.rate / theirs.rate for mine, theirs in pairs], 2)
    cpu = quartiles([theirs.cpu / mine.cpu for mine, theirs in pairs], 2)
    print(f"  {ours} / {floor}: {clock} by the clock, {cpu} by processor time", flush=True)
