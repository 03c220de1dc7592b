"""
`./dev bench --all`: everything in one run, beside what people would use instead; JSON, and a picture.

All contestants of a table are processes that take short turns in many rounds, for the reasons in
`benchmarks/throughput.py`, and only the one whose turn it is does anything.
"""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from benchmarks import contestant, many_rows, picture
from benchmarks.turns import alternate, quartiles
from devstack import LocalStack
from devstack.cache import kept
from devstack.jars import copy_jars, rocketmq_jars
from rmq_txn import Database, Message, RocketMQ, TransactionProducer
from rmq_txn.database.pool import parse_url

Prepare = Callable[[LocalStack, str], str]
"""From a stack and a name to the URL of a database that is ready."""

JAVA = "Java, naive"
OURS = "form A"
THREADS = (1, 4, 8, 16, 32)
PROCESSES = (1, 2, 4)
CONSUMING_THREADS = (1, 4, 8, 16)
_WARM_SECONDS = 3.0  # a virtual machine compiles what it runs often
_PATIENCE_SECONDS = 60.0
PERCENTILES = ("p50", "p95", "p99")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """What one contestant did in one place of a table: medians of all rounds, and where half of them lay."""

    table: str
    contestant: str
    threads: int
    processes: int
    rate: float | None = None
    """A second."""
    rate_half: tuple[float, float] | None = None
    cpu: float | None = None
    """Milliseconds of processor time each, in the contestant's processes."""
    p50: float | None = None
    """Milliseconds, as the other two."""
    p95: float | None = None
    p99: float | None = None
    resident: float | None = None
    """MiB of one process, at the end."""
    rounds: tuple[float, ...] = ()
    """The rates, so that ratios can be taken within a round."""


class Process:
    """One contestant process."""

    def __init__(self, command: Sequence[str], log: IO[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )

    def tell(self, **command: Any) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """Wait for what it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a contestant ended: {self._process.args!r}, see the log")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True)
class Entrant:
    """The processes of one contestant."""

    topic: str
    processes: list[Process]

    def all(self, **command: Any) -> list[dict[str, Any]]:
        """Tell each of them, then wait for all answers."""
        for process in self.processes:
            process.tell(**command)
        return [process.answer() for process in self.processes]

    def produce(self, threads: int, seconds: float) -> Round:
        """Take a turn: each process works on rows of its own."""
        count = len(self.processes)
        for first, process in enumerate(self.processes):
            process.tell(do="produce", threads=threads, seconds=seconds, first=first, step=count)
        answers = [process.answer() for process in self.processes]
        done = sum(answer["done"] for answer in answers)
        return Round(
            rate=done / max(answer["seconds"] for answer in answers),
            cpu=sum(answer["cpu"] for answer in answers) * 1000 / done,
            resident=answers[0]["resident"],
            **{p: statistics.median(answer[p] for answer in answers) for p in PERCENTILES},
        )

    def drain(self, supplier: TransactionProducer, messages: int) -> Round:
        """Take a turn: publish while the handlers wait, then let them go until all is handled."""
        for start in range(0, messages, 20):
            batch = [Message(self.topic, {"n": n}) for n in range(start, min(start + 20, messages))]
            supplier.send_in_transaction(batch, lambda _txn: None)
        began, done, last, cpu, resident = time.monotonic(), 0, 0.0, 0.0, 0.0
        while done < messages:
            if time.monotonic() > began + _PATIENCE_SECONDS:
                raise TimeoutError(f"{done} of {messages} messages were handled in {_PATIENCE_SECONDS:g} s")
            for answer in self.all(do="drain"):
                done += answer["done"]
                last = max(last, answer["last"])
                cpu += answer["cpu"]
                resident = answer["resident"]
        return Round(rate=messages / (last - began), cpu=cpu * 1000 / messages, resident=resident)


@dataclass(frozen=True)
class Round:
    """What one contestant did in one turn; as in `Figure`."""

    rate: float
    cpu: float
    resident: float
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Field:
    """Starts contestants on one stack."""

    def __init__(self, stack: LocalStack, prepare: Prepare, log: IO[str]) -> None:
        self.stack, self._prepare, self._log = stack, prepare, log
        self.renew()
        settings = stack.settings
        jdbc = kept(settings.cache_folder / "benchmark-jars", "MariaDB Connector/J", _fetch_jdbc)
        self._jars = f"{rocketmq_jars(settings.rocketmq_version, settings.cache_folder)}/*:{jdbc}/*"

    def renew(self) -> None:
        """Go on with another database: a relay would publish again what those who were killed have left."""
        self.url = self._prepare(self.stack, f"bench{time.time_ns()}")

    @contextmanager
    def entrant(self, role: str, kind: str, count: int = 1, threads: int = 0) -> Iterator[Entrant]:
        """Lend the processes of one contestant, on a topic of their own."""
        topic = f"bench{time.time_ns()}"
        self.stack.create_topic(topic)
        command = self._command(role, kind, topic, threads)
        with ExitStack() as resources:
            processes = [resources.enter_context(closing(Process(command, self._log))) for _ in range(count)]
            for process in processes:
                process.answer()  # it is ready
            yield Entrant(topic, processes)

    def _command(self, role: str, kind: str, topic: str, threads: int) -> list[str]:
        if kind != JAVA:
            python = [sys.executable, "-m", "benchmarks.contestant", role, kind]
            return [*python, self.stack.name_server, self.url, topic, str(threads)]
        java = [shutil.which("java") or "java", "-Xmx512m", "-cp", self._jars, str(_HERE / "Contestant.java")]
        return [*java, role, self.stack.name_server, jdbc_url(self.url), topic, str(threads)]


def _fetch_jdbc(work: Path) -> Path:
    return copy_jars(work, _HERE / "pom.xml", "MariaDB Connector/J")


def jdbc_url(url: str) -> str:
    """Return the same database for Java."""
    parts, parameters = urlsplit(url), parse_url(url)
    credentials = f"user={parameters['user']}&password={parameters['password']}"
    return f"jdbc:mariadb://{parts.hostname}:{parts.port}/{parameters['database']}?{credentials}"


def run(
    stack: LocalStack, prepare: Prepare, folder: Path, rounds: int, seconds: float, messages: int, rows: int
) -> Path:
    """Measure all; write `bench.json` and `bench.svg` into the folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (folder / "contestants.log").open("w") as log:
        field = Field(stack, prepare, log)
        figures = [
            *producing(field, rounds, seconds),
            *side_by_side(field, rounds, seconds),
            *delays(field),
            *consuming(field, rounds, messages),
            *beside_old_rows(field, rounds, seconds, messages, (0, rows, 10 * rows)),
        ]
    result = {
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "took_seconds": round(time.monotonic() - began),
        "machine": machine(stack, field.url),
        "rounds": rounds,
        "figures": [asdict(figure) for figure in figures],
    }
    (folder / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "bench.svg").write_text(picture.draw(figures))
    return folder


def machine(stack: LocalStack, url: str) -> dict[str, object]:
    """Say on what this was measured."""
    cpu = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(":")[2].strip() for line in cpu.splitlines() if "model name" in line), "?")
    database = Database.mysql(url)
    try:
        with database.transaction() as txn:
            txn.execute("SELECT VERSION()")
            ((version,),) = txn.fetchall()
    finally:
        database.close()
    return {
        "processor": model,
        "cores": cpu.count("processor\t:"),
        "load": Path("/proc/loadavg").read_text().split()[:3],
        "python": platform.python_version(),
        "rocketmq": stack.settings.rocketmq_version,
        "database": version,
    }


