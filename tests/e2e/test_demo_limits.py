"""What one client may cost a demo service, and how a service ends while clients wait for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pymysql
import pytest

from devstack.services import HOST, DemoService
from rmq_txn.database.pool import parse_url
from tests.e2e.conftest import DELIVERY_SECONDS, Demo
from tests.kit.wait import until

pytestmark = pytest.mark.servers

MAX_BODY_BYTES = 16_384
MAX_REQUESTS = 100
RECEIVE_SECONDS = 10.0
STOP_SECONDS = 10.0
HEAD = b"POST /transfers HTTP/1.1\r\nHost: demo\r\nContent-Type: application/json\r\n"


def connect(service: DemoService) -> socket.socket:
    """Open a connection that waits for nothing longer than a test may take."""
    return socket.create_connection((HOST, int(service.url.rpartition(":")[2])), timeout=30)


def rest(connection: socket.socket) -> bytes:
    """Return what the service still sends until it closes the connection."""
    received = b""
    try:
        while chunk := connection.recv(65_536):
            received += chunk
    except ConnectionResetError:
        pass  # it closed a connection on which we had sent more than it read
    return received


def error_code(answer: bytes) -> tuple[int, str]:
    """Return the status and the code of a raw error answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_a_body_as_large_as_allowed_is_read_and_a_byte_more_is_not(demo: Demo, unique: str) -> None:
    """201 and 413; nothing else differs."""
    body = json.dumps({"transfer_id": unique, "from": "alice", "to": "bob", "amount": 100}).encode()
    headers = {"Content-Type": "application/json"}
    url = f"{demo.account.url}/transfers"
    too_large = httpx.post(url, content=body.ljust(MAX_BODY_BYTES + 1), headers=headers)
    assert (too_large.status_code, too_large.json()["error"]["code"]) == (413, "body_too_large")
    assert unique not in demo.ledger.read().transfers
    assert httpx.post(url, content=body.ljust(MAX_BODY_BYTES), headers=headers).status_code == 201


