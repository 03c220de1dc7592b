"""Every recipe of docs/recipes.md as a reader would run it: on the real servers, ended by SIGTERM."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from devstack import LocalStack
from rmq_txn import Database, IdempotentConsumer, RocketMQ, schema
from tests.conftest import CHECKOUT
from tests.integration.test_docs import Reader
from tests.kit.documents import blocks, text_of
from tests.kit.proxy import TcpProxy
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = pytest.mark.servers

RECIPES = "docs/recipes.md"
COMMANDS = [line for block in blocks(text_of(RECIPES), "sh") for line in block.splitlines()]
WORKERS = 2  # what every recipe says
START_SECONDS = STOP_SECONDS = 90.0

# How each command gets its work: what is asked of it, and by whom.
OVER_HTTP = [command for command in COMMANDS if command.startswith(("uvicorn ", "gunicorn "))]
OVER_STDIN = [command for command in COMMANDS if command.startswith("python ")]
(CELERY,) = [command for command in COMMANDS if command not in OVER_HTTP + OVER_STDIN]
(GUNICORN,) = [
    command for command in OVER_HTTP if command.endswith("flask_app:app") and "--preload" not in command
]
(PRELOAD,) = [command for command in OVER_HTTP if "--preload" in command]


class Kitchen:
    """The files of the document in a folder of their own, and the processes that run them."""

    def __init__(self, stack: LocalStack, unique: str, folder: Path) -> None:
        self.stack, self.folder = stack, folder
        self.reader = Reader(RECIPES, stack, unique, folder)
        Reader("docs/quickstart.md", stack, unique, folder).make_tables()
        self.reader.write_programs()
        self.output = folder / "output.log"
        self.arrived: list[str] = []
        self.resources = ExitStack()
        # The file system broker of Celery: what goes out comes in.
        (folder / "data_in").mkdir()
        (folder / "data_out").symlink_to("data_in")
        stack.create_topic(self.reader.topic)
        for name in ("account", "points"):
            database = Database.mysql(self.reader.url(name))
            self.resources.callback(database.close)
            schema.apply(database)
        self._consume(database, unique)

    def _consume(self, points: Database, unique: str) -> None:
        consumer = IdempotentConsumer(
            group=f"c-{unique}", broker=RocketMQ(self.stack.name_server), database=points
        )
        consumer.handles(self.reader.topic)(
            lambda _txn, delivery: self.arrived.append(delivery.json()["transfer_id"])
        )
        self.resources.enter_context(consumer)

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command of the document; its processes end with this kitchen, whatever happens."""
        program, *arguments = shlex.split(command.replace(":8000", ":0").replace("--port 8000", "--port 0"))
        module = [] if program == "python" else ["-m", program]
        with self.output.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, *module, *arguments],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # so that leftovers are found
            )
        self.resources.callback(self._end, process)
        return process

    def environment(self) -> dict[str, str]:
        """Give the reader's environment: gunicorn's control socket lies below HOME."""
        return {
            **os.environ,
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONUNBUFFERED": "1",
            "HOME": str(self.folder),
            "CELERY_BROKER_URL": "filesystem://",  # Celery prefers it to the address in the code
        }

    def _end(self, process: subprocess.Popen[str]) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()

    def said(self) -> str:
        """Return what the processes printed until now."""
        return self.output.read_text(errors="replace")

    def wait_said(self, what: str, times: int = 1) -> None:
        """Wait until the processes printed `what` so often."""
        try:
            until(lambda: self.said().count(what) >= times, f"{times} times {what!r}", START_SECONDS)
        except AssertionError:
            print(self.said())
            raise

    def post(self, transfer_id: str) -> httpx.Response:
        """Ask for a transfer over HTTP, at the port that the server says it has."""
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.said())
        assert found, self.said()
        url = f"http://127.0.0.1:{found[1]}/transfers/{transfer_id}"
        return httpx.post(url, params={"amount": 2500}, timeout=60)

    def delay(self, *transfer_ids: str) -> None:
        """Ask for transfers by Celery tasks, from another process."""
        code = "import sys; from tasks import transfer; [transfer.delay(id_, 2500) for id_ in sys.argv[1:]]"
        command = [sys.executable, "-c", code, *transfer_ids]
        subprocess.run(command, cwd=self.folder, env=self.environment(), timeout=60, check=True)

    def wait_arrived(self, *transfer_ids: str) -> None:
        """Wait for the messages of transfers; the account was debited for these and no others."""
        until(lambda: set(self.arrived) >= set(transfer_ids), f"messages {transfer_ids}", 60)
        assert sorted(self.arrived) == sorted(transfer_ids)
        ((balance,),) = rows(self.reader.url("account"), "SELECT balance FROM account")
        assert balance == 50_000 - 2_500 * len(transfer_ids)

    def stop(self, process: subprocess.Popen[str]) -> int:
        """Send SIGTERM, return the exit status; nothing of it is left then."""
        process.terminate()
        try:
            status = process.wait(STOP_SECONDS)
            until(lambda: not living(process.pid), "all its processes are gone", 30)
        finally:
            print(self.said())
        return status


