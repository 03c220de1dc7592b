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
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import by_hand, everything, growth, many_rows, memory, relay, rivals
from benchmarks.turns import Contestant, Turn, alternate, drain, form_a, handle, produce, ratio, show
from devstack import LocalStack, StackError, StackSettings
from devstack.settings import CHECKOUT
from rmq_txn import Database, IdempotentConsumer, Message, RocketMQ, TransactionProducer, schema

DEFAULT_FOLDER = CHECKOUT / ".devstack" / "bench"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="rounds a table (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=0.25, help="a producer's turn in a round (default: %(default)s)"
    )
    parser.add_argument(
        "--messages", type=int, default=1_000, help="a consumer's turn in a round (default: %(default)s)"
    )
    parser.add_argument(
        "--only",
        choices=["producing", "consuming", "memory", "rows", "pruning", "brokers", "producers", "relay"],
        help="one of the parts (default: the first three); rows: beside a database with --rows old rows; "
        "pruning: of so many, beside deliveries; brokers: on 1, 2 and 4; producers: beside others; "
        "relay: through many copies",
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=1_000_000,
        help="old rows of each table (default: %(default)s); with --all none, so many, and ten times as many",
    )
    parser.add_argument(
        "--sent", type=int, default=20_000, help="messages of the memory part (default: %(default)s)"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="everything, beside Java, a polled outbox and a plain send, into bench.json and bench.svg "
        "of the folder; ten minutes with --rounds 5 --seconds 0.3",
    )
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="default: %(default)s")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Measure and print; return the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        with LocalStack(StackSettings(folder=options.folder)) as stack, ExitStack() as resources:
            if options.all:
                everything.run(
                    stack,
                    prepare,
                    options.folder / "all",
                    options.rounds,
                    options.seconds,
                    options.messages,
                    options.rows,
                )
                return 0
            # New each time: a relay would publish again what the last run left.
            url = prepare(stack, f"bench{time.time_ns()}")
            if options.only in (None, "producing"):
                producing(stack, url, resources, options.rounds, options.seconds)
            if options.only in (None, "consuming"):
                consuming(stack, url, resources, options.rounds, options.messages)
            if options.only in (None, "memory"):
                memory.measure(stack, url, resources, options.sent)
            if options.only == "rows":
                urls = {"empty": url, "full": prepare(stack, "bench_full")}
                many_rows.beside_none(stack, urls, resources, options.rows, options.rounds)
            if options.only == "relay":
                relay.measure(stack, url)
            if options.only == "brokers":
                growth.brokers(stack, url, resources, options.rounds, options.seconds)
            if options.only == "producers":
                growth.producers(stack, url, resources, options.rounds, options.seconds)
            if options.only == "pruning":
                many_rows.prune_beside_deliveries(stack, url, resources, options.rows)
    except StackError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(stack: LocalStack, name: str) -> str:
    """Make a database with our tables and 1000 rows to update; return its URL."""
    url = stack.database_url(name)
    database = Database.mysql(url)
    schema.apply(database)
    schema.run_script(
        database,
        "CREATE TABLE IF NOT EXISTS bench (id INT PRIMARY KEY, n BIGINT NOT NULL) ENGINE=InnoDB;"
        f"CREATE TABLE IF NOT EXISTS {by_hand.OUTBOX} LIKE rmq_txn_outbox;"
        f"CREATE TABLE IF NOT EXISTS {rivals.POLLED} (id BIGINT AUTO_INCREMENT PRIMARY KEY, "
        "body BLOB NOT NULL) ENGINE=InnoDB",
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

    def form_b(number: int) -> None:
        producer.send_in_transaction(
            Message(topic, {"n": number}), lambda txn: txn.execute(by_hand.WORK, (number % 1000,))
        )

    contestants: dict[str, Contestant] = {
        "form A": partial(form_a, producer, topic),
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
