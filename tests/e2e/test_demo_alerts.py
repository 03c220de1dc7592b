"""
monitoring/alerts.yml on what broken services really say at /metrics: each alert fires for its cause only.

Prometheus' own promtool evaluates the rules, so half an hour of it costs a moment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql
import pytest
import yaml

from devstack.errors import StackError
from devstack.services import TOPIC, DemoService, start_together, stop_together
from rmq_txn import RocketMQ
from rmq_txn.database.pool import parse_url
from rmq_txn.identity import PROPERTY_POSITION, PROPERTY_TXN_ID, new_txn_id
from rmq_txn.verdict import Verdict
from tests.e2e.conftest import DELIVERY_SECONDS, Demo
from tests.kit import foreign, promtool
from tests.kit.dashboard import panels
from tests.kit.documents import text_of
from tests.kit.promtool import Series
from tests.kit.wait import until

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

SECONDS = 60.0
PROBLEMS = "RmqTxnProblems"
UNKNOWN = 'rmq_txn_cause="{}",rmq_txn_producer_group="account-service",rmq_txn_verdict="unknown"'


@dataclass(frozen=True)
class Watched:
    """Both services, which look at their servers each second, and promtool."""

    demo: Demo
    promtool: Path
    folder: Path

    def scrape(self) -> dict[str, float]:
        return promtool.series(
            {service.name: promtool.scraped(service.url) for service in self.demo.services}
        )

    def sees(self, name: str, wanted: float) -> dict[str, float]:
        """Return the first scrape in which the sum of a metric is at least this; 0: is this."""

        def scrape() -> dict[str, float] | None:
            found = self.scrape()
            number = value(found, name)
            return found if (number >= wanted if wanted else number == 0) else None

        return until(scrape, f"{name} {wanted}", SECONDS) or {}

    def healthy(self) -> dict[str, float]:
        """Return a scrape with which nobody has to look."""

        def scrape() -> dict[str, float] | None:
            found = self.scrape()
            well = value(found, "_registered{") == value(found, "_database{") == 2
            return found if well and not troubled(found) and not value(found, "_lag{") else None

        return until(scrape, "a scrape without problems", SECONDS) or {}

    def fires(self, before: Series, after: Series, *alerts: str, goes_on: bool = False) -> None:
        """Check that exactly these alerts fire, and that health has a problem for each that is no rate."""
        names = {*alerts, *([PROBLEMS] if troubled(after) else [])}
        found = promtool.problems(self.promtool, self.folder, before, after, sorted(names), goes_on=goes_on)
        assert found == ""


def value(scrape: Series, name: str) -> float:
    """Return the sum of the series whose name with labels has these words."""
    return sum(number for told, number in scrape.items() if name in told)


def troubled(scrape: Series) -> float:
    return value(scrape, "_problems{")


@pytest.fixture(scope="module")
def program(request: pytest.FixtureRequest, stack: Any) -> Path:
    """Return promtool."""
    try:
        return promtool.find(stack.settings.cache_folder)
    except StackError as error:
        if request.config.getoption("--require-servers"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def brisk(demo_processes: Demo) -> Iterator[Demo]:
    """Run both services so that they look often, in the place of those that the other tests use."""
    demo = demo_processes
    stop_together(*demo.services)
    usual = demo.services
    quick = [
        DemoService(
            "tests.kit.brisk",
            demo.folder,
            service.port,
            {**service.settings, "BRISK_SERVICE": package},
            f"brisk-{package.split('_')[1]}",
        )
        for service, package in zip(usual, ("demo_account_service", "demo_points_service"), strict=True)
    ]
    demo.account, demo.points = quick
    try:
        start_together(*quick)
        # All messages arrived. What the tests before broke leaves copies all the same, until a minute of
        # calm, and some are older by now than an alert allows.
        with connected(demo, "account") as cursor:
            cursor.execute("DELETE FROM rmq_txn_outbox")
        yield demo
        demo.settle()
    finally:
        stop_together(*quick)
        demo.account, demo.points = usual


@pytest.fixture
def watched(brisk: Demo, program: Path, tmp_path: Path) -> Watched:
    return Watched(brisk, program, tmp_path)


@contextmanager
def connected(demo: Demo, name: str) -> Iterator[Any]:
    """Run statements in the database of a service, behind its back, in one transaction."""
    with (
        closing(pymysql.connect(**parse_url(demo.stack.database_url(name)))) as connection,
        connection.cursor() as cursor,
    ):
        yield cursor
        connection.commit()


def test_nothing_fires_while_transfers_earn_points(watched: Watched, unique: str) -> None:
    before = watched.healthy()
    assert watched.demo.transfer(unique).status == 201
    watched.demo.wait_for_points(unique)
    watched.fires(before, watched.healthy(), goes_on=True)


def test_a_process_that_is_dead(watched: Watched) -> None:
    """What it said before is known no more, so that it alone would look well."""
    before = watched.healthy()
    watched.demo.points.kill()
    try:
        watched.fires(before, watched.scrape(), "RmqTxnProcessSilent")
    finally:
        watched.demo.points.start()
    watched.healthy()


@pytest.mark.long
def test_a_process_that_is_frozen(watched: Watched) -> None:
    """Its port is open and it says nothing."""
    before = watched.healthy()
    watched.demo.account.pause()
    try:
        watched.fires(before, watched.scrape(), "RmqTxnProcessSilent")
    finally:
        watched.demo.account.resume()
    watched.healthy()


def test_a_parked_message(watched: Watched) -> None:
    before = watched.healthy()
    foreign.send(watched.demo.stack.broker_address, TOPIC, 0, b"no transfer")
    try:
        watched.fires(before, watched.sees("rmq_txn_consumer_parked{", 1), "RmqTxnMessagesParked")
    finally:
        with connected(watched.demo, "points") as cursor:
            cursor.execute("DELETE FROM rmq_txn_parked")
    watched.sees("rmq_txn_consumer_parked{", 0)


def test_an_old_outbox_row(watched: Watched, unique: str) -> None:
    """The relay can't publish it: its topic does not exist."""
    before = watched.healthy()
    told = json.dumps({PROPERTY_TXN_ID: (txn_id := new_txn_id()), PROPERTY_POSITION: "0"})
    with connected(watched.demo, "account") as cursor:
        cursor.execute(
            "INSERT INTO rmq_txn_outbox (txn_id, position, message_id, topic, properties, body, created_at) "
            "VALUES (%s, 0, 'OLD', %s, %s, '{}', NOW() - INTERVAL 1 HOUR)",
            (txn_id, f"{unique}-missing", told),
        )
    try:
        watched.fires(before, watched.sees("rmq_txn_outbox_oldest_seconds{", 3600), "RmqTxnOutboxTooOld")
    finally:
        with connected(watched.demo, "account") as cursor:
            cursor.execute("DELETE FROM rmq_txn_outbox WHERE message_id = 'OLD'")