def producing(field: Field, rounds: int, seconds: float) -> list[Figure]:
    """Transactions a second of one process of each contestant, on one thread and on many."""
    return [
        *_on_threads(field, "transactions", (*contestant.PRODUCERS, JAVA), rounds, seconds),
        *_on_threads(field, "transactions of 3", contestant.OF_THREE_MESSAGES, rounds, seconds),
    ]


def _on_threads(field: Field, table: str, kinds: Sequence[str], rounds: int, seconds: float) -> list[Figure]:
    # Not all at once: each thread of each contestant keeps a connection.
    field.renew()
    with ExitStack() as resources:
        entrants = _producers(field, resources, kinds, 1)
        figures: list[Figure] = []
        for threads in THREADS:
            turns = {kind: partial(found.produce, threads, seconds) for kind, found in entrants.items()}
            figures += _table(table, turns, rounds, threads, 1)
        return figures


def side_by_side(field: Field, rounds: int, seconds: float) -> list[Figure]:
    """Transactions a second of several processes, eight threads each."""
    figures: list[Figure] = []
    for count in PROCESSES[1:]:
        field.renew()
        with ExitStack() as resources:
            kinds = (OURS, "naive", "polled outbox", "plain", JAVA)
            entrants = _producers(field, resources, kinds, count)
            turns = {kind: partial(found.produce, 8, seconds) for kind, found in entrants.items()}
            figures += _table("transactions", turns, rounds, 8, count)
    return figures


def _producers(field: Field, resources: ExitStack, kinds: Sequence[str], count: int) -> dict[str, Entrant]:
    entrants = {kind: resources.enter_context(field.entrant("produce", kind, count)) for kind in kinds}
    for entrant in entrants.values():
        entrant.produce(8, _WARM_SECONDS)
    return entrants


