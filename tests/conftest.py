"""Fixtures that every tier shares: real servers, a database and a topic of one's own, a browser."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from devstack import ContainerStack, LocalStack, Stack, StackError, StackSettings
from devstack.containers import MYSQL_IMAGE
from devstack.settings import DATABASE_VARIABLE
from devstack.software import DATABASES, find
from rmq_txn import Database, RocketMQ, schema
from rmq_txn.errors import NativeLibraryError
from rmq_txn.library import installer
from rmq_txn.testing import ServerError, server_software
from rmq_txn.testing.server_software import DatabaseSoftware
from tests.kit.bench import Bench
from tests.kit.desk import Desk

CHECKOUT = Path(__file__).resolve().parent.parent
NEEDS_PROCESSES = (
    "needs the servers as processes of this machine (their ports, signals or files): run it without --stack"
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NEEDS_CLUSTER = "starts a cluster with failover, and takes minutes: run it with ./dev test --cluster"
TOO_LONG = "takes long, and what it shows is shown by others in part: run it with --long"
# Begun first in their tier, so that no worker is left with one of them alone in the end.
LONG_FILES = (
    "test_demo_page.py",
    "test_demo_services.py",
    "test_chaos.py",
    "test_demo_health.py",
    "test_tutorial.py",
)
NEEDS_ENGINE = "starts containers: run it with --stack containers where an engine is"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stack",
        choices=["local", "containers"],
        default="local",
        help="the real servers: processes of this machine (default), or containers of your engine",
    )
    parser.addoption(
        "--database",
        choices=DATABASES,
        help="the database server of local stacks: MariaDB, else MySQL of this machine (installed, the "
        "default), or one that is fetched from Debian's unstable suite",
    )
    parser.addoption(
        "--cluster",
        action="store_true",
        help="run tests/clusters as well: brokers that fail over, some minutes each",
    )
    parser.addoption("--long", action="store_true", help="run the tests marked `long`, too; CI does not")
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


def pytest_configure(config: pytest.Config) -> None:
    """
    Prepare what child processes inherit.

    That is which database every stack of this run has, and that Ctrl-C ends them: a run that a shell
    began with `&` ignores it.
    """
    if config.getoption("--database"):
        os.environ[DATABASE_VARIABLE] = config.getoption("--database")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config: pytest.Config) -> str:
    """Name the database server and its version, which is fetched here if it must be."""
    if config.getoption("--stack") == "containers":
        return f"database: {MYSQL_IMAGE} in a container"
    settings = StackSettings()
    try:
        return f"database: {find(settings.database, settings.cache_folder).version()}"
    except StackError as error:
        return f"database: {settings.database}, not to be had: {error}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Cheap tests first: unit, model, contract, integration, e2e, clusters; else the order stays random."""
    in_containers = config.getoption("--stack") == "containers"
    tiers = ["unit", "model", "contract", "integration", "e2e", "clusters"]

    def tier(item: pytest.Item) -> int:
        folder = Path(item.path).relative_to(CHECKOUT / "tests").parts[0]
        return tiers.index(folder) if folder in tiers else 0

    items.sort(key=lambda item: (tier(item), item.path.name not in LONG_FILES))
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason=TOO_LONG))
        folder = Path(item.path).relative_to(CHECKOUT / "tests").parts[0]
        local = folder == "e2e" or item.get_closest_marker("local_stack")
        if in_containers and local:
            item.add_marker(pytest.mark.skip(reason=NEEDS_PROCESSES))
        elif folder == "containers" and not in_containers:
            item.add_marker(pytest.mark.skip(reason=NEEDS_ENGINE))
        elif folder == "clusters" and not config.getoption("--cluster"):
            item.add_marker(pytest.mark.skip(reason=NEEDS_CLUSTER))
    if os.environ.get("CI"):  # docs/decisions/0022-a-second-try-is-seen.md
        for item in items:
            # All of them: a warning of the garbage collector hits whichever test runs then.
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable(report: object) -> Generator[None, Any, Any]:
    """Let captured logs hold what UTF-8 can't, such as the text of a hostile error: a worker would crash."""
    data = yield
    if data is not None and "sections" in data:
        data["sections"] = [
            (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in data["sections"]
        ]
    return data


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[LocalStack | ContainerStack]:
    """
    Start real RocketMQ and a real database for this test run, in a folder or containers of its own.

    A test that uses more than the Stack protocol is marked `local_stack`.
    """
    folder = CHECKOUT / ".devstack" / f"tests-{os.getpid()}"
    kind = ContainerStack if request.config.getoption("--stack") == "containers" else LocalStack
    running = kind(StackSettings.for_tests(folder))
    reason = None
    try:
        installer.require()
        running.start()
    except (StackError, NativeLibraryError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if request.config.getoption("--require-servers"):
            raise
        reason = f"the real servers can't be started here: {error}"
    if reason is not None:
        pytest.skip(reason)
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
def broker(stack: Stack) -> RocketMQ:
    """Return the real broker as a transport."""
    return RocketMQ(stack.name_server)


@pytest.fixture
def topic(stack: Stack, unique: str) -> str:
    """Return a topic of this test's own."""
    stack.create_topic(unique)
    return unique


@pytest.fixture
def database_url(stack: Stack, unique: str) -> str:
    """Return the URL of an empty database of this test's own, our tables applied."""
    return prepared_url(stack, unique)


def prepared_url(stack: Stack, name: str) -> str:
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
def desk(stack: Stack, database_url: str, database: Database, topic: str) -> Iterator[Desk]:
    """Return a desk; everything it started is closed, last first."""
    desk = Desk(stack, database_url, database, topic)
    with desk.resources:
        yield desk


@pytest.fixture
def bench(database_url: str, database: Database, unique: str) -> Iterator[Bench]:
    """Return a bench; the consumers it started are closed, last first."""
    bench = Bench(database_url, database, unique)
    with bench.resources:
        yield bench


@pytest.fixture
def installed_database(request: pytest.FixtureRequest) -> DatabaseSoftware:
    """Return the database server of this machine, for a test that starts one by itself."""
    try:
        return server_software.installed()
    except ServerError as error:
        if request.config.getoption("--require-servers"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def chromium(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Start a browser, for one module only: its driver keeps an event loop on this thread."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        missing = f"none of {', '.join(BROWSERS)} is installed (apt-get install chromium)"
        if request.config.getoption("--require-servers"):
            pytest.fail(missing)
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright  # not needed by a run without these tests

    with sync_playwright() as playwright:
        # Its sandbox does not work for root; the pages are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
