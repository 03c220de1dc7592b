"""A producer group whose members are sick, strange or gone, and a database that refuses: nothing is lost."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from typing import Any

import pymysql
import pytest

from devstack import LocalStack, StackSettings
from rmq_txn import Database, Delivery, IdempotentConsumer, RocketMQ, Transaction, TransactionProducer
from rmq_txn.message import Outbound
from rmq_txn.producer import checkback
from rmq_txn.producer.upkeep import OutboxTimes
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.half_messages import HALF_TOPIC, QUEUE
from rmq_txn.transport import Check, Checker, Execute
from rmq_txn.verdict import Verdict
from tests.conftest import CHECKOUT, prepared_url
from tests.kit import administrator as administrator_kit
from tests.kit.proxy import proxied, through
from tests.kit.rows import rows
from tests.kit.transports import Wrapped, never_answers
from tests.kit.wait import until

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

BUDGET_SECONDS = 8.0  # the broker below needs about five
QUESTIONS = 3  # of the broker below about one half message
TIMES = OutboxTimes(
    relay_margin_seconds=6.0,  # so that a sibling may be silent for 2 s
    settle_seconds=1.0,
    pause_seconds=60.0,  # a busy machine lets a process stand still for a while
    silence_seconds=60.0,  # silence is not what these tests are about
    round_seconds=0.3,
)


@pytest.fixture(scope="module")
def impatient(stack: LocalStack) -> Iterator[LocalStack]:
    """Start a second cluster whose broker asks three times, within seconds, and gives up."""
    folder = CHECKOUT / ".devstack" / f"{stack.settings.folder.name}-siblings"
    settings = StackSettings.for_tests(
        folder,
        transaction_timeout_seconds=1.0,
        transaction_check_interval_seconds=1.0,
        transaction_check_max=QUESTIONS,
    )
    cluster = LocalStack(settings)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


class Scene:
    """One topic, one group, one database; a consumer; an owner whose verdicts can get lost."""

    def __init__(self, stack: LocalStack, name: str, resources: ExitStack) -> None:
        self.stack, self.name, self.resources = stack, name, resources
        stack.create_topic(name)
        self.url = prepared_url(stack, name)
        self.broker = RemotingClient(stack.broker_address)
        self.received: list[str] = []
        self.republished: list[Outbound] = []
        self.answers: list[Verdict] = []
        self.loses_verdicts = False
        self.consume()

    def consume(self) -> None:
        consumer = IdempotentConsumer(
            group=f"c-{self.name}",
            broker=RocketMQ(self.stack.name_server),
            database=self.open(self.url),
        )

        @consumer.handles(self.name)
        def collect(_txn: Transaction, delivery: Delivery) -> None:
            self.received.append(delivery.json()["id"])

        self.resources.enter_context(consumer)

    def open(self, url: str) -> Database:
        database = Database.mysql(url)
        self.resources.callback(database.close)
        return database

    def producer(self, url: str = "", broker: Any = None, **settings: Any) -> TransactionProducer:
        """Start a producer of the group."""
        producer = TransactionProducer(
            **{
                "group": f"g-{self.name}",
                "broker": broker or RocketMQ(self.stack.name_server),
                "database": self.open(url or self.url),
                "topics": [self.name],
                "check_budget_seconds": BUDGET_SECONDS,
                "outbox_times": TIMES,
                **settings,
            }
        )
        return self.resources.enter_context(producer)

    def owner(
        self, around_check: Callable[[Checker], Checker] = lambda check: check, **settings: Any
    ) -> TransactionProducer:
        """Start the producer whose copies are at stake."""

        def around(execute: Execute) -> Execute:
            return never_answers(execute) if self.loses_verdicts else execute

        return self.producer(
            broker=Wrapped(
                RocketMQ(self.stack.name_server),
                around_execute=around,
                around_check=around_check,
                on_send_plain=self.republished.append,
            ),
            **settings,
        )

    def recorded(self, check: Checker) -> Checker:
        """Remember what an owner answers."""

        def answer(asked: Check) -> Verdict:
            verdict = check(asked)
            self.answers.append(verdict)
            return verdict

        return answer

    def publish(self, owner: TransactionProducer, id_: str) -> None:
        """Commit a transaction with a message."""
        with owner.transaction() as txn:
            txn.execute("INSERT INTO effect (id) VALUES (%s)", (id_,))
            txn.publish(self.name, {"id": id_})

    def lose(self, owner: TransactionProducer, id_: str) -> None:
        """Commit a transaction whose verdict never reaches the broker."""
        self.loses_verdicts = True
        self.publish(owner, id_)
        self.loses_verdicts = False

    def wait_given_up(self) -> None:
        """Wait until the broker asked as often as it does about the half message, and left it behind."""
        try:
            until(self._is_given_up, f"the broker gives up the half message of {self.name}", 120)
        except AssertionError as error:
            raise AssertionError(
                f"{error}; it knows {self._half_messages()}, did up to {self._done()}, and logged:\n"
                f"{self._log()}\nwhile it did:\n{self._check_thread()}"
            ) from None

    def _is_given_up(self) -> bool:
        """
        Judge by how far the broker is.

        Not by what it stored in `TRANS_CHECK_MAX_TIME_TOPIC`: it goes on when that fails, on a disk that
        stalls for a second, and the half message is given up all the same.
        """
        done = self._done()
        return any(asked == str(QUESTIONS) and offset < done for offset, asked in self._half_messages())

    def _done(self) -> int:
        return self.broker.consumer_offset("CID_RMQ_SYS_TRANS", HALF_TOPIC, QUEUE) or 0

    def _half_messages(self) -> list[tuple[int, str]]:
        """Return the place of each copy of the half message, and how often the broker had asked by then."""
        return [
            (message.offset, message.properties.get("TRANSACTION_CHECK_TIMES", "0"))
            for message in self.broker.read(HALF_TOPIC, QUEUE, 0, 100_000)
            if message.properties.get("REAL_TOPIC") == self.name
        ]

    def _log(self) -> str:
        logs = self.stack.settings.folder / "broker" / "logs" / "rocketmqlogs"
        lines = (logs / "transaction.log").read_text(errors="replace").splitlines()
        told = [line for line in lines if self.name in line or "exception" in line.lower()]
        return "\n".join(line[:400] for line in (*told, "and last of all:", *lines[-40:]))

    def _check_thread(self) -> str:
        """Return the stack of the broker's thread that asks, as Java prints it for SIGQUIT."""
        broker = self.stack.broker
        os.kill(broker.pid, signal.SIGQUIT)
        name = '"TransactionalMessageCheckService"'

        def stack() -> str:
            printed = broker.log_path.read_text(errors="replace").rpartition("Full thread dump")[2]
            return printed.partition(name)[2].partition("\n\n")[0]

        return until(stack, "the broker prints its threads", 30)

    def wait_in_vain(self) -> None:
        """Wait until the broker gave up, and the owner could say nothing to any of its questions."""
        self.wait_given_up()
        # The broker does not wait for answers: it may give up before the first one was tried.
        until(lambda: len(self.answers) >= QUESTIONS, "the owner answers the last question", 120)
        assert set(self.answers) == {Verdict.UNKNOWN}

    def arrives_after_all(self, id_: str) -> None:
        """Wait until the outbox is empty; the message must have come from there."""
        until(lambda: not rows(self.url, "SELECT 1 FROM rmq_txn_outbox"), "an empty outbox", 120)
        assert self.republished, f"the owner trusted its verdict; without the relay arrived: {self.received}"
        until(lambda: id_ in self.received, f"the delivery of {id_}", 120)