def test_a_stranger_in_the_producer_group(watched: Watched) -> None:
    """A client of the broker that has no row in our tables."""
    before = watched.healthy()
    client = RocketMQ(watched.demo.stack.name_server).producer("account-service", lambda _: Verdict.UNKNOWN)
    client.start([TOPIC])
    try:
        watched.fires(before, watched.sees("rmq_txn_producer_suspects{", 1), "RmqTxnSiblingSuspect")
    finally:
        client.close(5.0)
    watched.sees("rmq_txn_producer_suspects{", 0)


@pytest.mark.long
def test_a_frozen_broker(watched: Watched) -> None:
    before = watched.healthy()
    broker = watched.demo.stack.broker
    broker.pause()
    try:
        watched.sees("rmq_txn_producer_registered{", 0)
        after = watched.sees("rmq_txn_consumer_registered{", 0)
        watched.fires(before, after, "RmqTxnConsumerNotRegistered", "RmqTxnProducerNotRegistered")
    finally:
        broker.resume()
    watched.healthy()


@pytest.mark.long
def test_a_frozen_database(watched: Watched) -> None:
    before = watched.healthy()
    database = watched.demo.stack.database
    database.pause()
    try:
        watched.sees("rmq_txn_producer_database{", 0)
        watched.fires(before, watched.sees("rmq_txn_consumer_database{", 0), "RmqTxnDatabaseRefuses")
        for service in watched.demo.services:  # what docs/operating.md calls alive
            assert service.get("/openapi.json").status == 200
    finally:
        database.resume()
    watched.healthy()


