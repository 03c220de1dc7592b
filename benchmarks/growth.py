"""
What grows with the service: transactions on 1, 2 and 4 brokers, and the cost of 1, 10 and 100 producers.

All of it stands on one machine, so more brokers can't make it faster than its cores are. What carries over
to many machines is what one transaction costs each server, by the processor time of its process, and how
many statements and rows a producer takes that does nothing.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import by_hand
from benchmarks.everything import Process
from benchmarks.turns import Turn, alternate, produce, show
from devstack import LocalStack, StackPorts
from devstack.rocketmq import Broker
from devstack.server import Server, poll_until
from rmq_txn import Database, RocketMQ, TransactionProducer
from rmq_txn.message import Outbound
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.transport import Execute
from rmq_txn.transport.wrapped import Hooks, Wrapped
from rmq_txn.verdict import Verdict

BROKERS = (1, 2, 4)
PRODUCERS = (1, 10, 100)
_A_PROCESS = 10
"""Producers in one process, so that a hundred of them are ten processes."""
_IDLE_SECONDS = 60.0
_LOST = 300
_PATIENCE_SECONDS = 300.0
_THREADS = 8


def brokers(stack: LocalStack, url: str, resources: ExitStack, rounds: int, seconds: float) -> None:
    """Let transactions take turns on topics of one broker, two and four; all of them run all the time."""
    topics = [f"grow{time.time_ns()}-{number}" for number in range(1, max(BROKERS) + 1)]
    stack.create_topic(topics[0])
    servers = {stack.database.pid: "database", stack.broker.pid: "broker 1"}
    for number, topic in enumerate(topics[1:], 2):
        server = resources.enter_context(_another_broker(stack, number, topic))
        servers[server.pid] = f"broker {number}"
    producer = resources.enter_context(_producer(stack, url, topics[0], topics))

    def work(count: int, number: int) -> None:
        with producer.transaction() as txn:
            txn.execute(by_hand.WORK, (number % 1000,))
            txn.publish(topics[number % count], {"n": number})

    spent: dict[int, Counter[str]] = {count: Counter() for count in BROKERS}
    with ThreadPoolExecutor(_THREADS) as pool:

        def turn(count: int) -> Turn:
            before = {pid: _cpu_seconds(pid) for pid in servers}
            done = produce(pool, _THREADS, partial(work, count), seconds)
            spent[count]["transactions"] += round(done.rate * seconds)
            for pid, name in servers.items():
                spent[count][name] += round((_cpu_seconds(pid) - before[pid]) * 1000)
            return done

        seen = alternate({f"{count} broker(s)": partial(turn, count) for count in BROKERS}, rounds)
    show(f"form A, {_THREADS} threads, topics on so many brokers", seen)
    for count, milliseconds in spent.items():
        done = milliseconds.pop("transactions")
        told = ", ".join(f"{name} {value / done:.2f}" for name, value in milliseconds.items())
        print(f"  {count} broker(s), ms of processor time of the servers for a transaction: {told}")


@contextmanager
def _another_broker(stack: LocalStack, number: int, topic: str) -> Iterator[Server]:
    ports = replace(StackPorts.choose(), name_server=stack.ports.name_server)
    program = Broker(stack.settings, ports, number=number)
    server = Server(program)
    server.start()
    try:
        program.create_topic(topic, queues=4)
        if not poll_until(lambda: program.has_route(topic), _PATIENCE_SECONDS):
            raise TimeoutError(f"broker {number} did not get its topic within {_PATIENCE_SECONDS:g} s")
        yield server
    finally:
        server.end()


def producers(stack: LocalStack, url: str, resources: ExitStack, rounds: int, seconds: float) -> None:
    """Let one producer work beside none, 9 and 99 others of its group; then let it lose verdicts."""
    topic = f"group{time.time_ns()}"
    stack.create_topic(topic)
    losing = _Losing()
    broker = Wrapped(RocketMQ(stack.name_server), losing)
    producer = resources.enter_context(_producer(stack, url, topic, [topic], broker))

    def work(number: int) -> None:
        with producer.transaction() as txn:
            txn.execute(by_hand.WORK, (number % 1000,))
            txn.publish(topic, {"n": number})

    command = [sys.executable, "-m", "benchmarks.growth", stack.name_server, url, topic]
    there = 1
    log = resources.enter_context((stack.settings.folder / "siblings.log").open("w"))
    database = resources.enter_context(closing(by_hand.connect(url)))
    for count in PRODUCERS:
        while there < count:
            more = min(_A_PROCESS, count - there)
            process = Process([*command, str(more)], log)
            resources.enter_context(closing(process))
            process.answer()
            there += more
        print(f"\n{count} producer(s) of one group")
        _idle(stack, database, count)
        with ThreadPoolExecutor(_THREADS) as pool:
            rates = [produce(pool, _THREADS, work, seconds).rate for _ in range(rounds)]
        low, median, high = statistics.quantiles(rates, n=4, method="inclusive")
        print(f"  one of them, {_THREADS} threads: {median:.0f} a second ({low:.0f} to {high:.0f})")
        _check_backs(stack, topic, losing, work)


def _idle(stack: LocalStack, database: Any, count: int) -> None:
    """Count what they cost while nobody publishes."""

    def look() -> tuple[int, int, float, float]:
        cursor = database.cursor()
        cursor.execute(
            "SHOW GLOBAL STATUS WHERE Variable_name = 'Questions' OR Variable_name LIKE 'Handler_read%'"
        )
        found = {name: int(value) for name, value in cursor.fetchall()}
        questions = found.pop("Questions")
        return (
            questions,
            sum(found.values()),
            _cpu_seconds(stack.database.pid),
            _cpu_seconds(stack.broker.pid),
        )

    before = look()
    time.sleep(_IDLE_SECONDS)  # nothing happens: that is what is measured
    questions, rows, database_cpu, broker_cpu = (
        (now - then) / _IDLE_SECONDS for now, then in zip(look(), before, strict=True)
    )
    print(
        f"  idle: {questions:.1f} statements a second ({questions / count:.2f} each), "
        f"{rows:.0f} rows read a second, database {database_cpu:.1%} of a core, broker {broker_cpu:.1%}",
        flush=True,
    )


def _check_backs(stack: LocalStack, topic: str, losing: _Losing, work: Any) -> None:
    client = RemotingClient(stack.broker_address)

    def stored() -> int:
        return sum(client.max_offset(topic, queue) for queue in range(4))

    before = -1
    while before != (before := stored()):
        time.sleep(0.5)  # what was committed before is stored until then
    losing.on = True
    for number in range(_LOST):
        work(number)
    losing.on = False
    deadline = time.monotonic() + _PATIENCE_SECONDS
    first = 0.0
    while (now := stored() - before) < _LOST:
        if now and not first:
            first, already = time.monotonic(), now
        if time.monotonic() > deadline:
            raise TimeoutError(f"{now} of {_LOST} check-backs were answered in {_PATIENCE_SECONDS:g} s")
        time.sleep(0.01)
    took = time.monotonic() - first
    print(
        f"  {_LOST} lost verdicts: {(_LOST - already) / took:.0f} check-backs answered a second", flush=True
    )


class _Losing(Hooks):
    """Loses verdicts while it is on."""

    on = False

    def execute(self, group: str, _message: Outbound, message_id: str, execute: Execute) -> Verdict:
        """Run it, and keep to yourself what became of it."""
        verdict = execute(message_id)
        return Verdict.UNKNOWN if self.on and group.startswith("g-") else verdict


def _producer(
    stack: LocalStack, url: str, name: str, topics: Sequence[str], broker: Any = None
) -> TransactionProducer:
    return TransactionProducer(
        group=f"g-{name}",
        broker=broker or RocketMQ(stack.name_server),
        database=Database.mysql(url),
        topics=topics,
    )


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(name_server: str, url: str, topic: str, count: str) -> None:
    """Be some producers of a group that do nothing, until killed."""
    for _ in range(int(count)):
        TransactionProducer(
            group=f"g-{topic}", broker=RocketMQ(name_server), database=Database.mysql(url), topics=[topic]
        ).start()
    print("{}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