def living(session: int) -> list[str]:
    """Return the processes of a session; the dead that nobody has waited for yet are not counted."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            state, _parent, _group, of_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of_session) == session and state != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found


def assert_every_producer_was_closed(said: str, started: int = WORKERS) -> None:
    """A killed worker, or one that forgot its producer, closes none; a leak is told by Python."""
    assert said.count("producer started") == started
    assert said.count("producer closed") == started
    assert "Traceback" not in said
    assert "leaked" not in said


@pytest.fixture
def kitchen(stack: LocalStack, unique: str, tmp_path: Path) -> Iterator[Kitchen]:
    """Return the files, tables, topic and a consumer for one recipe."""
    kitchen = Kitchen(stack, unique, tmp_path)
    with kitchen.resources:
        yield kitchen


@pytest.mark.parametrize("command", OVER_HTTP)
def test_a_web_server_with_worker_processes(kitchen: Kitchen, command: str) -> None:
    """uvicorn, and gunicorn with and without --preload: one producer a worker."""
    server = kitchen.start(command)
    kitchen.wait_said("producer started", WORKERS)
    for n in range(3):
        answer = kitchen.post(f"t-{n}")
        assert answer.status_code == 200, kitchen.said()
        assert re.fullmatch("[0-9a-f]{32}", answer.json()["txn_id"])
    kitchen.wait_arrived("t-0", "t-1", "t-2")
    assert kitchen.stop(server) == 0
    assert_every_producer_was_closed(kitchen.said())


def test_a_gunicorn_worker_told_to_end_while_it_starts_ends(kitchen: Kitchen) -> None:
    """In `post_fork` the signal would be swallowed and the worker killed after 30 s (decision 0020)."""
    inside, go_on = kitchen.folder / "inside", kitchen.folder / "go-on"
    with (kitchen.folder / "account.py").open("a") as file:
        file.write(
            "\nfrom pathlib import Path\nfrom tests.kit.wait import until\nquick_start = producer.start\n\n"
            "def start():\n"
            f"    Path({str(inside)!r}).touch()\n"
            f"    until(Path({str(go_on)!r}).exists, 'the test lets it start', 90)\n"
            "    quick_start()\n\n"
            "producer.start = start\n"
        )
    server = kitchen.start(GUNICORN.replace("gunicorn ", "gunicorn --workers 1 "))
    until(inside.exists, "the worker is inside its start", START_SECONDS)
    server.terminate()
    kitchen.wait_said("Handling signal: term")
    go_on.touch()
    assert server.wait(STOP_SECONDS) == 0
    assert_every_producer_was_closed(kitchen.said(), 1)


def test_a_producer_started_before_the_fork_is_refused_and_the_error_says_where(kitchen: Kitchen) -> None:
    """With --preload a start at the level of a module runs in the master."""
    with (kitchen.folder / "flask_app.py").open("a") as file:
        file.write("\nfrom account import producer\n\nproducer.start()\n")
    (kitchen.folder / "gunicorn.conf.py").write_text("workers = 2\n")
    server = kitchen.start(PRELOAD)
    kitchen.wait_said("Booting worker", WORKERS)
    assert kitchen.post("t-0").status_code == 500
    kitchen.wait_said("LifecycleError: TransactionProducer of group")
    assert (
        "start it after the fork, in the process that uses it (gunicorn: post_worker_init" in kitchen.said()
    )
    assert kitchen.stop(server) == 0
    ((balance,),) = rows(kitchen.reader.url("account"), "SELECT balance FROM account")
    assert balance == 50_000


def test_celery_prefork(kitchen: Kitchen) -> None:
    """One producer for each process of the pool; tasks publish."""
    worker = kitchen.start(CELERY)
    kitchen.wait_said("producer started", WORKERS)
    kitchen.delay("t-0", "t-1", "t-2")
    kitchen.wait_arrived("t-0", "t-1", "t-2")
    assert kitchen.stop(worker) == 0
    assert_every_producer_was_closed(kitchen.said())


def test_celery_tries_again_while_the_broker_is_away(kitchen: Kitchen, stack: LocalStack) -> None:
    """A process without a producer runs no task; Celery makes new ones until the broker is there."""
    host, port = stack.name_server.split(":")
    away = threading.Event()
    away.set()
    with TcpProxy(host, int(port)) as proxy:
        proxy.on_request = lambda line, _data: line.cut() if away.is_set() else None
        account = kitchen.folder / "account.py"
        account.write_text(account.read_text().replace(stack.name_server, f"127.0.0.1:{proxy.port}"))
        worker = kitchen.start(CELERY)
        kitchen.delay("t-0")
        kitchen.wait_said("no producer in this process", WORKERS)
        assert kitchen.arrived == []
        away.clear()
        kitchen.wait_arrived("t-0")
        assert kitchen.stop(worker) == 0


@pytest.mark.parametrize("command", OVER_STDIN)
def test_multiprocessing(kitchen: Kitchen, command: str) -> None:
    """Spawned and forked children alike start a producer each."""
    program = kitchen.start(command)
    assert program.stdin is not None
    print("t-0", "t-1", "t-2", sep="\n", file=program.stdin, flush=True)
    kitchen.wait_said("producer started", WORKERS)
    kitchen.wait_arrived("t-0", "t-1", "t-2")
    assert kitchen.stop(program) == 0
    assert_every_producer_was_closed(kitchen.said())
