"""The testing guide and the pytest plugin, used as a reader does: by another pytest, in another folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.documents import blocks, file_name, text_of

ROOT = Path(__file__).resolve().parents[2]

FAILS = """
import pytest
from rmq_txn import TransactionProducer

@pytest.fixture
def producer(memory_broker, rmq_database):
    memory_broker.create_topic("transfer")
    service = {"broker": memory_broker, "database": rmq_database}
    with TransactionProducer(group="g", topics=["transfer"], **service) as made:
        yield made

def test_story(producer, memory_broker):
    with producer.transaction() as txn:
        txn.publish("transfer", {"n": 1}, key="k-1")
    assert memory_broker.half_messages() == 1, "it fails"

def test_fault_that_never_happens(producer, deliver_twice):
    deliver_twice()

def test_fault_in_a_test_that_fails_anyhow(producer, crash_at):
    crash_at("after_commit")
    raise ValueError("first")

def test_passes(producer, wait_until_consumed):
    with pytest.raises(AssertionError, match="no group"):
        wait_until_consumed("transfer")
"""


def run_pytest(folder: Path, *options: str, database: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder; warnings are errors, as in this project."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment.pop("RMQ_TXN_TEST_DATABASE", None)
    if database is not None:
        environment["RMQ_TXN_TEST_DATABASE"] = database
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:randomly", "-q", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def crash_test() -> str:
    """Return the test with which the guide begins."""
    (block,) = (block for block in blocks(text_of("docs/testing.md"), "python") if "crash_at" in block)
    assert file_name(block) == "test_crash.py"
    return block


@pytest.mark.usefixtures("installed_database")
def test_the_crash_test_of_the_guide_is_short_and_passes_on_a_private_database(tmp_path: Path) -> None:
    """The default: the server of this machine, started for the run and gone after it."""
    body = crash_test().split("def test_")[1].rstrip()
    assert body.count("\n") + 1 <= 15
    (tmp_path / "test_crash.py").write_text(crash_test())
    ran = run_pytest(tmp_path, f"--basetemp={tmp_path / 'temporary'}")
    assert (ran.returncode, "1 passed" in ran.stdout) == (0, True), ran.stdout + ran.stderr


@pytest.mark.servers
def test_the_crash_test_turns_red_without_its_parts(tmp_path: Path, database_url: str) -> None:
    """No time passes, or nobody crashes: then it must not be green."""
    text = crash_test()
    for number, part in enumerate(("memory_broker.advance(600)", 'crash_at("after_commit")')):
        assert part in text
        (tmp_path / f"test_without_{number}.py").write_text(text.replace(part, "pass"))
    ran = run_pytest(tmp_path, database=database_url)
    assert "2 failed" in ran.stdout, ran.stdout + ran.stderr


@pytest.mark.servers
def test_a_failed_test_tells_the_story_and_a_fault_that_never_happened_fails_it(
    tmp_path: Path, database_url: str
) -> None:
    (tmp_path / "test_it.py").write_text(FAILS)
    ran = run_pytest(tmp_path, f"--rmq-database={database_url}", database="mysql://nobody@127.0.0.1:1/none")
    assert "2 failed, 2 passed, 1 error" in ran.stdout, ran.stdout + ran.stderr
    assert "faults that were asked for and never happened: deliver twice (1 times)" in ran.stdout
    story = ran.stdout.split("rmq_txn: what happened to each message")[1]
    assert re.search(r"transaction [0-9a-f]{32}\n +0\.0 s  transfer k-1 #0: half message", story)
    assert "local transaction: COMMIT" in story


def test_a_database_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    """By the ini file here; the words are those that help."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nrmq_database = postgres\n")
    (tmp_path / "test_it.py").write_text("def test_it(rmq_database): ...")
    ran = run_pytest(tmp_path)
    assert "is 'postgres', allowed is a mysql:// URL, 'installed'" in ran.stdout


def test_the_plugin_imports_nothing_of_ours_in_a_run_that_uses_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_it(pytestconfig):\n"
        "    assert pytestconfig.pluginmanager.hasplugin('rmq_txn')\n"
        "    assert not {'rmq_txn', 'pymysql', 'structlog', 'testcontainers'} & set(sys.modules)\n"
    )
    ran = run_pytest(tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
