"""The demo services as processes: their HTTP contract, and the invariant when something dies."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from demo_account_service.settings import Settings as AccountSettings
from demo_account_service.settings import seed_accounts
from demo_points_service.settings import Settings as PointsSettings
from devstack.machine import free_port_block
from devstack.services import DemoService
from devstack.settings import CHECKOUT
from rmq_txn.errors import SettingsError
from tests.e2e.conftest import DELIVERY_SECONDS, Demo
from tests.kit.proxy import Line, proxied, through
from tests.kit.wait import until

pytestmark = pytest.mark.servers

STOP_SECONDS = 10.0


def test_a_transfer_moves_money_and_earns_points(demo: Demo, unique: str) -> None:
    """201, both balances, one ledger entry, the payer's points."""
    before = demo.ledger.read()
    answer = demo.transfer(unique, 2599)
    assert answer.status == 201
    assert answer.body == {"transfer_id": unique, "txn_id": answer.body["txn_id"], "state": "committed"}
    assert re.fullmatch(r"[0-9a-f]{32}", answer.body["txn_id"])

    after = demo.wait_for_points(unique)
    assert after.balances["alice"] == before.balances["alice"] - 2599
    assert after.balances["bob"] == before.balances["bob"] + 2599
    assert after.points["alice"] == before.points.get("alice", 0) + 25
    assert demo.account.get("/accounts/alice").body == {"user": "alice", "balance": after.balances["alice"]}
    assert demo.points.get("/points/alice").body == {"user": "alice", "points": after.points["alice"]}
    newest = demo.points.get("/points/alice/entries?limit=1").body
    (entry,) = newest["entries"]
    assert newest["user"] == "alice"
    assert entry.pop("created_at").endswith("Z")
    assert entry == {"transfer_id": unique, "points": 25, "txn_id": answer.body["txn_id"]}


def test_a_transfer_without_an_id_gets_one(demo: Demo) -> None:
    """The answer names it, and it can be looked up."""
    answer = demo.account.post("/transfers", {"from": "alice", "to": "bob", "amount": 100})
    assert answer.status == 201
    shown = demo.account.get(f"/transfers/{answer.body['transfer_id']}")
    assert shown.status == 200
    assert shown.body.pop("created_at").endswith("Z")
    assert shown.body == {**answer.body, "from": "alice", "to": "bob", "amount": 100}


def test_a_transfer_below_one_yuan_has_an_entry_without_points(demo: Demo, unique: str) -> None:
    """The ledger compares ids, so it needs the entry."""
    assert demo.transfer(unique, 99).status == 201
    assert demo.wait_for_points(unique).entries[unique].points == 0


def test_the_same_transfer_again_returns_the_first_result(demo: Demo, unique: str) -> None:
    """200 and the same body; another body under the id is a conflict; the money moves once."""
    first = demo.transfer(unique, 300)
    assert (first.status, demo.transfer(unique, 300)) == (201, type(first)(200, first.body))
    for different in (
        demo.transfer(unique, 301),
        demo.transfer(unique, 300, payee="carol"),
        demo.transfer(unique, 300, payer="bob", payee="alice"),
    ):
        assert (different.status, different.body["error"]["code"]) == (409, "conflicting_transfer")


def test_too_little_money_is_refused_and_changes_nothing(demo: Demo, unique: str) -> None:
    """409; no transfer, no points, and a later transfer is not held up."""
    before = demo.ledger.read()
    answer = demo.transfer(unique, before.balances["alice"] + 1)
    assert (answer.status, answer.body["error"]["code"]) == (409, "insufficient_funds")
    assert demo.ledger.read().balances == before.balances
    later = f"{unique}-later"
    assert demo.transfer(later).status == 201
    books = demo.wait_for_points(later)
    assert unique not in books.transfers
    assert unique not in books.entries
    # Refused is not decided: the id is free until something commits under it.
    assert demo.transfer(unique, 100).status == 201


