"""
`./dev bench`: transactions and deliveries a second, beside the same work written by hand.

Two floors: *same* sends the same statements over the raw client, so sdk/same is what the wrapper
costs; *naive* is half message, log row, update, commit (or inbox row, update, commit), so sdk/naive
is what the guarantees cost as well. All contestants take short turns in many rounds of one run, and a
ratio is taken within its round: what the machine does beside it hits them alike. Processor time of
this process stands beside: it is steadier than the clock on a busy machine, and under the GIL it is
what bounds many threads.
"""

from __future__ import annotations

import argparse
import itertools
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import by_hand, memory
from devstack import LocalStack, StackError, StackSettings
from devstack.settings import CHECKOUT
from rmq_txn import (
    Database,
    Delivery,
    IdempotentConsumer,
    Message,
    RocketMQ,
    Transaction,
    TransactionProducer,
    schema,
)

Contestant = Callable[[int], object]


@dataclass(frozen=True)
class Turn:
    """What one contestant did in one round."""

    rate: float
    """A second."""
    cpu: float
    """Milliseconds of processor time each, in this process."""


Turns = dict[str, list[Turn]]
DEFAULT_FOLDER = CHECKOUT / ".devstack" / "bench"
MEMORY_MESSAGES = 20_000
_PATIENCE_SECONDS = 60.0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="rounds a table (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=0.25, help="a producer's turn in a round (default: %(default)s)"
    )
    parser.add_argument(
        "--messages", type=int, default=400, help="a consumer's turn in a round (default: %(default)s)"
    )
    parser.add_argument(
        "--only", choices=["producing", "consuming", "memory"], help="one of the parts (default: all)"
    )
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="default: %(default)s")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Measure and print; return the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        with LocalStack(StackSettings(folder=options.folder)) as stack, ExitStack() as resources:
            url = prepare(stack)
            if options.only in (None, "producing"):
                producing(stack, url, resources, options.rounds, options.seconds)
            if options.only in (None, "consuming"):
                consuming(stack, url, resources, options.rounds, options.messages)
            if options.only in (None, "memory"):
                memory.measure(stack, url, resources, MEMORY_MESSAGES)
    except StackError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(stack: LocalStack) -> str:
    """Make a database with our tables and 1000 rows to update; return its URL."""
    url = stack.database_url("bench")
    database = Database.mysql(url)
    schema.apply(database)
    schema.run_script(
        database,
        "CREATE TABLE IF NOT EXISTS bench (id INT PRIMARY KEY, n BIGINT NOT NULL) ENGINE=InnoDB",
    )
    with database.transaction() as txn:
        txn.executemany("REPLACE INTO bench (id, n) VALUES (%s, 0)", [(n,) for n in range(1000)])
    database.close()
    return url


def producing(stack: LocalStack, url: str, resources: ExitStack, rounds: int, seconds: float) -> None:
    """Measure both forms on one thread and on eight."""
    topic = f"bench{time.time_ns()}"
    stack.create_topic(topic)
    database = Database.mysql(url)
    producer = resources.enter_context(
        TransactionProducer(
            group=f"g-{topic}", broker=RocketMQ(stack.name_server), database=database, topics=[topic]
        )
    )
    floor = by_hand.Producer(stack.name_server, url, topic)

    def form_a(number: int) -> None:
        with producer.transaction() as txn:
            txn.execute(by_hand.WORK, (number % 1000,))
            txn.publish(topic, {"n": number})

    def form_b(number: int) -> None:
        producer.send_in_transaction(
            Message(topic, {"n": number}), lambda txn: txn.execute(by_hand.WORK, (number % 1000,))
        )

    contestants: dict[str, Contestant] = {
        "form A": form_a,
        "same statements as A": floor.same_form_a,
        "form B": form_b,
        "same statements as B": floor.same_form_b,
        "naive": floor.naive,
    }
    for threads in (1, 8):
        with ThreadPoolExecutor(
            threads
        ) as pool:  # the same threads for all: floors keep a connection in each
            turns = {
                name: partial(produce, pool, threads, work, seconds) for name, work in contestants.items()
            }
            seen = alternate(turns, rounds)
        show(f"transactions, {threads} thread{'s'[: threads - 1]}", seen)
        for form in "AB":
            ratio(seen, f"form {form}", f"same statements as {form}")
            ratio(seen, f"form {form}", "naive")


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


def consuming(stack: LocalStack, url: str, resources: ExitStack, rounds: int, messages: int) -> None:
    """Measure how fast messages that are already at the broker are handled, on four threads."""
    database = Database.mysql(url)
    turns: dict[str, Callable[[], Turn]] = {}
    for n, name in enumerate(("sdk", "same statements", "naive")):
        topic = f"bench{time.time_ns()}-{n}"
        stack.create_topic(topic)
        if name == "sdk":
            gate, handled = threading.Event(), queue.SimpleQueue[int]()
            consumer = IdempotentConsumer(
                group=f"c-{topic}", broker=RocketMQ(stack.name_server), database=database, threads=4
            )
            consumer.handles(topic)(partial(handle, gate, handled))
            resources.enter_context(consumer)
        else:
            floor = by_hand.Consumer(
                stack.name_server, url, topic, f"c-{topic}", threads=4, tripwire=name != "naive"
            )
            gate, handled = floor.gate, floor.handled
        supplier = resources.enter_context(
            TransactionProducer(
                group=f"g-{topic}", broker=RocketMQ(stack.name_server), database=database, topics=[topic]
            )
        )
        turns[name] = partial(drain, supplier, topic, gate, handled, messages)
    seen = alternate(turns, rounds)
    show("deliveries, 4 threads", seen)
    ratio(seen, "sdk", "same statements")
    ratio(seen, "sdk", "naive")


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


def alternate(turns: dict[str, Callable[[], Turn]], rounds: int) -> Turns:
    """Let all take their turn in each round, each round begun by another; drop a first, warm one."""
    names = list(turns)
    seen: Turns = {name: [] for name in names}
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
