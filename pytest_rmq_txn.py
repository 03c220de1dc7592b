"""
The pytest plugin of rmq_txn: a memory broker, a database, and the story of a transaction when a test fails.

pytest imports it in every run of an environment that has rmq_txn, also of projects that use none of it. So
it stands outside the package and imports pytest only; the rest comes with the first fixture. See
docs/testing.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rmq_txn import Database
    from rmq_txn.testing import MemoryBroker

DATABASE_VARIABLE = "RMQ_TXN_TEST_DATABASE"
_CHOICES = "a mysql:// URL, 'installed' (the server of this machine) or 'container' (MySQL by testcontainers)"
_FAILED: pytest.StashKey[bool] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run say which database its tests use."""
    text = f"the database of rmq_txn's fixtures: {_CHOICES}"
    parser.getgroup("rmq_txn").addoption(
        "--rmq-database", metavar="DATABASE", help=f"{text}; before {DATABASE_VARIABLE} and the ini file"
    )
    parser.addini("rmq_database", f"{text}; default: installed", default="installed")


@pytest.fixture(scope="session")
def rmq_database_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """
    Return the URL of a database for tests, started for this run if it must be.

    `--rmq-database`, the environment's RMQ_TXN_TEST_DATABASE, or `rmq_database` of the ini file choose it.
    """
    chosen = (
        pytestconfig.getoption("rmq_database")
        or os.environ.get(DATABASE_VARIABLE)
        or pytestconfig.getini("rmq_database")
    )
    if chosen.startswith("mysql://"):
        yield chosen
    elif chosen == "installed":
        from rmq_txn.testing import PrivateDatabase

        with PrivateDatabase() as server:
            yield server.url
    elif chosen == "container":
        from rmq_txn.testing.engine import mysql_container

        with mysql_container() as url:
            yield url
    else:
        raise pytest.UsageError(f"the database of rmq_txn's fixtures is {chosen!r}, allowed is {_CHOICES}")


@pytest.fixture(scope="session")
def rmq_database(rmq_database_url: str) -> Iterator[Database]:
    """Return an open `Database` with the tables of rmq_txn; the tests of a run share it."""
    from rmq_txn import Database, schema

    database = Database.mysql(rmq_database_url)
    try:
        schema.apply(database)
        yield database
    finally:
        database.close()


@pytest.fixture
def memory_broker(request: pytest.FixtureRequest) -> Iterator[MemoryBroker]:
    """
    Return a `MemoryBroker` of this test's own.

    When the test fails, its report tells the story of each transaction. A fault that the test has asked for
    and that never happened fails it: it has tested something else.
    """
    from rmq_txn.testing import MemoryBroker

    with MemoryBroker() as broker:
        yield broker
        left = broker.armed_faults()
        if left and not request.node.stash.get(_FAILED, False):
            told = ", ".join(f"{fault} ({count} times)" for fault, count in left.items())
            pytest.fail(f"faults that were asked for and never happened: {told}\n{broker.story()}".rstrip())


@pytest.fixture
def crash_at(memory_broker: MemoryBroker) -> Callable[..., None]:
    """Return `memory_broker.crash_at`: crash the next time that a step is reached."""
    return memory_broker.crash_at


@pytest.fixture
def deliver_twice(memory_broker: MemoryBroker) -> Callable[..., None]:
    """Return `memory_broker.deliver_twice`: deliver the next acknowledged message once more."""
    return memory_broker.deliver_twice


@pytest.fixture
def wait_until_consumed(memory_broker: MemoryBroker) -> Callable[..., None]:
    """Return `memory_broker.wait_until_consumed`: wait until the groups acknowledged every message."""
    return memory_broker.wait_until_consumed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the story of the memory broker to the report of a test that failed."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
        broker: MemoryBroker | None = getattr(item, "funcargs", {}).get("memory_broker")
        story = broker.story() if broker is not None else ""
        if story:
            report.sections.append(("rmq_txn: what happened to each message", story))
    return report