@pytest.mark.parametrize(("payer", "payee"), [("alice", "nobody"), ("nobody", "alice"), ("Alice", "bob")])
def test_an_unknown_account_is_not_found(demo: Demo, unique: str, payer: str, payee: str) -> None:
    """404 for payer and payee, even where the money is too little as well; users are case-sensitive."""
    answer = demo.transfer(unique, 10**12, payer=payer, payee=payee)
    assert (answer.status, answer.body["error"]["code"]) == (404, "unknown_account")
    assert unique not in demo.ledger.read().transfers


GOOD = {"from": "alice", "to": "bob", "amount": 100}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"from": "\xff", "to": "bob", "amount": 1}',
        b'{"from": "alice", "to": "bob", "amount": %s}' % (b"1" * 5000),
        b"[" * 16_000,
        {},
        {**GOOD, "amount": 0},
        {**GOOD, "amount": -1},
        {**GOOD, "amount": 10**12 + 1},
        {**GOOD, "amount": 100.0},
        {**GOOD, "amount": "100"},
        {**GOOD, "amount": True},
        {**GOOD, "amount": None},
        {**GOOD, "to": "alice"},
        {**GOOD, "to": ""},
        {**GOOD, "to": "b" * 65},
        {**GOOD, "to": "bob\n"},
        {**GOOD, "to": 7},
        {**GOOD, "from": "ali ce"},
        {**GOOD, "from": "\ud800"},
        {**GOOD, "transfer_id": ""},
        {**GOOD, "transfer_id": "-t"},
        {**GOOD, "transfer_id": "t" * 65},
        {**GOOD, "transfer_id": 5},
        {**GOOD, "currency": "EUR"},
        {"payer": "alice", "payee": "bob", "amount": 100},
    ],
    ids=lambda body: str(body)[:60],
)
def test_bad_input_is_refused_in_words(demo: Demo, body: object) -> None:
    """422 with a code, a sentence and, where a field is wrong, its name."""
    transfers = demo.ledger.read().transfers
    if isinstance(body, bytes):
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(f"{demo.account.url}/transfers", content=body, headers=headers)
        status, error = answer.status_code, answer.json()["error"]
    else:
        got = demo.account.post("/transfers", body)
        status, error = got.status, got.body["error"]
    assert (status, error["code"]) == (422, "bad_input")
    assert "nothing was changed" in error["message"]
    assert demo.ledger.read().transfers == transfers


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/accounts/nobody", 404, "unknown_account"),
        ("/accounts/no%20body", 422, "bad_input"),
        ("/transfers/nothing", 404, "unknown_transfer"),
        ("/transfers", 405, "http_405"),
        ("/nothing", 404, "http_404"),
    ],
)
def test_the_account_service_says_what_is_wrong(demo: Demo, path: str, status: int, code: str) -> None:
    """Each error is JSON with a code and a sentence."""
    answer = demo.account.get(path)
    assert (answer.status, answer.body["error"]["code"]) == (status, code)
    assert answer.body["error"]["message"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/points/no%20body", 422, "bad_input"),
        ("/points/alice/entries?limit=0", 422, "bad_input"),
        ("/points/alice/entries?limit=1001", 422, "bad_input"),
        ("/nothing", 404, "http_404"),
    ],
)
def test_the_points_service_says_what_is_wrong(demo: Demo, path: str, status: int, code: str) -> None:
    """Each error is JSON with a code and a sentence."""
    answer = demo.points.get(path)
    assert (answer.status, answer.body["error"]["code"]) == (status, code)


def test_lists_show_every_user_and_a_stranger_has_no_points(demo: Demo, unique: str) -> None:
    """GET /accounts and GET /points agree with the databases."""
    demo.transfer(unique)
    books = demo.wait_for_points(unique)
    accounts = demo.account.get("/accounts").body["accounts"]
    assert {item["user"]: item["balance"] for item in accounts} == books.balances
    points = demo.points.get("/points").body["points"]
    assert {item["user"]: item["points"] for item in points} == books.points
    assert demo.points.get("/points/stranger").body == {"user": "stranger", "points": 0}
    assert demo.points.get("/points/stranger/entries").body == {"user": "stranger", "entries": []}


