"""Fixtures that every tier shares: real servers, a database and a topic of one's own."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devstack import LocalStack, StackError, StackSettings
from rmq_txn import Database, RocketMQ, schema
from rmq_txn.errors import NativeLibraryError
from rmq_txn.transport import library
from tests.kit.desk import Desk

CHECKOUT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-servers",
        action="store_true",
        default=bool(os.environ.get("CI")),
        help="fail instead of skip when the real servers can't be started (default on CI)",
    )
    parser.addoption(
        "--screenshots",
        type=Path,
        help="where tests of the demo page keep a picture of each state, for people to look at",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cheap tests first: unit, model, contract, integration, e2e; the rest keeps its (random) order."""
    tiers = ["unit", "model", "contract", "integration", "e2e"]

    def tier(item: pytest.Item) -> int:
        folder = Path(item.path).relative_to(CHECKOUT / "tests").parts[0]
        return tiers.index(folder) if folder in tiers else 0

    items.sort(key=tier)
    if os.environ.get("CI"):  # docs/decisions/0022-a-second-try-is-seen.md
        for item in items:
            if tier(item):
                item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[LocalStack]:
    """Start real RocketMQ and a real database for this test run, in a folder of its own."""
    folder = CHECKOUT / ".devstack" / f"tests-{os.getpid()}"
    running = LocalStack(StackSettings.for_tests(folder))
    try:
        library.require()
        running.start()
    except (StackError, NativeLibraryError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if request.config.getoption("--require-servers"):
            raise
        pytest.skip(f"the real servers can't be started here: {error}")
    try:
        yield running
    finally:
        running.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def unique() -> str:
    """Return a short name no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def broker(stack: LocalStack) -> RocketMQ:
    """Return the real broker as a transport."""
    return RocketMQ(stack.name_server)


@pytest.fixture
def topic(stack: LocalStack, unique: str) -> str:
    """Return a topic of this test's own."""
    stack.create_topic(unique)
    return unique


@pytest.fixture
def database_url(stack: LocalStack, unique: str) -> str:
    """Return the URL of an empty database of this test's own, our tables applied."""
    return prepared_url(stack, unique)


def prepared_url(stack: LocalStack, name: str) -> str:
    """Make a database with our tables and a business table `effect(id, note)`; return its URL."""
    url = stack.database_url(name)
    database = Database.mysql(url)
    try:
        schema.apply(database)
        schema.run_script(
            database,
            "CREATE TABLE IF NOT EXISTS effect (id VARCHAR(64) NOT NULL, note VARCHAR(64),"
            " n BIGINT AUTO_INCREMENT PRIMARY KEY, KEY (id)) ENGINE=InnoDB",
        )
    finally:
        database.close()
    return url


@pytest.fixture
def open_database() -> Iterator[Callable[..., Database]]:
    """Return a function that opens a database by URL; all are closed at the end."""
    opened: list[Database] = []

    def open_(url: str, **settings: object) -> Database:
        opened.append(Database.mysql(url, **settings))  # type: ignore[arg-type]
        return opened[-1]

    yield open_
    for database in opened:
        database.close()


@pytest.fixture
def database(database_url: str, open_database: Callable[..., Database]) -> Database:
    """Return an open database of this test's own, with our tables and `effect(id, note)`."""
    return open_database(database_url)


@pytest.fixture
def desk(stack: LocalStack, database_url: str, database: Database, topic: str) -> Iterator[Desk]:
    """Return a desk; everything it started is closed, last first."""
    desk = Desk(stack, database_url, database, topic)
    with desk.resources:
        yield desk
