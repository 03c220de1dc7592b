"""`rmq-txn consume` with real processes, a real broker and the real native client that dies."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import LocalStack
from rmq_txn.cli import exit_codes
from rmq_txn.identity import new_txn_id
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.members import online
from tests.conftest import CHECKOUT
from tests.kit import foreign
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = pytest.mark.servers

LOG_LINE = r"\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ \d+ rmq_txn\.\w"

SERVICE = """
import os
import pathlib
import time

from rmq_txn import Database, IdempotentConsumer, RocketMQ

consumer = IdempotentConsumer(
    group={group!r}, broker=RocketMQ({name_server!r}), database=Database.mysql({url!r}), threads=2
)


@consumer.handles({topic!r})
def award(txn, delivery):
    id_ = delivery.json()["id"]
    txn.execute("INSERT INTO effect (id, note) VALUES (%s, %s)", (id_, str(os.getpid())))
    if id_ == "slow":
        pathlib.Path("inside").touch()
        while not pathlib.Path("go-on").exists():
            time.sleep(0.05)
"""


class Service:
    """A folder with a consumer, and the supervisor that runs it there."""

    def __init__(self, stack: LocalStack, topic: str, url: str, folder: Path) -> None:
        self.stack, self.topic, self.url, self.folder, self.group = stack, topic, url, folder, f"c-{topic}"
        self.module = f"service_{topic}"
        source = SERVICE.format(group=self.group, name_server=stack.name_server, url=url, topic=topic)
        (folder / f"{self.module}.py").write_text(source)
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another `rmq-txn` command of this service to its end."""
        return subprocess.run(
            [sys.executable, "-m", "rmq_txn", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(CHECKOUT), "ROCKETMQ_CLIENT_LOG_DIR": str(self.folder)}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `rmq-txn consume`; all that it and its children say goes into one log."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rmq_txn", "consume", f"{self.module}:consumer", *arguments],
                cwd=self.folder,
                env=self.environment,
                stderr=log,
                stdout=log,
            )
        return self.process

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def pids(self, what: str = "ready") -> list[int]:
        """Return the children that were started, or have become ready, in this order."""
        return [int(pid) for pid in re.findall(rf"consumer process {what} .*?pid=(\d+)", self.said())]

    def send(self, id_: str, queue: int = 0, flags: int = 0) -> int:
        """Store a message for it; return its offset."""
        body = json.dumps({"id": id_}).encode()
        return foreign.send(self.stack.broker_address, self.topic, queue, body, flags, key=id_)

    def effects(self) -> list[str]:
        return sorted(id_ for (id_,) in rows(self.url, "SELECT id FROM effect"))

    def stop(self) -> None:
        """End whatever still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def service(stack: LocalStack, topic: str, database_url: str, tmp_path: Path) -> Iterator[Service]:
    """A service of this test's own, and the guarantee that nothing of it goes on."""
    made = Service(stack, topic, database_url, tmp_path)
    try:
        yield made
    finally:
        made.stop()
        print(made.said())


def test_processes_share_the_work_are_replaced_and_drain(service: Service) -> None:
    """Two consume; one is killed with -9 and replaced; SIGTERM lets a handler finish and ends with 0."""
    supervisor = service.start("--processes", "2")
    until(lambda: len(service.pids()) == 2, "two processes are ready", 60)
    broker = RemotingClient(service.stack.broker_address)
    until(lambda: len(broker.consumer_connections(service.group)) == 2, "both are online", 60)
    frozen = service.pids()[0]
    os.kill(frozen, signal.SIGSTOP)
    assert len(online(RemotingClient(service.stack.broker_address, timeout_seconds=1), service.group)) == 2
    os.kill(frozen, signal.SIGCONT)
    for number in range(8):
        service.send(f"a{number}", number % 4)
    until(lambda: len(service.effects()) == 8, "all are handled", 60)

    os.kill(service.pids()[0], signal.SIGKILL)
    until(lambda: len(service.pids()) == 3, "the killed one is replaced", 60)
    for number in range(8):
        service.send(f"b{number}", number % 4)
    until(lambda: len(service.effects()) == 16, "work goes on", 60)
    assert len(set(service.effects())) == 16

    service.send("slow")
    until((service.folder / "inside").exists, "the handler runs", 60)
    supervisor.send_signal(signal.SIGTERM)
    # As systemd does: the children get the signal, too. It must not cut the handler off.
    for pid in service.pids()[1:]:
        os.kill(pid, signal.SIGTERM)
    (service.folder / "go-on").touch()
    assert supervisor.wait(60) == exit_codes.OK
    assert "slow" in service.effects()
    assert not any(map(is_alive, service.pids("started")))
    # Nothing on stdout or stderr but the log, of which each line is one record.
    assert [line for line in service.said().splitlines() if not re.match(LOG_LINE, line)] == []


