"""Each service of `examples/`, killed with `kill -9` right after its COMMIT, and started again."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pymysql
import pytest

from devstack import LocalStack, release
from rmq_txn import Database, schema
from rmq_txn.database.pool import parse_url
from tests.conftest import CHECKOUT
from tests.kit.documents import blocks
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = pytest.mark.servers

EXAMPLES = CHECKOUT / "examples"
SECONDS = 120.0

# What the examples know nothing of. The first COMMIT of a message ends the process as `kill -9` does, once:
# also in a child that a server forks, which inherits this.
KILLER = """
import os, signal
from pathlib import Path
import rmq_txn
from rmq_txn.transport.wrapped import Hooks, Wrapped
from rmq_txn.verdict import Verdict

mark, RocketMQ = Path(__file__).with_name("killed"), rmq_txn.RocketMQ

class Killer(Hooks):
    def execute(self, group, message, message_id, execute):
        verdict = execute(message_id)
        if verdict is Verdict.COMMIT and not mark.exists():
            mark.write_text(f"{message.properties['rmq_txn_id']} {rmq_txn.__file__}")
            os.kill(os.getpid(), signal.SIGKILL)
        return verdict

rmq_txn.RocketMQ = lambda *a, **k: Wrapped(RocketMQ(*a, **k), Killer())
"""

COMMANDS = {
    "fastapi_sqlalchemy": [["uvicorn", "service:app", "--port", "0"]],
    "async_fastapi": [["uvicorn", "service:app", "--port", "0"]],
    "flask_celery": [
        ["flask", "--app", "service", "run", "--port", "0"],
        ["celery", "-A", "service:celery", "worker", "--concurrency", "1", "--loglevel", "INFO"],
        ["rmq_txn", "consume", "service:consumer"],
    ],
    "django_service": [
        ["gunicorn", "--bind", "127.0.0.1:0", "service:application"],
        ["rmq_txn", "consume", "service:consumer"],
    ],
}
REVIVED = {"flask_celery", "django_service"}  # Celery and gunicorn make another process by themselves


class Copy:
    """An example in a folder of its own, with the servers of this run and names of this test."""

    def __init__(
        self, name: str, stack: LocalStack, unique: str, folder: Path, python: str, imported: list[str]
    ) -> None:
        self.name, self.stack, self.unique, self.folder = name, stack, unique, folder
        self.python, self.imported = python, imported
        self.resources = ExitStack()
        (folder / "sitecustomize.py").write_text(KILLER)
        for file in (EXAMPLES / name).glob("*.py"):
            (folder / file.name).write_text(self.here(file.read_text()))
        (folder / "data_in").mkdir()  # what goes out of Celery's broker in files comes in
        (folder / "data_out").symlink_to("data_in")
        stack.create_topic(f"{unique}-transfer")
        for part in (EXAMPLES / "tables.sql").read_text().split("USE ")[1:]:
            database, statements = part.split(";", 1)
            with pymysql.connect(**parse_url(self.url(database))) as connection:
                for statement in filter(None, map(str.strip, statements.split(";"))):
                    connection.cursor().execute(statement)
                connection.commit()
            opened = Database.mysql(self.url(database))
            schema.apply(opened)
            opened.close()

    def url(self, database: str) -> str:
        return self.stack.database_url(f"{self.unique}_{database}")

    def here(self, text: str) -> str:
        """Put the servers and names of this test in the place of the example's."""
        text = text.replace("127.0.0.1:9876", self.stack.name_server)
        text = re.sub(r"mysql://\w+:secret@127\.0\.0\.1:3306/(\w+)", lambda found: self.url(found[1]), text)
        text = text.replace("redis://127.0.0.1:6379/0", "filesystem://")
        return re.sub(r'"(transfer|account-service|points-service)"', rf'"{self.unique}-\1"', text)

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a command; its processes end with this copy."""
        with self.output(command).open("ab") as output:
            process = subprocess.Popen(
                [self.python, "-m", *command],
                cwd=self.folder,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(self.folder), *self.imported]),
                    "PYTHONUNBUFFERED": "1",
                    "HOME": str(self.folder),
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.resources.callback(self._end, process)
        return process

    def output(self, command: list[str]) -> Path:
        return self.folder / f"{command[0]}.log"

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def put(self, transfer_id: str) -> httpx.Response | None:
        """Ask for a transfer at the port that the server says it has; None: it died instead of answering."""
        log = self.output(COMMANDS[self.name][0])
        listening = re.compile(r"http://127\.0\.0\.1:(\d+)")
        until(lambda: listening.search(log.read_text(errors="replace")), "it listens", SECONDS)
        port = listening.findall(log.read_text(errors="replace"))[-1]
        url = f"http://127.0.0.1:{port}/transfers/{transfer_id}"
        try:
            return httpx.put(url, json={"user_id": "alice", "amount": 2500}, timeout=SECONDS)
        except httpx.TransportError:
            return None

    @property
    def killed(self) -> bool:
        return (self.folder / "killed").exists()

    def balance(self) -> int:
        ((balance,),) = rows(self.url("account"), "SELECT balance FROM account WHERE user_id = 'alice'")
        return int(balance)

    def points(self) -> int:
        ((points,),) = rows(self.url("points"), "SELECT points FROM points WHERE user_id = 'alice'")
        return int(points)


Make = Callable[..., Copy]


@pytest.fixture
def make(stack: LocalStack, unique: str, tmp_path: Path) -> Iterator[Make]:
    """Return a function that makes a copy; what its processes printed is shown if the test fails."""

    def made(name: str, python: str = sys.executable, imported: Sequence[str] = (str(CHECKOUT),)) -> Copy:
        copy = Copy(name, stack, unique, tmp_path, python, list(imported))
        resources.push(copy.resources)
        return copy

    try:
        with ExitStack() as resources:
            yield made
    finally:
        for log in tmp_path.glob("*.log"):
            print(f"--- {log.name}\n{log.read_text(errors='replace')}")


def comes_right(copy: Copy) -> None:
    """Transfer, be killed after the COMMIT, start again; the points come, and a repeat adds nothing."""
    processes = {command[0]: copy.start(command) for command in COMMANDS[copy.name]}
    assert copy.points() == 0
    copy.put("t-1")
    until(lambda: copy.killed, "it is killed", SECONDS)
    server = COMMANDS[copy.name][0]
    if copy.name not in REVIVED:
        until(lambda: processes[server[0]].poll() is not None, "its process is gone", SECONDS)
        copy.output(server).unlink()
        copy.start(server)
    assert copy.balance() == 47_500
    until(lambda: copy.points() == 25, "the points are there", SECONDS)
    assert copy.put("t-1") is not None
    assert copy.put("t-2") is not None
    until(lambda: copy.points() >= 50, "the points of another transfer", SECONDS)
    assert (copy.balance(), copy.points()) == (45_000, 50)


@pytest.mark.local_stack
@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_killed_after_its_commit_comes_right_exactly_once(make: Make, name: str) -> None:
    """The money is gone and nobody was told; after the start the points arrive, and a repeat adds nothing."""
    comes_right(make(name))


@pytest.fixture(scope="module")
def of_the_wheel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the Python of a new environment: the wheel with its extras, what the examples say they need."""
    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = (file for file in release.build(folder, isolated=False) if file.suffix == ".whl")
    ((line, *_),) = (block.splitlines() for block in blocks((EXAMPLES / "README.md").read_text(), "sh"))
    _pip, _install, ours, *others = shlex.split(line)
    programs = release.install(folder, ours.replace("rmq-txn", str(wheel)), *others)
    release.run([str(programs / "rmq-txn"), "native", "install"], folder)
    return str(programs / "python")


@pytest.mark.long
@pytest.mark.local_stack
@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_comes_right_in_an_environment_that_has_only_the_wheel(
    make: Make, of_the_wheel: str, name: str
) -> None:
    """Nothing of the checkout is imported: the process that was killed says where its package was."""
    copy = make(name, of_the_wheel, [])
    comes_right(copy)
    _txn_id, package = (copy.folder / "killed").read_text().split()
    assert Path(package).is_relative_to(Path(of_the_wheel).parents[1])


def test_each_example_has_less_than_150_lines() -> None:
    found = dict.fromkeys((path.parent.name for path in EXAMPLES.glob("*/service.py")), 0)
    for path in EXAMPLES.glob("*/*.py"):
        found[path.parent.name] += len(path.read_text().splitlines())
    assert set(found) == set(COMMANDS)
    assert max(found.values()) < 150