def test_a_lost_verdict_that_nobody_asks_about_and_then_one_that_nobody_can_answer(
    watched: Watched, unique: str
) -> None:
    """The answer to the question takes its time; then somebody locks the row that it needs."""
    before, demo = watched.healthy(), watched.demo
    fault = {"fault": "slow_check_back", "transfer_id": unique}
    assert demo.account.post("/faults", fault).status == 200
    answer = demo.transfer(unique)
    assert answer.status == 201
    unasked = watched.scrape()
    with connected(demo, "account") as cursor:
        cursor.execute("SELECT 1 FROM rmq_txn_log WHERE txn_id = %s FOR UPDATE", (answer.body["txn_id"],))
        watched.fires(before, unasked, "RmqTxnCheckBacksUnanswered")
        name = UNKNOWN.format("check-back")
        unanswered = watched.sees(name, value(unasked, name) + 1)
        watched.fires(unasked, unanswered, "RmqTxnInDoubtTooLong", goes_on=True)
    demo.wait_for_points(unique)


def test_messages_that_come_faster_than_they_are_handled(watched: Watched, unique: str) -> None:
    """Somebody holds the row of points that each handler writes."""
    watched.healthy()
    demo, name = watched.demo, "rmq_txn_consumer_lag{"
    with connected(demo, "points") as cursor:
        cursor.execute("SELECT 1 FROM points_balance WHERE user_id = 'alice' FOR UPDATE")
        scrapes: list[dict[str, float]] = [{}]
        for round_ in range(2):
            for number in range(4):
                assert demo.transfer(f"{unique}-{round_}{number}").status == 201
            # More than before, and not than we sent: a message of the test before may wait as well.
            scrapes.append(watched.sees(name, value(scrapes[-1], name) + 1))
        watched.fires(*scrapes[1:], "RmqTxnLagGrows", goes_on=True)
    demo.wait_for_points(f"{unique}-13")


def test_every_alert_has_a_test_and_a_row_in_its_page() -> None:
    rules = yaml.safe_load(promtool.RULES.read_text(encoding="utf-8"))["groups"][0]["rules"]
    names = {rule["alert"] for rule in rules}
    assert names == set(re.findall(r"RmqTxn\w+", Path(__file__).read_text(encoding="utf-8")))
    assert names == set(re.findall(r"^\| `(RmqTxn\w+)` \|", text_of("monitoring/README.md"), re.MULTILINE))


def test_the_dashboard_shows_what_the_services_say(watched: Watched) -> None:
    """Each metric it names is in a scrape, and Prometheus reads each expression."""
    targets = [target for panel in panels() for target in panel.targets]
    expressions = [target.expr for target in targets]
    assert len(expressions) > 10
    assert watched.demo.transfer(f"dashboard-{new_txn_id()}"[:40]).status == 201
    until(
        lambda: not asked_for(expressions) - scraped_names(watched),
        "each metric of the dashboard in a scrape",
        DELIVERY_SECONDS,
    )
    rules = [
        {"record": f"panel_{number}", "expr": target.asked(300)} for number, target in enumerate(targets)
    ]
    path = watched.folder / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    promtool.check_rules(watched.promtool, path)


def asked_for(expressions: list[str]) -> set[str]:
    """Return the metrics that expressions name."""
    return {name for text in expressions for name in re.findall(r"\b(?:rmq_txn|messaging)_\w+(?=\{)", text)}


def scraped_names(watched: Watched) -> set[str]:
    return promtool.metric_names([service.metrics() for service in watched.demo.services])