def test_health_says_what_it_checked(demo: Demo) -> None:
    """200 with the state of each part."""
    # Red for some seconds after another test stopped a server.
    for service in demo.services:
        until(lambda s=service: s.get("/health").body["status"] == "ok", "a green health", 60)
    until(lambda: demo.points.get("/health").body["lag"] == 0, "the group is seen to have nothing to do", 60)
    parts = {"status": "ok", "registered": "ok", "broker": "ok", "database": "ok"}
    assert demo.account.get("/health").body == {**parts, "producer": "running", "problems": []}
    work = {"lag": 0, "failing": 0, "parked": 0, "problems": []}
    assert demo.points.get("/health").body == {**parts, "consumer": "running", **work}


def test_fifty_parallel_requests_for_one_transfer_make_one_message(demo: Demo, unique: str) -> None:
    """One 201, 49 times 200 with the same txn_id, one delivery."""
    together = threading.Barrier(50)

    def post(_number: int) -> tuple[int, str]:
        together.wait(30)
        answer = demo.transfer(unique, 700)
        return answer.status, answer.body.get("txn_id", str(answer.body))

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, range(50)))
    assert Counter(status for status, _ in answers) == {201: 1, 200: 49}, answers
    (txn_id,) = {txn_id for _, txn_id in answers}
    assert demo.wait_for_points(unique).entries[unique].txn_id == txn_id

    committed = [
        line for line in demo.account.log_lines("transfer committed") if line["transfer_id"] == unique
    ]
    assert len(committed) == 1
    later = f"{unique}-later"  # whatever else was sent had as much time as this
    demo.transfer(later)
    demo.wait_for_points(later)
    assert len(demo.events(demo.points, "handled", txn_id)) == 1
    assert demo.events(demo.points, "duplicate skipped", txn_id) == []
    awarded = [line for line in demo.points.log_lines("awarding points") if line["transfer_id"] == unique]
    assert len(awarded) == 1


def test_opposite_transfers_at_once_all_succeed(demo: Demo, unique: str) -> None:
    """Accounts are locked in one order, so nobody deadlocks."""

    def post(number: int) -> int:
        payer, payee = ("alice", "bob") if number % 2 else ("bob", "alice")
        return demo.transfer(f"{unique}-{number}", 100, payer=payer, payee=payee).status

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(post, range(60))) == {201}


def test_an_account_service_killed_before_its_commit_leaves_nothing(demo: Demo, unique: str) -> None:
    """Killed with the half message stored: check-back rolls it back, the client may try again."""
    before = demo.ledger.read()
    demo.account.stop()
    demo.account.start_with_crash_point("after_half_message", unique)
    with pytest.raises((OSError, http.client.HTTPException)):
        demo.transfer(unique)
    until(lambda: demo.account.exit_code == -signal.SIGKILL, "the kill")
    books = demo.ledger.read()
    assert (books.balances, unique in books.transfers) == (before.balances, False)
    (last_words,) = demo.account.log_lines("killing this process now")
    txn_id = last_words["txn_id"]

    demo.account.start()
    until(
        lambda: demo.events(demo.account, "check-back answered", txn_id), "the check-back", DELIVERY_SECONDS
    )
    verdicts = {line["verdict"] for line in demo.events(demo.account, "check-back answered", txn_id)}
    assert verdicts == {"rollback"}
    assert unique not in demo.ledger.read().entries
    assert demo.transfer(unique).status == 201
    assert demo.wait_for_points(unique).entries[unique].txn_id != txn_id