@pytest.fixture
def scene(impatient: LocalStack, unique: str) -> Iterator[Scene]:
    """Return a scene; everything it started is closed, last first."""
    with ExitStack() as resources:
        yield Scene(impatient, unique, resources)


@contextmanager
def administrator(scene: Scene) -> Iterator[Any]:
    """Lend a cursor of the server's administrator."""
    with closing(scene.stack._database._connect()) as admin, admin.cursor() as cursor:
        yield cursor


Trouble = Callable[[Scene], Any]
"""From a scene to a context manager: what is wrong while the broker asks."""


@contextmanager
def read_only(scene: Scene) -> Iterator[None]:
    """Demote the server, as a failover does: it can be read, and refuses each write."""
    with administrator_kit.read_only(scene.stack):
        yield


@contextmanager
def locked_table(scene: Scene) -> Iterator[None]:
    """Let somebody hold a lock on our table, for a backup say."""
    with administrator(scene) as cursor:
        cursor.execute(f"LOCK TABLES `{scene.name}`.rmq_txn_log READ")
        yield


@contextmanager
def locked_rows(scene: Scene) -> Iterator[None]:
    """Let a transaction that is none of ours hold the rows of our table: each answer is a lock wait."""
    with administrator(scene) as cursor:
        cursor.execute("BEGIN")
        cursor.execute(f"SELECT * FROM `{scene.name}`.rmq_txn_log FOR UPDATE")
        yield


@contextmanager
def lost_privilege(scene: Scene) -> Iterator[None]:
    """Take away the privilege to insert; a connection that is open would keep it."""
    with administrator(scene) as cursor:
        account = f"'{scene.name}'@'127.0.0.1'"
        cursor.execute(f"REVOKE INSERT ON `{scene.name}`.* FROM {account}")
        cursor.execute("SELECT id FROM information_schema.processlist WHERE user = %s", (scene.name,))
        for (connection_id,) in cursor.fetchall():
            with suppress(pymysql.err.MySQLError):  # gone meanwhile
                cursor.execute(f"KILL CONNECTION {connection_id}")
        try:
            yield
        finally:
            cursor.execute(f"GRANT INSERT ON `{scene.name}`.* TO {account}")


