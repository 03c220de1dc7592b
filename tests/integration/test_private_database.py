"""The database server that a run of tests starts for itself: it serves, and nothing of it stays behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmq_txn import Database, schema
from rmq_txn.errors import LifecycleError
from rmq_txn.testing import PrivateDatabase, ServerError
from rmq_txn.testing.server_software import DatabaseSoftware
from tests.kit.wait import until

STARTS_AND_STAYS = """
import signal, sys
from rmq_txn.testing import PrivateDatabase
server = PrivateDatabase().start()
print(server.url, server._folder, flush=True)
signal.pause()
"""


@pytest.fixture
def child(installed_database: DatabaseSoftware) -> Iterator[subprocess.Popen[str]]:
    """Return a process that started a server."""
    started = subprocess.Popen(
        [sys.executable, "-c", STARTS_AND_STAYS], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with started:
        yield started
        started.kill()


def is_listening(url: str) -> bool:
    found = re.search(r":(\d+)/", url)
    assert found
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(found[1]))) == 0


@pytest.mark.usefixtures("installed_database")
def test_it_serves_our_tables_and_leaves_nothing() -> None:
    server = PrivateDatabase()
    with pytest.raises(LifecycleError, match="does not run"):
        _ = server.url
    with server:
        url, folder = server.url, server._folder
        database = Database.mysql(url)
        schema.apply(database)
        assert schema.check(database).database_id
        database.close()
        with pytest.raises(LifecycleError, match="started already"):
            server.start()
    assert folder is not None
    assert not folder.exists()
    assert not is_listening(url)
    server.stop()


def test_it_ends_with_its_process_even_by_kill_9(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    url, folder = child.stdout.readline().split()
    assert is_listening(url)
    os.kill(child.pid, signal.SIGKILL)
    until(lambda: not is_listening(url) and not Path(folder).exists(), "the end of the server and its data")


def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = DatabaseSoftware(
        brand="MariaDB",
        command=("sh", "-c", "echo 'no such plugin' >&2; exit 3", "sh"),
        initialise=("true",),
        data_folder="data",
    )
    monkeypatch.setattr("rmq_txn.testing.private_database.installed", lambda: broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ServerError, match=r"ended before it served\nno such plugin"):
        PrivateDatabase().start()
    assert list(tmp_path.iterdir()) == []