def test_an_account_service_killed_after_its_commit_still_delivers(demo: Demo, unique: str) -> None:
    """Killed before the broker knew: check-back commits, and the repeated request is a repeat."""
    demo.account.stop()
    demo.account.start_with_crash_point("after_commit", unique)
    with pytest.raises((OSError, http.client.HTTPException)):
        demo.transfer(unique)
    until(lambda: demo.account.exit_code == -signal.SIGKILL, "the kill")
    books = demo.ledger.read()
    assert unique in books.transfers
    assert unique not in books.entries

    demo.account.start()
    repeated = demo.transfer(unique)
    assert (repeated.status, repeated.body["txn_id"]) == (200, books.transfers[unique].txn_id)
    demo.wait_for_points(unique)
    verdicts = {
        line["verdict"]
        for line in demo.events(demo.account, "check-back answered", books.transfers[unique].txn_id)
    }
    assert verdicts == {"commit"}


def test_a_points_service_killed_before_its_ack_awards_once(demo: Demo, unique: str) -> None:
    """Killed after the handler's COMMIT: delivered again, skipped."""
    demo.points.stop()
    demo.points.start_with_crash_point("after_commit_before_ack", unique)
    answer = demo.transfer(unique)
    assert answer.status == 201
    until(lambda: demo.points.exit_code == -signal.SIGKILL, "the kill", 60)
    before = demo.ledger.read()
    assert unique in before.entries

    demo.points.start()
    until(
        lambda: demo.events(demo.points, "duplicate skipped", answer.body["txn_id"]),
        "the redelivery",
        60,
    )
    assert demo.ledger.read().points == before.points


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("which", ["account", "points"])
def test_a_signal_stops_a_service_well(demo: Demo, which: str, number: signal.Signals) -> None:
    """Exit code 0 within 10 s, an open connection notwithstanding."""
    service: DemoService = getattr(demo, which)
    with httpx.Client() as client:
        until(lambda: client.get(f"{service.url}/health").status_code == 200, "a green health", 60)
        began = time.monotonic()
        os.kill(service.pid, number)
        until(lambda: service.exit_code is not None, "the end of the service", 2 * STOP_SECONDS)
    assert time.monotonic() - began < STOP_SECONDS
    assert service.exit_code == 0
    helper = "producer closed" if which == "account" else "consumer closed"
    assert len(list(service.log_lines(helper))) == 1


def test_without_a_broker_nothing_changes_and_it_recovers(demo: Demo, unique: str) -> None:
    """503 while the broker is down; the same request succeeds once it is back."""
    before = demo.ledger.read()
    demo.stack.broker.kill()
    try:
        answer = demo.transfer(unique)
        assert (answer.status, answer.body["error"]["code"]) == (503, "broker_unavailable")
        books = demo.ledger.read()
        assert (books.balances, unique in books.transfers) == (before.balances, False)
        assert demo.account.get("/accounts").status == 200
    finally:
        demo.stack.broker.start()
    until(lambda: demo.transfer(unique).status in (200, 201), "a transfer after the broker's return", 60)
    demo.wait_for_points(unique)


def test_without_a_database_both_say_so_and_recover(demo: Demo, unique: str) -> None:
    """503 and a red health while it is down; a transfer and its points once it is back."""
    demo.wait_green()
    demo.stack.database.kill()
    try:
        answer = demo.transfer(unique)
        assert (answer.status, answer.body["error"]["code"]) == (503, "database_unavailable")
        for service in demo.services:
            health = service.get("/health")
            assert (health.status, health.body["database"]) == (503, "does not answer")
            assert health.body["broker"] == health.body["registered"] == "ok"
        reads = demo.account.get("/accounts"), demo.points.get("/points")
        assert [(read.status, read.body["error"]["code"]) for read in reads] == [
            (503, "database_unavailable")
        ] * 2
    finally:
        demo.stack.database.start()
    until(lambda: demo.transfer(unique).status == 201, "a transfer after the database's return", 30)
    demo.wait_for_points(unique)


