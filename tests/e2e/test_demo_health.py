"""`/health` of both demo services tells the truth, soon, whatever happens to broker and database."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pymysql
import pytest

from devstack.server import Server
from devstack.services import Answer, DemoService
from rmq_txn.database.pool import parse_url
from rmq_txn.identity import PROPERTY_POSITION, PROPERTY_TXN_ID, new_txn_id
from rmq_txn.remoting.client import RemotingClient
from tests.e2e.conftest import DELIVERY_SECONDS, Demo
from tests.kit.wait import until

pytestmark = pytest.mark.servers

# It promises 2 s; the rest is for a busy machine, and below what a probe of docker-compose.yml waits.
ANSWER_SECONDS = 4.0
SILENT = "no answer within 2 s"
# A client reports itself to a broker that came back within 30 s, and red until then is the truth.
RECOVERY_SECONDS = 2 * DELIVERY_SECONDS
HALF_MESSAGES = "RMQ_SYS_TRANS_HALF_TOPIC"


def asked_often(service: DemoService) -> list[Answer]:
    """Ask twenty times at once, as many probes would; each answer must come in time."""

    def ask(_number: int) -> Answer:
        began = time.monotonic()
        answer = service.get("/health")
        assert time.monotonic() - began < ANSWER_SECONDS
        return answer

    with ThreadPoolExecutor(20) as pool:
        return list(pool.map(ask, range(20)))


def parts(answer: Answer) -> tuple[int, str, str, str]:
    """Return the status and what is said of broker, registration and database."""
    return answer.status, *(answer.body[name] for name in ("broker", "registered", "database"))


@contextmanager
def broken(take: Callable[[], None], give_back: Callable[[], None]) -> Iterator[None]:
    """Break a server for the length of the block."""
    take()
    try:
        yield
    finally:
        give_back()


def recovers(demo: Demo, transfer_id: str) -> None:
    """Wait until both are green; then a transfer works at once and earns its points."""
    demo.wait_green(RECOVERY_SECONDS)
    assert demo.transfer(transfer_id).status == 201
    demo.wait_for_points(transfer_id)


def is_said(demo: Demo, *expected: tuple[int, str, str, str]) -> None:
    """Wait until both services say one of these; a question asked just before may still be answered well."""
    for service in demo.services:
        until(lambda s=service: parts(s.get("/health")) in expected, f"one of {expected}", 10)
        assert {parts(answer) for answer in asked_often(service)} <= {*expected}
        assert service.get("/health").body["status"] == "unavailable"


AWAY = pytest.mark.parametrize(
    ("take", "give_back", "said"),
    [
        (Server.kill, Server.start, {"does not answer"}),
        # Who joins a question that was asked a while ago may hear that it failed.
        (Server.pause, Server.resume, {SILENT, "does not answer"}),
    ],
    ids=["killed", "frozen"],
)
TakeAway = Callable[[Server], None]


@AWAY
def test_a_broker_that_is_away_is_told(
    demo: Demo, unique: str, take: TakeAway, give_back: TakeAway, said: set[str]
) -> None:
    """At once, by both services, in time, and until a transfer works again."""
    broker = demo.stack.broker
    with broken(lambda: take(broker), lambda: give_back(broker)):
        is_said(demo, *[(503, text, "unknown", "ok") for text in said])
    recovers(demo, unique)


@AWAY
def test_a_database_that_is_away_is_told(
    demo: Demo, unique: str, take: TakeAway, give_back: TakeAway, said: set[str]
) -> None:
    """At once, by both services, in time, and until a transfer works again."""
    database = demo.stack.database
    with broken(lambda: take(database), lambda: give_back(database)):
        is_said(demo, *[(503, "ok", "ok", text) for text in said])
    recovers(demo, unique)


def test_an_old_outbox_row_is_a_problem_and_no_outage(demo: Demo, unique: str) -> None:
    """As after an hour without any producer: `degraded` with 200 until the relay has done its work."""
    row = {
        "txn_id": (txn_id := new_txn_id()),
        "position": 0,
        "message_id": "OLD",
        "topic": f"{unique}-missing",  # the relay can't publish it, so it stays
        "properties": json.dumps({PROPERTY_TXN_ID: txn_id, PROPERTY_POSITION: "0"}),
        "body": "{}",
    }
    with closing(
        pymysql.connect(**parse_url(demo.stack.database_url("account")), autocommit=True)
    ) as database:
        with database.cursor() as cursor:
            places = ", ".join(["%s"] * len(row))
            cursor.execute(
                f"INSERT INTO rmq_txn_outbox ({', '.join(row)}, created_at) "
                f"VALUES ({places}, NOW() - INTERVAL 1 HOUR)",
                list(row.values()),
            )
        try:
            health = until(lambda: _with_problem(demo.account, "oldest outbox row"), "the problem", 60)
            assert (health.status, health.body["status"]) == (200, "degraded")
            assert demo.transfer(unique).status == 201
        finally:
            with database.cursor() as cursor:
                assert cursor.execute("DELETE FROM rmq_txn_outbox WHERE message_id = 'OLD'") == 1
    # Not "ok": a process that an earlier test killed may be a problem of its own for a while.
    until(lambda: not _with_problem(demo.account, "oldest outbox row"), "this problem is gone", 300)


def _with_problem(service: DemoService, words: str) -> Answer | None:
    answer = service.get("/health")
    return answer if words in str(answer.body["problems"]) else None


def test_health_costs_no_message(demo: Demo) -> None:
    """
    However often it is asked: the broker has not one half message more.

    Each question about one that an earlier test left open stores it anew, so a few tries may be disturbed.
    """
    broker = RemotingClient(demo.stack.broker_address)

    def cost() -> int:
        before = broker.max_offset(HALF_MESSAGES, 0)
        assert before > 0  # those of its start, at least
        for service in demo.services:
            assert {answer.status for answer in asked_often(service)} == {200}
        return broker.max_offset(HALF_MESSAGES, 0) - before

    until(lambda: cost() == 0, "questions that cost nothing", 60)


def test_a_service_that_serves_is_registered_already(demo: Demo) -> None:
    """The first answer that its port gives after a start is green."""
    for service in demo.services:
        service.stop()
        service.start(wait=False)
        first = until(lambda s=service: _answer(s), "an answer", 120)
        assert first is not None
        assert parts(first) == (200, "ok", "ok", "ok")
        service.wait_ready()


def _answer(service: DemoService) -> Answer | None:
    try:
        return service.get("/health")
    except OSError:
        return None