def delays(field: Field) -> list[Figure]:
    """Milliseconds from the beginning of COMMIT until a consumer is handed the message."""
    figures: list[Figure] = []
    for kind in (OURS, "polled outbox", "plain", JAVA):
        field.renew()
        with field.entrant("produce", kind) as entrant:
            entrant.produce(1, _WARM_SECONDS)
            (answer,) = entrant.all(do="delay", count=200, pause=0.02)
            seen = {p: answer[p] for p in PERCENTILES}
            figures.append(Figure("COMMIT to handler", kind, 1, 1, **seen))
    _show(figures)
    return figures


def consuming(field: Field, rounds: int, messages: int) -> list[Figure]:
    """Deliveries a second of what lies at the broker already."""
    figures: list[Figure] = []
    places = [(threads, 1) for threads in CONSUMING_THREADS] + [(4, count) for count in PROCESSES[1:]]
    for threads, count in places:
        field.renew()
        with ExitStack() as resources:
            turns = {}
            for kind in (*contestant.CONSUMERS, JAVA) if count == 1 else ("delivery", JAVA):
                entrant = resources.enter_context(field.entrant("consume", kind, count, threads))
                supplier = resources.enter_context(_supplier(field, entrant.topic))
                turns[kind] = partial(entrant.drain, supplier, messages)
            figures += _table("deliveries", turns, rounds, threads, count)
    return figures


def beside_old_rows(
    field: Field, rounds: int, seconds: float, messages: int, rows: Sequence[int]
) -> list[Figure]:
    """Form A and deliveries, each beside so many old rows in the log and in the inbox of its group."""
    producers: dict[str, Callable[[], Round]] = {}
    consumers: dict[str, Callable[[], Round]] = {}
    with ExitStack() as resources:
        for count in rows:
            field.renew()
            producer = resources.enter_context(field.entrant("produce", OURS))
            consumer = resources.enter_context(field.entrant("consume", "delivery", 1, 4))
            supplier = resources.enter_context(_supplier(field, consumer.topic))
            if count:
                with closing(Database.mysql(field.url)) as database:
                    many_rows.fill(database, f"c-{consumer.topic}", count, oldest_days=6.9, newest_days=0)
            producer.produce(8, _WARM_SECONDS)
            producers[f"{OURS}, {count:,} rows"] = partial(producer.produce, 8, seconds)
            consumers[f"delivery, {count:,} rows"] = partial(consumer.drain, supplier, messages)
        return [
            *_table("transactions beside old rows", producers, rounds, 8, 1),
            *_table("deliveries beside old rows", consumers, rounds, 4, 1),
        ]


def _supplier(field: Field, topic: str) -> TransactionProducer:
    database = Database.mysql(field.url)
    return TransactionProducer(
        group=f"s-{topic}", broker=RocketMQ(field.stack.name_server), database=database, topics=[topic]
    )


def _table(
    name: str, turns: Mapping[str, Callable[[], Round]], rounds: int, threads: int, processes: int
) -> list[Figure]:
    figures = []
    for kind, seen in alternate(turns, rounds).items():
        rates = [turn.rate for turn in seen]
        low, median, high = statistics.quantiles(rates, n=4, method="inclusive")
        figures.append(
            Figure(
                table=name,
                contestant=kind,
                threads=threads,
                processes=processes,
                rate=median,
                rate_half=(low, high),
                cpu=statistics.median(turn.cpu for turn in seen),
                resident=seen[-1].resident,
                rounds=tuple(rates),
                **{
                    p: statistics.median(getattr(turn, p) for turn in seen)
                    for p in PERCENTILES
                    if seen[0].p50 is not None
                },
            )
        )
    _show(figures)
    return figures


def _show(figures: Sequence[Figure]) -> None:
    first = figures[0]
    print(f"\n{first.table}, {first.processes} process(es) of {first.threads} thread(s)")
    ours = figures[0].rounds
    for figure in figures:
        parts = [f"  {figure.contestant:20}"]
        if figure.rate is not None and figure.rate_half is not None:
            low, high = figure.rate_half
            parts.append(
                f"{figure.rate:7.0f} a second ({low:.0f} to {high:.0f}), {figure.cpu:5.2f} ms of cpu"
            )
            ratios = [mine / theirs for mine, theirs in zip(ours, figure.rounds, strict=True)]
            parts.append(f"{first.contestant} / this: {quartiles(ratios, 2)}")
        if figure.p50 is not None:
            parts.append(f"p50 {figure.p50:.2f}, p95 {figure.p95:.2f}, p99 {figure.p99:.2f} ms")
        print(", ".join(parts), flush=True)