def test_a_lost_commit_answer_is_in_doubt_until_the_client_repeats(demo: Demo, unique: str) -> None:
    """503 with both ids and what to do; the repeat finds the first result, the points arrive."""
    url = demo.stack.database_url("account")
    armed, broken = threading.Event(), threading.Event()

    def break_at_commit(line: Line, data: bytes) -> None:
        if armed.is_set() and data[4:] == b"\x03COMMIT":
            armed.clear()
            broken.set()
            line.client.shutdown(2)  # the COMMIT itself still goes to the server
        elif broken.is_set():
            line.cut()

    with proxied(url) as proxy:
        proxy.on_request = break_at_commit
        port = demo.first_port + 2
        service = DemoService(
            "demo_account_service",
            demo.folder / "behind-proxy",
            port,
            {
                "ACCOUNT_SERVICE_DATABASE_URL": through(url, proxy),
                "ACCOUNT_SERVICE_NAME_SERVER": demo.stack.name_server,
                "ACCOUNT_SERVICE_PORT": str(port),
                "ACCOUNT_SERVICE_LOG_FORMAT": "json",
            },
        )
        service.start()
        try:
            body = {"transfer_id": unique, "from": "alice", "to": "bob", "amount": 400}
            armed.set()
            answer = service.post("/transfers", body)
            error = answer.body["error"]
            assert (answer.status, error["code"], error["transfer_id"]) == (503, "in_doubt", unique)
            assert "repeat it with this transfer_id" in error["message"]
            broken.clear()
            repeated = service.post("/transfers", body)
            assert (repeated.status, repeated.body["txn_id"]) == (200, error["txn_id"])
        finally:
            service.stop()
    demo.wait_for_points(unique)


ACCOUNT = ("demo_account_service", "ACCOUNT_SERVICE")
POINTS = ("demo_points_service", "POINTS_SERVICE")


@pytest.mark.parametrize(("module", "prefix"), [ACCOUNT, POINTS], ids=["account", "points"])
@pytest.mark.parametrize(
    ("settings", "exit_code", "words"),
    [
        ({"{prefix}_PROT": "1"}, 2, "no such settings: {prefix}_PROT"),
        ({"DEMO_CRASH": "at_lunch:t"}, 2, "DEMO_CRASH is 'at_lunch:t'"),
        ({"{prefix}_DATABASE_URL": "mysql://u:secret@{closed}/d"}, 4, "database {closed} did not answer"),
        ({"{prefix}_NAME_SERVER": "{closed}"}, 4, "{closed}"),
        ({"{prefix}_PORT": "{taken}"}, 1, "address already in use"),
    ],
    ids=["unknown variable", "unknown crash point", "no database", "no broker", "port taken"],
)
def test_a_service_that_cannot_start_says_why(
    demo: Demo, module: str, prefix: str, settings: dict[str, str], exit_code: int, words: str
) -> None:
    """An exit code for scripts, one sentence for people, no password."""
    port = free_port_block()
    names = {"prefix": prefix, "closed": f"127.0.0.1:{port + 1}", "taken": demo.first_port}
    environment = {
        f"{prefix}_DATABASE_URL": demo.stack.database_url(module.split("_")[1]),
        f"{prefix}_NAME_SERVER": demo.stack.name_server,
        f"{prefix}_PORT": str(port),
    }
    environment |= {name.format(**names): value.format(**names) for name, value in settings.items()}
    done = run_module(module, environment)
    assert done.returncode == exit_code, done.stderr
    assert words.format(**names) in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("settings", [AccountSettings, PointsSettings])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("DATABASE_URL", None, "DATABASE_URL is not set"),
        ("PORT", "0", "PORT is 0, allowed is 1 to 65535"),
        ("PORT", "80x", "PORT is '80x', allowed is a whole number"),
        ("THREADS", "201", "THREADS is 201, allowed is 1 to 200"),
        ("LOG_FORMAT", "xml", "LOG_FORMAT is 'xml', allowed is console or json"),
        ("log_format", "json", "no such settings"),
    ],
)
def test_a_wrong_setting_is_named(
    settings: type[AccountSettings] | type[PointsSettings], name: str, value: str | None, words: str
) -> None:
    """With its prefix, its value, and what is allowed."""
    prefix = "ACCOUNT_SERVICE_" if settings is AccountSettings else "POINTS_SERVICE_"
    environment = {f"{prefix}DATABASE_URL": "mysql://u:p@h/d", f"{prefix}{name}": value}
    with pytest.raises(SettingsError, match=words):
        settings.from_environment({key: text for key, text in environment.items() if text is not None})