def test_a_process_that_can_not_be_started_takes_no_other_down(service: Service) -> None:
    """The system has no file left for the supervisor: it waits and tries again, the others work on."""
    supervisor = service.start("--processes", "2")
    until(lambda: len(service.pids()) == 2, "two processes are ready", 60)
    killed, left = service.pids()
    _soft, hard = resource.prlimit(supervisor.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(supervisor.pid, resource.RLIMIT_NOFILE, (3, hard))
    os.kill(killed, signal.SIGKILL)
    until(lambda: service.said().count("consumer process can't be started") >= 2, "it was tried twice", 60)
    assert supervisor.poll() is None
    assert is_alive(left)
    resource.prlimit(supervisor.pid, resource.RLIMIT_NOFILE, (hard, hard))
    until(lambda: len(service.pids()) == 3, "the killed one is replaced", 60)
    assert is_alive(left)
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(60) == exit_codes.OK


def test_a_killed_supervisor_leaves_no_process(service: Service) -> None:
    """The kernel ends them."""
    supervisor = service.start("--processes", "2")
    until(lambda: len(service.pids("started")) == 2, "two processes are started", 60)
    until(lambda: service.pids(), "one is ready", 60)
    supervisor.kill()
    until(lambda: not any(map(is_alive, service.pids("started"))), "no process is left", 30)


def test_a_message_that_kills_the_client_is_named_and_skipped(service: Service) -> None:
    """ZSTD from another client: crash loop, its offset, the command to skip it; the others arrive."""
    service.send("zlib", 1, foreign.COMPRESSED | foreign.ZLIB)
    before = service.send("before", 2)
    poison = service.send("poison", 2, foreign.COMPRESSED | foreign.ZSTD)
    service.send("behind", 2)
    supervisor = service.start()
    until(lambda: "kills the native client" in service.said(), "the message is named", 60)
    assert "SIGABRT" in service.said()
    assert f"the message at offset {poison} of topic {service.topic}" in service.said()
    assert "keys poison" in service.said()
    found = re.search(r"rmq-txn (offsets skip [^\"\n]*)", service.said())
    assert found is not None, service.said()
    command = shlex.split(found[1])
    assert service.effects() in ([], ["zlib"])
    assert supervisor.poll() is None

    wrong = service.run(*command[:-1], str(before))
    assert wrong.returncode == exit_codes.USAGE
    assert f"the first such message at offset {poison}" in wrong.stderr
    skipped = until(lambda: succeeded(service.run(*command)), "the skip, with no consumer online", 60)
    assert "given back for redelivery: 1" in skipped.stdout
    supervisor.send_signal(signal.SIGHUP)  # else the restart is up to a minute away
    # A broker that still names a child that died at its start leaves it its queues for two minutes.
    until(lambda: service.effects() == ["before", "behind", "zlib"], "the others are handled", 180)

    online = service.run(*command)
    assert online.returncode == exit_codes.USAGE  # nothing is left to skip
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(60) == exit_codes.OK


def test_a_dead_client_that_the_broker_still_names_hinders_no_skip(service: Service) -> None:
    """It died before its heartbeat was answered, as in a crash loop: it is named for two minutes more."""
    broker = RemotingClient(service.stack.broker_address)
    poison = service.send("poison", 2, foreign.COMPRESSED | foreign.ZSTD)
    until(lambda: vanished(service), "the broker names a dead client")
    broker.set_consumer_offset(service.group, service.topic, 2, poison)
    assert broker.consumer_connections(service.group)
    target = ["--topic", service.topic, "--broker", "devstack-broker", "--queue", "2"]
    skipped = service.run("offsets", "skip", f"{service.module}:consumer", *target, "--offset", str(poison))
    assert skipped.returncode == exit_codes.OK, skipped.stderr
    assert broker.consumer_offset(service.group, service.topic, 2) == poison + 1


def vanished(service: Service) -> bool:
    """Have a client die at its start; whether the broker counts it among the members of the group."""
    broker, client_id = service.stack.broker_address, f"127.0.0.1@{new_txn_id()}"
    foreign.vanish(broker, service.group, service.topic, client_id)
    named = RemotingClient(broker).consumer_connections(service.group)
    return client_id in [connection.client_id for connection in named]


def succeeded(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str] | None:
    """Return what ran well; None if a consumer was online just then."""
    if done.returncode == 0:
        return done
    assert "is online" in done.stderr, done.stderr
    return None