@contextmanager
def sibling_cut_off(scene: Scene) -> Iterator[None]:
    """Cut one producer of the group off from the database; the brokers go on asking it."""
    with proxied(scene.url) as proxy, ExitStack() as resources:
        scene.resources, before = resources, scene.resources
        scene.producer(through(scene.url, proxy))
        scene.resources = before
        proxy.on_request = lambda line, _data: line.cut()
        yield


@contextmanager
def client_without_a_row(scene: Scene) -> Iterator[None]:
    """Let a client of another kind register under the group; it knows nothing and says UNKNOWN."""
    client = RocketMQ(scene.stack.name_server).producer(f"g-{scene.name}", lambda _check: Verdict.UNKNOWN)
    client.start([scene.name])  # so that brokers know it at once, and not at its next heartbeat
    try:
        yield
    finally:
        client.close(5.0)


@contextmanager
def client_left_open(scene: Scene) -> Iterator[None]:
    """Close a producer whose native client can't be stopped: it stays registered, and says UNKNOWN."""
    kept: list[Any] = []

    class KeepsClients(Wrapped):
        def producer(self, group: str, _check: Checker) -> Any:
            # As a client does that closes. Its oracle could tell, and whom the broker asks is chance.
            client = super().producer(group, lambda _asked: Verdict.UNKNOWN)
            kept.append(client)
            return _NotClosed(client)

    scene.producer(broker=KeepsClients(RocketMQ(scene.stack.name_server))).close()
    yield
    for client in kept:
        client.close(5.0)


class _NotClosed:
    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def close(self, _timeout_seconds: float) -> None:
        """Leave it open, as a client does whose calls don't end."""


OWN_DATABASE: list[Trouble] = [locked_table, locked_rows, lost_privilege]
SIBLINGS: dict[Trouble, str] = {
    sibling_cut_off: "last wrote to the database",
    client_without_a_row: "has no row in rmq_txn_producers",
    client_left_open: "said that it closes",
}


class Story:
    """A message whose verdict is lost, and that the broker gives up in the middle of some trouble."""

    def __init__(self, stack: LocalStack, trouble: Trouble, name: str, resources: ExitStack) -> None:
        self.trouble = trouble
        self.scene = Scene(stack, name, resources)
        self.begun = threading.Event()
        self.ill = ExitStack()
        resources.callback(self.ill.close)
        silent = TIMES if trouble is not locked_rows else replace(TIMES, silence_seconds=2.0)
        self.owner = self.scene.owner(self.asked, outbox_times=silent)

    def asked(self, check: Checker) -> Checker:
        """Let the owner answer, but not before the trouble began; or as the sick one does, see below."""

        def answer(asked: Check) -> Verdict:
            if self.trouble in SIBLINGS:
                return Verdict.UNKNOWN  # whom the broker asks is chance
            self.begun.wait(60)
            return check(asked)

        return self.scene.recorded(answer)

    def begin(self) -> None:
        """Lose the verdict: with siblings that are ill already, or before the own database is."""
        if self.trouble in SIBLINGS:
            self.ill.enter_context(self.trouble(self.scene))
            self.scene.lose(self.owner, "kept")
        else:
            self.scene.lose(self.owner, "kept")
            self.ill.enter_context(self.trouble(self.scene))
            self.begun.set()


@pytest.fixture(scope="module")
def stories(impatient: LocalStack) -> Iterator[dict[Trouble, Story]]:
    """Let all of it happen at once, each with a database, topic and group of its own."""
    with ExitStack() as resources:
        found = {
            trouble: Story(
                impatient,
                trouble,
                f"{trouble.__name__.replace('_', '')[:9]}{uuid.uuid4().hex[:8]}",
                resources,
            )
            for trouble in (*OWN_DATABASE, *SIBLINGS)
        }
        for story in found.values():
            story.begin()
        for trouble, said in SIBLINGS.items():
            health = found[trouble].owner.health
            until(lambda: said in str(health().problems), f"{trouble.__name__}: health says so", 30)  # noqa: B023
        for trouble in OWN_DATABASE:
            health = found[trouble].owner.health
            until(lambda: health().problems, f"{trouble.__name__}: health says so", 30)  # noqa: B023
        for trouble, story in found.items():
            if trouble in SIBLINGS:
                story.scene.wait_given_up()
            else:
                story.scene.wait_in_vain()
            story.ill.close()
        yield found