def test_a_body_that_is_too_large_is_refused_before_it_is_here(demo: Demo) -> None:
    """By its declared length, before a byte of it; without one, while it still arrives."""
    for service in demo.services:
        with connect(service) as declared:
            declared.sendall(HEAD + b"Content-Length: 10000000000\r\n\r\n")
            assert error_code(rest(declared)) == (413, "body_too_large")
        with connect(service) as chunked:
            chunked.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            chunk = b"%x\r\n%s\r\n" % (1024, b" " * 1024)
            for _ in range(MAX_BODY_BYTES // 1024 + 1):  # and no end
                chunked.sendall(chunk)
            assert error_code(rest(chunked)) == (413, "body_too_large")


def test_headers_that_are_too_long_are_refused(demo: Demo) -> None:
    """By the HTTP server itself, in plain text."""
    for service in demo.services:
        with connect(service) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: demo\r\nX-Long: " + b"x" * 20_000)
            assert rest(connection).startswith(b"HTTP/1.1 400 ")


def test_slow_clients_lose_their_connection_and_nobody_else_notices(demo: Demo) -> None:
    """Silent from the start, in the middle of the headers, in the middle of the body; all at once."""
    demo.wait_green()
    with ExitStack() as opened:
        began = time.monotonic()
        waiting = []
        for service in demo.services:
            for sent in (b"", HEAD, HEAD + b"Content-Length: 100\r\n\r\n{"):
                connection = opened.enter_context(connect(service))
                connection.sendall(sent)
                waiting.append(connection)
            assert service.get("/health").status == 200
        answers = [rest(connection) for connection in waiting]
        assert time.monotonic() - began < RECEIVE_SECONDS + 5
        assert answers[0:2] == answers[3:5] == [b"", b""]
        assert error_code(answers[2]) == error_code(answers[5]) == (408, "too_slow")


def test_too_many_requests_at_once_are_refused_and_health_still_answers(demo: Demo, unique: str) -> None:
    """503 with Retry-After; as soon as one of them ends there is room again."""
    for service, path in ((demo.account, "/accounts"), (demo.points, "/points")):
        with ExitStack() as opened:
            waiting = [opened.enter_context(connect(service)) for _ in range(MAX_REQUESTS)]
            for connection in waiting:
                connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
            until(lambda s=service, p=path: s.get(p).status == 503, "the limit", RECEIVE_SECONDS / 2)
            answer = httpx.get(f"{service.url}{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
            assert answer.headers["Retry-After"] == "1"
            assert service.get("/health").status == 200
            assert "demo_health" in service.metrics()
            waiting[0].close()
            until(lambda s=service, p=path: s.get(p).status == 200, "room again", RECEIVE_SECONDS / 2)
    assert demo.transfer(unique).status == 201


def test_one_line_tells_of_each_request(demo: Demo, unique: str) -> None:
    """What, status, duration, whose ids; no body and no query; nothing for a health that stays as it is."""
    txn_id = demo.transfer(unique).body["txn_id"]
    demo.transfer(unique, 10**12)
    demo.account.get(f"/accounts/{unique}%0Aforged?token=secret")

    def lines() -> list[tuple[object, ...]]:
        found = [line for line in demo.account.log_lines("request") if unique in json.dumps(line)]
        assert all(0 <= line["duration_seconds"] < 30 for line in found)
        names = ("method", "path", "status", "transfer_id", "txn_id")
        return [tuple(line.get(name) for name in names) for line in found]

    until(lambda: len(lines()) >= 3, "the lines")
    assert lines() == [
        ("POST", "/transfers", 201, unique, txn_id),
        ("POST", "/transfers", 409, unique, None),
        ("GET", f"/accounts/{unique}%0Aforged", 422, None, None),
    ]
    assert demo.account.get("/health").status == 200
    healths = len(_health_lines(demo.account))
    assert demo.account.get("/health").status == 200
    assert len(_health_lines(demo.account)) == healths
    assert "secret" not in Path(demo.account.log_path).read_text(encoding="utf-8")


def _health_lines(service: DemoService) -> list[object]:
    return [line for line in service.log_lines("request") if line["path"] == "/health"]


def _ends_well_within(service: DemoService, seconds: float, began: float) -> None:
    until(lambda: service.exit_code is not None, "the end of the service", 2 * STOP_SECONDS)
    assert time.monotonic() - began < seconds
    assert service.exit_code == 0


def locked(demo: Demo, database: str, table: str) -> pymysql.connections.Connection:
    """Hold the row of alice, so that who writes it waits."""
    connection = pymysql.connect(**parse_url(demo.stack.database_url(database)))
    connection.begin()
    with connection.cursor() as cursor:
        assert cursor.execute(f"SELECT * FROM {table} WHERE user_id = 'alice' FOR UPDATE") == 1
    return connection


def test_a_running_transfer_is_answered_and_a_stream_ends_before_the_service_does(
    demo: Demo, unique: str
) -> None:
    """SIGTERM while a transfer waits for a row and a page listens: 201, end of stream, exit code 0."""
    with (
        ThreadPoolExecutor() as pool,
        locked(demo, "account", "account") as lock,
        httpx.stream("GET", f"{demo.account.url}/events", timeout=20) as stream,
    ):
        told = stream.iter_text()
        next(told)
        answer = pool.submit(demo.transfer, unique)
        until(lambda: _in_flight(demo, unique), "the transfer")
        began = time.monotonic()
        os.kill(demo.account.pid, signal.SIGTERM)
        until(lambda: not _listens(demo.account), "no new connections")
        lock.rollback()
        assert answer.result(20).status == 201
        assert "".join(told).endswith("\n\n")
    _ends_well_within(demo.account, STOP_SECONDS, began)


def test_a_transfer_that_can_not_end_does_not_hold_up_the_end(demo: Demo, unique: str) -> None:
    """SIGTERM while its row stays locked: no answer, nothing committed, exit code 0 in time."""
    with ThreadPoolExecutor() as pool, locked(demo, "account", "account"):
        answer = pool.submit(demo.transfer, unique)
        until(lambda: _in_flight(demo, unique), "the transfer")
        began = time.monotonic()
        os.kill(demo.account.pid, signal.SIGTERM)
        _ends_well_within(demo.account, STOP_SECONDS, began)
        assert answer.exception(20) is not None or answer.result().status >= 500
    assert unique not in demo.ledger.read().transfers


def test_a_transfer_that_waits_for_a_frozen_broker_does_not_hold_up_the_end(demo: Demo, unique: str) -> None:
    """SIGTERM while the broker swallows the half message: the end is in time all the same."""
    demo.stack.broker.pause()
    try:
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(demo.transfer, unique)
            until(lambda: _in_flight(demo, unique), "the transfer")
            began = time.monotonic()
            os.kill(demo.account.pid, signal.SIGTERM)
            _ends_well_within(demo.account, STOP_SECONDS, began)
            assert answer.exception(20) is not None or answer.result().status >= 500
    finally:
        demo.stack.broker.resume()
    assert unique not in demo.ledger.read().transfers


def test_a_handler_that_can_not_end_does_not_hold_up_the_end(demo: Demo, unique: str) -> None:
    """SIGTERM to the points service while its handler waits for a row: in time, and delivered again."""
    demo.transfer(f"{unique}-first")
    demo.wait_for_points(f"{unique}-first")
    with locked(demo, "points", "points_balance"):
        assert demo.transfer(unique).status == 201
        until(lambda: "handler" in _steps(demo, "points", unique), "the handler", DELIVERY_SECONDS)
        began = time.monotonic()
        os.kill(demo.points.pid, signal.SIGTERM)
        _ends_well_within(demo.points, STOP_SECONDS, began)
    assert unique not in demo.ledger.read().entries
    demo.points.start()
    demo.wait_for_points(unique)


def _in_flight(demo: Demo, transfer_id: str) -> bool:
    """Whether the transfer's local transaction has begun, as the events of the page tell."""
    return "local_running" in _steps(demo, "account", transfer_id)


def _steps(demo: Demo, service: str, transfer_id: str) -> set[str]:
    lines = (demo.folder / "page" / f"{service}-events.jsonl").read_text(encoding="utf-8").splitlines()
    return {event["step"] for event in map(json.loads, lines) if event["transfer_id"] == transfer_id}


def _listens(service: DemoService) -> bool:
    try:
        connect(service).close()
    except OSError:
        return False
    return True
