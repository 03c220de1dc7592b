"""
What the documents say, done: the code and commands of README and quickstart run against real servers.

They name servers on their usual ports. `Reader` puts those of this test run in their place, and gives
topic, groups and databases names of their own, because other tests use the same servers; nothing else of a
block is changed.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pymysql
import pytest

import rmq_txn
from devstack import LocalStack
from devstack.rocketmq import CLUSTER_NAME
from rmq_txn.database.pool import parse_url
from rmq_txn.errors import TransactionError
from tests.kit.documents import (
    CHECKOUT,
    CHINESE,
    blocks,
    file_name,
    links,
    shell_commands,
    text_of,
    without_blocks,
)
from tests.kit.rows import rows
from tests.kit.wait import until

READMES = ("README.md", "README.zh-CN.md")
QUICKSTARTS = ("docs/quickstart.md", "docs/quickstart.zh-CN.md")
WITH_COMMANDS = ("README", "docs/quickstart", "docs/installation", "docs/demo", "docs/failures")
DOCUMENTS = sorted(
    path.relative_to(CHECKOUT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "demo_*/*.md")
    for path in CHECKOUT.glob(pattern)
)
PROMISE = "effects inside your database happen once; delivery is at least once; order is not promised"

HERE = "tests/integration/test_docs.py::test_the_quickstart_does_what_it_says"
CONSUME = "tests/integration/test_consume.py::test_processes_share_the_work_are_replaced_and_drain"
CULPRIT = "tests/integration/test_consume.py::test_a_message_that_kills_the_client_is_named_and_skipped"
PARKED_COMMANDS = "tests/integration/test_parked_commands.py"
PARKED = f"{PARKED_COMMANDS}::test_parked_messages_are_listed_shown_replayed_and_dropped"
BURIED = f"{PARKED_COMMANDS}::test_a_dead_letter_is_replayed_by_one_command"
PRUNING = "tests/integration/test_pruning.py"
FRESH = "tests/unit/test_demo_runs.py::test_beginning_anew_removes_what_earlier_stacks_left"
# Not part of ./dev test: `./dev test --containers` runs it, with docker-compose 1.
CONTAINERS = "tests/containers/run.py::main"
INSTALL_FROM = "tests/unit/test_library.py::test_install_from_a_file_asks_no_index"
RELEASE = "tests/test_packaging.py::test_a_release_is_checked_and_tried_in_clean_environments"
FROM_GIT = "tests/test_packaging.py::test_the_readme_installs_from_a_git_address"
# Every command in these documents, and the test that runs it. A command without a test is an error.
COMMANDS = {
    "./dev demo": "tests/e2e/test_demo_services.py::test_ctrl_c_in_the_tutorial_stops_everything",
    "./dev demo --once": "tests/e2e/test_demo_services.py::test_the_tutorial_runs_to_its_end",
    "./dev chaos": "tests/e2e/test_chaos.py::test_the_books_agree_after_a_short_run_of_random_faults",
    "docker compose up": CONTAINERS,
    "./dev stack up": "tests/integration/test_tutorial.py::test_the_tutorial_does_what_it_says",
    "./dev test --containers": CONTAINERS,
    "./dev test --stack containers": CONTAINERS,
    "./dev test --database mysql": HERE,  # what ./dev test does after its first run
    "./dev demo --fresh": FRESH,
    "./dev test": HERE,  # this run: .ci/run is nothing but ./dev test
    "./dev release": RELEASE,
    "pip install 'rmq-txn[native-install] @ git+https://YOUR-GIT-HOST/rmq_txn.git'": FROM_GIT,
    "pip install 'dist/rmq_txn-0.1.0-py3-none-any.whl[native-install]'": RELEASE,
    "pip install '.[native-install]'": "tests/test_packaging.py::test_the_files_come_from_the_wheel",
    "rmq-txn native install": RELEASE,
    "rmq-txn native status": RELEASE,
    "rmq-txn native install --from rocketmq-python-cvs-2.1.0.3.tar.gz": INSTALL_FROM,
    "rmq-txn schema apply --database-url mysql://account:secret@127.0.0.1:3306/account": HERE,
    "rmq-txn schema apply --database-url mysql://points:secret@127.0.0.1:3306/points": HERE,
    "mqadmin updateTopic -n 127.0.0.1:9876 -c DefaultCluster -t transfer": HERE,
    "rmq-txn consume points_service:consumer": HERE,
    "rmq-txn offsets show points_service:consumer": CULPRIT,
    "rmq-txn consume points_service:consumer --processes 4": CONSUME,
    "python account_service.py": HERE,
    "rmq-txn outbox status": "tests/integration/test_outbox.py::test_outbox_status_tells_rows_and_ages",
    "rmq-txn prune --dry-run": f"{PRUNING}::test_a_dry_run_counts_and_forecasts_and_the_command_deletes",
    "rmq-txn parked list": PARKED,
    "rmq-txn parked replay points_service:consumer --all": PARKED,
    "rmq-txn dlq replay points_service:consumer": BURIED,
}


class Reader:
    """Does what a document says, in a folder of its own, with the servers of this test run."""

    def __init__(self, document: str, stack: LocalStack, unique: str, folder: Path) -> None:
        self.text, self.stack, self.unique, self.folder = text_of(document), stack, unique, folder
        self.topic = f"{unique}-transfer"

    def url(self, database: str) -> str:
        return self.stack.database_url(f"{self.unique}_{database}")

    def here(self, text: str) -> str:
        """Put this test's names in the place of the document's."""
        text = text.replace("127.0.0.1:9876", self.stack.name_server).replace("DefaultCluster", CLUSTER_NAME)
        text = re.sub(r"mysql://\w+:secret@127\.0\.0\.1:3306/(\w+)", lambda found: self.url(found[1]), text)
        text = re.sub(r'"(transfer|account-service|points-service)"', rf'"{self.unique}-\1"', text)
        return text.replace("-t transfer", f"-t {self.topic}")

    def make_tables(self) -> None:
        """Run the SQL block, each part in the database it names."""
        (script,) = blocks(self.text, "sql")
        for part in script.split("USE ")[1:]:
            database, statements = part.split(";", 1)
            with pymysql.connect(**parse_url(self.url(database))) as connection:
                for statement in filter(None, map(str.strip, statements.split(";"))):
                    connection.cursor().execute(statement)
                connection.commit()

    def write_programs(self) -> None:
        """Write each Python block to the file it names; a second one is added to the first."""
        for block in blocks(self.text, "python"):
            with (self.folder / file_name(block)).open("a", encoding="utf-8") as file:
                file.write(self.here(block))

    def arguments(self, command: str) -> list[str]:
        """Return the arguments with which a command of the document runs here."""
        program, *rest = shlex.split(self.here(command))
        if program == "mqadmin":
            jars = self.stack.settings.cache_folder / f"rocketmq-{self.stack.settings.rocketmq_version}"
            java = [shutil.which("java") or "java", f"-Duser.home={self.folder}", "-cp", f"{jars}/*"]
            return [*java, "org.apache.rocketmq.tools.command.MQAdminStartup", *rest]
        python = {"python": [], "rmq-txn": ["-m", "rmq_txn"]}[program]
        return [sys.executable, *python, *rest]

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command of the document."""
        return subprocess.Popen(
            self.arguments(command),
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> str:
        """Run a command of the document to its end and return what it printed."""
        with self.start(command) as process:
            try:
                output, _ = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == 0, f"{command}\n{output}"
        return output


@pytest.mark.servers
@pytest.mark.local_stack
@pytest.mark.parametrize("quickstart", QUICKSTARTS)
def test_the_quickstart_does_what_it_says(
    quickstart: str, stack: LocalStack, unique: str, tmp_path: Path
) -> None:
    """A reader who follows it line by line gets the promised result."""
    reader = Reader(quickstart, stack, unique, tmp_path)
    reader.make_tables()
    reader.write_programs()
    *_, steps = blocks(reader.text, "sh")
    commands = [line for line in steps.splitlines() if COMMANDS[line] == HERE]
    *preparations, points_service, account_service = commands
    for command in preparations:
        reader.run(command)
    with reader.start(points_service) as consumer:
        try:
            output = reader.run(account_service)
            assert re.fullmatch(r"committed [0-9a-f]{32}\ndebited [0-9a-f]{32}\n", output), output
            until(lambda: points_of_alice(reader) == 67, "the points of both transfers", 40)
            assert rows(reader.url("account"), "SELECT balance FROM account") == [(43300,)]
            handled = rows(reader.url("points"), "SELECT dedup_key FROM rmq_txn_inbox ORDER BY 1")
            assert [key.decode().partition("/")[0] for (key,) in handled] == [
                f"{id_}.0" for id_ in output.split()[1::2]
            ]
            consumer.send_signal(signal.SIGTERM)
            assert consumer.wait(timeout=20) == 0
        finally:
            consumer.kill()
    assert points_of_alice(reader) == 67
    assert all(number in reader.text for number in ("43300", "67"))


def points_of_alice(reader: Reader) -> int:
    """Return what the points service has stored."""
    ((points,),) = rows(reader.url("points"), "SELECT points FROM points WHERE user_id = 'alice'")
    return int(points)


@pytest.mark.parametrize(("readme", "quickstart"), [*zip(READMES, QUICKSTARTS, strict=True)])
def test_the_readme_shows_the_code_that_the_quickstart_runs(readme: str, quickstart: str) -> None:
    """Form A and the consumer, to the letter; form B is in the quickstart only."""
    form_a, _, consumer = blocks(text_of(quickstart), "python")
    assert blocks(text_of(readme), "python") == [form_a, consumer]


@pytest.mark.parametrize("readme", READMES)
def test_the_readme_is_one_page(readme: str) -> None:
    """How to install it within 20 lines, its first Python within 30; one sentence a line."""
    lines = text_of(readme).splitlines()
    assert len(lines) <= 125
    prose = without_blocks(text_of(readme)).splitlines()
    assert [line for line in prose if re.search(r"[.!?] [A-Z]|[。！？](?=\w)", line)] == []
    assert any(line.startswith("pip install") for line in lines[:20])
    assert "```python" in lines[:30]


@pytest.mark.parametrize("ending", [".md", CHINESE])
def test_every_command_is_run_by_a_test(ending: str) -> None:
    """A new command needs a test; a test that is renamed needs a look here."""
    commands = set().union(*(shell_commands(text_of(name + ending)) for name in WITH_COMMANDS))
    named = {short for short in commands if any(command.startswith(f"{short} ") for command in COMMANDS)}
    assert commands | named == set(COMMANDS) | named
    for node_id in COMMANDS.values():
        path, function = node_id.split("::")
        tree = ast.parse(text_of(path))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, node_id
    assert "\nnative-install = [" in text_of("pyproject.toml")


@pytest.mark.parametrize("readme", READMES)
def test_the_readme_has_the_promise(readme: str) -> None:
    """Word for word."""
    assert PROMISE in text_of(readme)


@pytest.mark.parametrize("failures", ["docs/failures.md", "docs/failures.zh-CN.md"])
def test_the_table_of_failures_has_every_outcome(failures: str) -> None:
    """Each way a transaction can end, by its public name."""
    text = text_of(failures)
    named = set(re.findall(r"`(\w+Error)`", text))
    assert named <= set(rmq_txn.__all__)
    named |= set(re.findall(r"`rmq_txn\.errors\.(\w+Error)`", text))
    outcomes = {leaf.__name__ for leaf in TransactionError.__subclasses__()}
    assert outcomes | {"DatabaseUnavailableError"} <= named
    assert "`Receipt`" in text


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_to_files_resolve(document: str) -> None:
    """Relative to the document, as GitHub and editors resolve them."""
    folder = (CHECKOUT / document).parent
    missing = [link for link in links(text_of(document)) if not (folder / link.split("#")[0]).exists()]
    assert missing == []


def test_the_glossary_names_modules_that_exist() -> None:
    """Each term says where it lives."""
    terms = re.findall(r"^\| .* \| (.*) \|$", text_of("docs/glossary.md"), re.MULTILINE)[1:]
    named = {module for cell in terms for module in re.findall(r"`([\w/]+\.py)`", cell)}
    assert named
    assert [module for module in sorted(named) if not (CHECKOUT / "rmq_txn" / module).exists()] == []


def test_decisions_are_numbered_and_have_three_parts() -> None:
    """Numbers without gaps; what was the question, what was decided, what follows."""
    records = sorted((CHECKOUT / "docs" / "decisions").glob("*.md"))
    assert [path.name[:5] for path in records] == [f"{n:04d}-" for n in range(1, len(records) + 1)]
    for path in records:
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {path.name[:4]} ")
        assert re.findall("^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], path