@pytest.mark.parametrize(
    "text", ["alice", "alice=", "alice=-1", "alice=1,alice=2", "a b=1", "alice=1000000000001", "=1"]
)
def test_seeds_that_make_no_sense_are_refused(text: str) -> None:
    """The variable is named."""
    with pytest.raises(SettingsError, match="DEMO_SEED_ACCOUNTS"):
        seed_accounts({"DEMO_SEED_ACCOUNTS": text})


def test_seeds_are_users_and_fen() -> None:
    """Spaces and a last comma do no harm; nothing set means no seeds."""
    assert seed_accounts({"DEMO_SEED_ACCOUNTS": "alice=100, bob=0,"}) == {"alice": 100, "bob": 0}
    assert seed_accounts({}) == {}


def test_seeding_again_keeps_the_balance(demo: Demo, unique: str) -> None:
    """An account service that restarts with its seeds does not refill accounts."""
    demo.transfer(unique)
    balances = demo.ledger.read().balances
    demo.account.stop()
    demo.account.start()
    assert demo.ledger.read().balances == balances


def run_module(module: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module of this checkout until it ends, without settings that happen to be set here."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DEMO_")}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**inherited, "PYTHONPATH": str(CHECKOUT), **environment},
        capture_output=True,
        text=True,
        timeout=300,  # the tutorial, on a busy machine
        check=False,
    )


def test_the_tutorial_runs_to_its_end(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`python -m devstack.demo --once`: servers of its own, every step, exit code 0."""
    port = free_port_block()
    done = run_module(
        "devstack.demo",
        {},
        "--once",
        *("--folder", str(tmp_path_factory.mktemp("demo"))),
        *("--account-port", str(port), "--points-port", str(port + 1)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "asks about an unfinished transaction after 3 s here, 6 s by default",
        '"check-back answered" verdict=commit',
        '"duplicate skipped"',
        "4 == 4, nothing missing, nothing extra, nothing twice",
        "everything is stopped",
    ):
        assert words in done.stdout


def _interrupted(process: subprocess.Popen[str], when: Callable[[str], bool]) -> str:
    """Read what a process prints and send it SIGINT once a line is the right one; return all."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if when(line):
            process.send_signal(signal.SIGINT)
    return "".join(lines)


def test_ctrl_c_in_the_tutorial_stops_everything(
    stack: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Exit code 130 and no process left that knows the folder; by then a desktop's browser has the page."""
    folder = tmp_path_factory.mktemp("demo")
    browser = folder / "browser"
    browser.write_text(f"#!/bin/sh\necho $1 >{folder}/opened\n")
    browser.chmod(0o755)
    port = free_port_block()
    command = [sys.executable, "-m", "devstack.demo", "--folder", str(folder)]
    command += ["--account-port", str(port), "--points-port", str(port + 1), "--page-port", str(port + 2)]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "DISPLAY": ":99", "BROWSER": f"{browser} %s"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        output = _interrupted(process, lambda line: "1. A transfer" in line)
    assert process.returncode == 130, output
    assert (folder / "opened").read_text() == f"http://127.0.0.1:{port + 2}/\n"
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert [line for line in listed.splitlines() if str(folder) in line] == []
