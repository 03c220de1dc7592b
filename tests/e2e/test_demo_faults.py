"""The buttons of the demo page through HTTP: each breaks what it says, and the books stay right."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from devstack.keeper import kept_up
from devstack.services import Answer, DemoService
from tests.e2e.conftest import DELIVERY_SECONDS, Demo
from tests.kit.wait import until

pytestmark = pytest.mark.servers

Event = dict[str, Any]


@pytest.fixture
def kept(demo: Demo) -> Iterator[Demo]:
    """Return both services under a supervisor; they serve again when it ends."""
    with kept_up(*demo.services):
        yield demo
    demo.start_those_down()
    for service in demo.services:
        service.wait_ready(timeout_seconds=DELIVERY_SECONDS)


class Tab:
    """What a tab of the page hears; it connects again where it was cut off."""

    def __init__(self, service: DemoService, resume_id: str) -> None:
        self.events: list[Event] = []
        self._url = service.url
        self._resume_id = resume_id

    def wait_for(self, txn_or_transfer_id: str, *steps: str) -> list[Event]:
        """Return all events of a transaction or transfer once each of these steps is among them."""

        def enough() -> bool:
            return not set(steps) - {event["step"] for event in self.about(txn_or_transfer_id)}

        def heard() -> bool:
            return enough() or (self._listen(enough) and enough())

        what = f"{', '.join(steps)} of {txn_or_transfer_id}"
        until(heard, what, DELIVERY_SECONDS)
        return self.about(txn_or_transfer_id)

    def more(self) -> None:
        """Read on until the next event."""
        heard = len(self.events)
        self._listen(lambda: len(self.events) > heard)

    def about(self, key: str) -> list[Event]:
        transactions = {
            event["txn_id"] for event in self.events if key in (event["transfer_id"], event["txn_id"])
        } - {""}
        return [event for event in self.events if event["txn_id"] in transactions]

    def _listen(self, enough: Callable[[], bool]) -> bool:
        """Read events until they are enough, or the line is cut."""
        headers = {"Last-Event-ID": self._resume_id}
        lines_left = 100  # a sign of life each second: look up now and then
        try:
            with httpx.stream(
                "GET", f"{self._url}/events", headers=headers, timeout=10, trust_env=False
            ) as answer:
                kind = "message"
                for line in answer.iter_lines():
                    if line.startswith("id: "):
                        self._resume_id = line.removeprefix("id: ")
                    elif line.startswith("event: "):
                        kind = line.removeprefix("event: ")
                    elif line == "":
                        kind = "message"
                    elif kind == "message" and line.startswith("data: "):
                        self.events.append(json.loads(line.removeprefix("data: ")))
                        if enough():
                            return True
                    lines_left -= 1
                    if lines_left < 0:
                        return False
        except httpx.HTTPError:
            pass  # killed: `until` comes again
        return False


def newest_id(demo: Demo) -> str:
    """Return where the streams of both services stand."""
    newest = [0, 0]
    for position, name in enumerate(("account", "points")):
        lines = (demo.folder / "page" / f"{name}-events.jsonl").read_text().splitlines()
        newest[position] = json.loads(lines[-1])["id"] if lines else 0
    return f"{newest[0]}.{newest[1]}"


def arm(demo: Demo, fault: str, transfer_id: str, **more: object) -> None:
    """Press a button twice quickly."""
    service = (
        demo.account if fault in ("kill_before_commit", "kill_after_commit", "slow_check_back") else None
    )
    path = "/faults" if service else "/points-service/faults"
    for _ in range(2):
        answer = demo.account.post(path, {"fault": fault, "transfer_id": transfer_id, **more})
        assert answer.status == 200, answer


def verdicts(events: list[Event]) -> list[str]:
    """Return what the broker was answered; "unknown" left out: locks may stand still."""
    answers = [event["detail"]["verdict"] for event in events if event["step"] == "check_answered"]
    return [answer for answer in answers if answer != "unknown"]


def transfer_that_kills(demo: Demo, transfer_id: str) -> None:
    """Send a transfer whose answer never comes."""
    with pytest.raises((OSError, http.client.HTTPException)):
        demo.transfer(transfer_id)


def answered(demo: Demo, transfer_id: str) -> Answer:
    """Repeat a transfer until the restarted service answers."""

    def attempt() -> Answer | None:
        try:
            answer = demo.transfer(transfer_id)
        except (OSError, http.client.HTTPException):
            return None
        return answer if answer.status < 500 else None

    answer = until(attempt, "the account service", DELIVERY_SECONDS)
    assert answer is not None
    return answer


def test_every_step_of_a_transfer_is_told_in_order(kept: Demo, unique: str) -> None:
    """Both services in one stream, each event with its time, its service and the txn_id."""
    tab = Tab(kept.account, newest_id(kept))
    txn_id = kept.transfer(unique).body["txn_id"]
    events = tab.wait_for(txn_id, "acked", "message_committed")
    own = [event["step"] for event in events if event["service"] == "account"]
    assert own == ["local_running", "half_stored", "committed", "message_committed"]
    other = [event["step"] for event in events if event["service"] == "points"]
    assert other == ["delivered", "inbox_row", "handler", "committed", "acked"]
    assert {event["txn_id"] for event in events} == {txn_id}
    assert all(event["time"].endswith("+00:00") for event in events)


def test_killed_before_commit_nothing_moves(kept: Demo, unique: str) -> None:
    """The broker asks the restarted service and drops the half message; the repeat goes through."""
    tab = Tab(kept.account, newest_id(kept))
    arm(kept, "kill_before_commit", unique)
    transfer_that_kills(kept, unique)
    until(
        lambda: verdicts(tab.wait_for(unique, "check_answered")) or tab.more(), "a verdict", DELIVERY_SECONDS
    )
    assert verdicts(tab.about(unique))[0] == "rollback"
    assert unique not in kept.ledger.read().transfers
    assert answered(kept, unique).status == 201
    kept.wait_for_points(unique)
    assert Counter(event["step"] for event in tab.about(unique))["killed"] == 1


def test_killed_after_commit_the_points_arrive(kept: Demo, unique: str) -> None:
    """The broker asks the restarted service, which knows that it committed."""
    tab = Tab(kept.account, newest_id(kept))
    arm(kept, "kill_after_commit", unique)
    transfer_that_kills(kept, unique)
    events = tab.wait_for(unique, "check_answered", "acked")
    assert verdicts(events)[0] == "commit"
    assert answered(kept, unique).status == 200
    kept.wait_for_points(unique)


def test_a_slow_check_back_delays_the_points(kept: Demo, unique: str) -> None:
    """The transfer is answered at once; nobody told the broker, so it asks, and waits for the answer."""
    tab = Tab(kept.account, newest_id(kept))
    arm(kept, "slow_check_back", unique)
    assert kept.transfer(unique).status == 201
    steps = [e["step"] for e in tab.wait_for(unique, "check_slow", "check_answered", "acked")]
    assert steps.index("committed") < steps.index("check_slow") < steps.index("check_answered")
    assert "message_committed" not in steps


def test_a_handler_that_fails_twice_works_in_the_end(kept: Demo, unique: str) -> None:
    """Rolled back with its inbox row each time, delivered again, handled once."""
    tab = Tab(kept.account, newest_id(kept))
    arm(kept, "fail", unique, times=2)
    assert kept.transfer(unique).status == 201
    steps = Counter(event["step"] for event in tab.wait_for(unique, "acked"))
    assert (steps["failed"], steps["given_back"], steps["handler"], steps["committed"]) == (2, 2, 3, 2)


def test_delivered_twice_counts_once(kept: Demo, unique: str) -> None:
    """The broker gets no ack, delivers again, and the inbox row is seen to skip it."""
    tab = Tab(kept.account, newest_id(kept))
    arm(kept, "deliver_twice", unique)
    assert kept.transfer(unique, 700).status == 201
    steps = Counter(event["step"] for event in tab.wait_for(unique, "ack_withheld", "skipped", "acked"))
    assert (steps["handler"], steps["skipped"], steps["delivered"]) == (1, 1, 2)
    assert kept.ledger.read().entries[unique].points == 7


def test_a_poisoned_message_is_parked_until_it_is_mended(kept: Demo, unique: str) -> None:
    """Others pass meanwhile; mend and replay, pressed twice, has one effect."""
    tab = Tab(kept.account, newest_id(kept))
    arm(kept, "poison", unique)
    assert kept.transfer(unique).status == 201
    tab.wait_for(unique, "parked")
    other = f"{unique}-other"
    assert kept.transfer(other).status == 201
    books = kept.wait_for_points(other)
    assert unique not in books.entries
    assert (unique in books.missing, unique in books.awaited) == (True, False)
    until(lambda: kept.points.get("/health").body["parked"], "health counts it")
    health = kept.points.get("/health")
    assert (health.status, health.body["status"]) == (200, "degraded")
    assert "parked" in " ".join(health.body["problems"])
    answers = [kept.account.post("/points-service/mend", {"transfer_id": unique}) for _ in range(2)]
    assert [(answer.status, answer.body["replayed"]) for answer in answers] == [(200, True), (200, False)]
    books = kept.ledger.read()
    assert unique in books.entries
    assert unique not in books.parked
    until(lambda: not kept.points.get("/health").body["parked"], "health is good again")


def test_transfers_wait_for_a_points_service_that_is_away(kept: Demo, unique: str) -> None:
    """Killed, and kept away for a while; the money moves meanwhile, the points come later."""
    pid = kept.points.pid
    for _ in range(2):
        kept.account.post("/points-service/faults", {"fault": "stop", "seconds": 3})
    until(lambda: not kept.points.alive or kept.points.pid != pid, "the end of the points service", 30)
    assert kept.transfer(unique).status == 201
    assert unique not in kept.ledger.read().entries
    kept.wait_for_points(unique)


@pytest.mark.parametrize(
    "body",
    [{}, {"fault": "meteor", "transfer_id": "t"}, {"fault": "kill_after_commit", "transfer_id": "a b"}, []],
)
def test_a_fault_that_makes_no_sense_is_refused(demo: Demo, body: object) -> None:
    """422 by both services, and nothing is armed."""
    for path in ("/faults", "/points-service/faults"):
        answer = demo.account.post(path, body)
        assert (answer.status, answer.body["error"]["code"]) == (422, "bad_input")


def test_the_page_is_served_with_its_types_and_a_strict_policy(demo: Demo) -> None:
    """No inline script, nothing from elsewhere; and no other file of the folder above."""
    for path, kind in (
        ("/", "text/html"),
        ("/page/page.js", "text/javascript"),
        ("/page/texts.js", "text/javascript"),
        ("/page/page.css", "text/css"),
    ):
        answer = httpx.get(demo.account.url + path, trust_env=False)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
    for path in ("/page/app.py", "/page/..%2Fapp.py", "/points-service/docs"):
        assert httpx.get(demo.account.url + path, trust_env=False).status_code == 404