@pytest.mark.parametrize("trouble", [*OWN_DATABASE, *SIBLINGS], ids=lambda trouble: trouble.__name__)
def test_what_the_broker_gave_up_in_the_middle_of_it_arrives(
    stories: dict[Trouble, Story], trouble: Trouble
) -> None:
    """Committed, its verdict lost, its questions used up by UNKNOWN; then all is well again."""
    stories[trouble].scene.arrives_after_all("kept")
    assert stories[trouble].scene.received == ["kept"]


def test_a_database_that_can_be_read_but_not_written_costs_no_message(scene: Scene) -> None:
    """As after a failover to a replica: each answer fails with 1290, and nothing else does."""
    begun = threading.Event()

    def after_it_began(check: Checker) -> Checker:
        return scene.recorded(lambda asked: check(asked) if begun.wait(60) else Verdict.UNKNOWN)

    owner = scene.owner(after_it_began)
    scene.lose(owner, "kept")
    with read_only(scene):
        begun.set()
        scene.wait_in_vain()
        until(lambda: "read" in str(owner.health().problems), "health says what refuses")
    scene.arrives_after_all("kept")


def test_a_rolling_deployment_in_calm_disturbs_nobody(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """A process of the group closes, another one starts; real ones."""

    def start() -> subprocess.Popen[str]:
        return sibling(scene, group=f"g-{scene.name}")

    def seen() -> dict[str, int]:
        return dict(rows(scene.url, "SELECT instance, closing FROM rmq_txn_producers"))

    with caplog.at_level(logging.WARNING, "rmq_txn"):
        old = start()
        owner = scene.producer(outbox_times=OutboxTimes(round_seconds=0.3, pause_seconds=60.0))
        scene.publish(owner, "calm")
        new = start()
        assert len(seen()) == 3
        assert old.stdin is not None
        old.stdin.close()
        assert old.wait(30) == 0
        assert sorted(seen().values()) == [0, 0, 1]
        looks = Looks(scene, owner)
        looks.wait(3)
        new.kill()
        new.wait()
        looks.wait(3)
        assert "not trusted" not in caplog.text
        assert owner.health().problems == ()


def test_what_a_closed_producer_left_is_not_published_again_by_one_that_saw_it_all(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its verdict was lost, but the broker asked the other one, which was well all the time."""
    monkeypatch.setattr(checkback, "_STILL_RUNNING_MARGIN_SECONDS", 1.0)
    budget = 20.0  # a quarter of it must be longer than a transaction may take

    def short() -> Database:
        database = Database.mysql(scene.url, local_timeout_seconds=2)
        scene.resources.callback(database.close)
        return database

    witness = scene.owner(database=short(), check_budget_seconds=budget)
    Looks(scene, witness).wait(2)
    leaving = scene.owner(
        lambda _check: lambda _asked: Verdict.UNKNOWN, database=short(), check_budget_seconds=budget
    )
    scene.lose(leaving, "kept")
    leaving.close()
    until(lambda: scene.received == ["kept"], "the answer of the other producer", 60)
    until(lambda: not rows(scene.url, "SELECT 1 FROM rmq_txn_outbox"), "an empty outbox", 120)
    assert scene.republished == []
    assert scene.received == ["kept"]


class Looks:
    """Waits until a producer has looked at its group some more times."""

    def __init__(self, scene: Scene, owner: TransactionProducer) -> None:
        self._scene = scene
        self._instance = owner._parts.client.instance.encode()

    def wait(self, count: int) -> None:
        """Its row is written at each look, before the conclusions of the next."""
        sql = "SELECT seen_at FROM rmq_txn_producers WHERE instance = %s"
        for _ in range(count + 1):
            before = rows(self._scene.url, sql, (self._instance,))
            until(lambda: rows(self._scene.url, sql, (self._instance,)) != before, "the next look")  # noqa: B023


def sibling(scene: Scene, **arguments: Any) -> subprocess.Popen[str]:
    """Start another producer in a process of its own."""
    arguments = {
        "name_server": scene.stack.name_server,
        "url": scene.url,
        "topic": scene.name,
        **arguments,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kit.sibling", json.dumps(arguments)],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    scene.resources.callback(_end, process)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    if process.stdin is not None and process.stdin.closed:
        process.stdin = None
    process.communicate()


def test_a_producer_whose_clock_is_days_ahead_answers_all_the_same(scene: Scene) -> None:
    """Ages go by the database's clock; health names the difference."""
    owner = scene.owner(lambda _check: lambda _asked: Verdict.UNKNOWN)
    process = sibling(scene, group=f"g-{scene.name}", ahead_seconds=8 * 86_400)
    scene.lose(owner, "answered")
    owner.close()
    until(lambda: scene.received == ["answered"], "the answer of the other producer", 30)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("health\n")
    process.stdin.flush()
    (problem,) = json.loads(process.stdout.readline())
    assert "the clock of this machine is 69120" in problem
    assert "s ahead of that of the database, the limit is 60 s" in problem
