"""The HTTP interfaces of both demo services on generated requests: they keep what /openapi.json promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devstack.services import DemoService
from tests.e2e.conftest import SEEDS, Demo

pytestmark = pytest.mark.servers

# The same examples each time: to repeat a failure, run the test again.
REPEATABLE = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
MAX_AMOUNT = 10**12
MAX_BODY_BYTES = 16_384


def contract_faults(service: DemoService, folder: Path, *options: str) -> str:
    """Let schemathesis read /openapi.json and try what it promises; return what it finds, "" if nothing."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"),
            *("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "60"),
            # Not random: the same requests each time, and each failure is shown as a curl command.
            *("--generation-deterministic", "--no-color"),
            *("--continue-on-failure", "--request-timeout", "20", *options),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,  # a guard against a hang: it takes some ten seconds, on a crowded machine two minutes
        check=False,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_the_account_service_keeps_what_its_openapi_promises(demo: Demo, tmp_path: Path) -> None:
    """Documented statuses, headers, types and bodies, no 5xx, and what is not valid is refused."""
    # That payer and payee differ is not to be said in a schema: a valid body may be refused.
    assert contract_faults(demo.account, tmp_path, "--exclude-checks", "positive_data_acceptance") == ""


def test_the_points_service_keeps_what_its_openapi_promises(demo: Demo, tmp_path: Path) -> None:
    """As above; and what is valid is accepted."""
    assert contract_faults(demo.points, tmp_path) == ""


def test_a_method_that_a_route_does_not_know_is_told_those_it_knows(demo: Demo) -> None:
    """405 with the header Allow, as HTTP wants it; schemathesis found it missing."""
    for service, path in ((demo.account, "/accounts"), (demo.points, "/points/alice")):
        answer = httpx.delete(f"{service.url}{path}")
        assert (answer.status_code, answer.headers.get("allow")) == (405, "GET")
        assert answer.json()["error"]["code"] == "http_405"


def test_there_is_a_contract_for_machines_and_no_page_of_strangers(demo: Demo) -> None:
    """/openapi.json without the routes of the demo page; no /docs, whose scripts come from elsewhere."""
    for service, paths in (
        (demo.account, {"/transfers", "/transfers/{transfer_id}", "/accounts", "/accounts/{user}"}),
        (demo.points, {"/points", "/points/{user}", "/points/{user}/entries"}),
    ):
        assert service.get("/openapi.json").body["paths"].keys() == {*paths, "/health"}
        assert {service.get(page).status for page in ("/docs", "/redoc")} == {404}


GOOD: dict[str, Any] = {"from": "alice", "to": "bob", "amount": 100}
KNOWN = st.sampled_from(sorted(SEEDS))
NO_NAME = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["", "-a", "a b", "a\n", "a\x00b", "\ud800", "é", "a" * 65, "a" * 20_000])
    | st.text(max_size=80).filter(lambda text: not text.isascii() or not text.isalnum())
).filter(lambda value: not _is_name(value))
NO_AMOUNT = (
    st.none()
    | st.booleans()
    | st.integers(max_value=0)
    | st.integers(min_value=MAX_AMOUNT + 1, max_value=10**400)
    | st.floats()
    | st.text(max_size=20)
    | st.lists(st.integers(), max_size=3)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _is_name(value: object) -> bool:
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    return isinstance(value, str) and 0 < len(value) <= 64 and value[0] not in "._-" and set(value) <= allowed


def _without(name: str) -> dict[str, Any]:
    return {field: value for field, value in GOOD.items() if field != name}


BAD_OBJECTS = st.one_of(
    st.builds(lambda amount: {**GOOD, "amount": amount}, NO_AMOUNT),
    st.builds(lambda name: {**GOOD, "from": name}, NO_NAME),
    st.builds(lambda name: {**GOOD, "to": name}, NO_NAME),
    st.builds(lambda name: {**GOOD, "transfer_id": name}, NO_NAME.filter(lambda name: name is not None)),
    st.builds(lambda name: {**GOOD, "from": name, "to": name}, KNOWN),
    st.builds(lambda name: {**GOOD, "from": f"nobody-{name}"}, KNOWN),
    st.builds(lambda name: {**GOOD, "to": f"nobody-{name}"}, KNOWN),
    st.builds(_without, st.sampled_from(sorted(GOOD))),
    st.builds(
        lambda name, value: {**GOOD, name: value},
        st.text(max_size=20).filter(lambda name: name not in {*GOOD, "transfer_id"}),
        JSON,
    ),
    JSON.filter(lambda value: not isinstance(value, dict) or not GOOD.keys() <= value.keys()),
)
ENCODED = json.dumps(GOOD).encode()
BAD_BODIES = st.one_of(
    BAD_OBJECTS.map(lambda value: json.dumps(value).encode()),
    st.integers(0, len(ENCODED) - 1).map(lambda end: ENCODED[:end]),
    st.integers(0, len(ENCODED)).map(lambda at: ENCODED[:at] + b"\xff" + ENCODED[at:]),
    st.binary(max_size=200).filter(lambda body: b"from" not in body),
    st.integers(1, 20_000).map(lambda depth: b"[" * depth),
    st.integers(1, 6_000).map(lambda depth: b'{"amount":' * depth),
    st.integers(1, 6_000).map(lambda depth: ENCODED[:-1] + b', "x": ' + b"[" * depth + b"]" * depth + b"}"),
    st.integers(MAX_BODY_BYTES, 4 * MAX_BODY_BYTES).map(lambda size: ENCODED + b" " * size),
)
REQUESTS = st.tuples(BAD_BODIES, st.just("application/json")) | st.tuples(
    st.just(ENCODED),
    st.sampled_from(
        [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/xml",
        ]
    ),
)
CODES = {404: "unknown_account", 413: "body_too_large", 422: "bad_input"}


def test_what_is_refused_says_why_and_changes_nothing(demo: Demo) -> None:
    """Every bad body is answered 4xx in words, and both databases are as they were."""
    before = demo.ledger.read()
    with httpx.Client(base_url=demo.account.url, timeout=20) as client:

        @settings(REPEATABLE, max_examples=400)
        @given(REQUESTS)
        def refuse(request: tuple[bytes, str]) -> None:
            body, content_type = request
            answer = client.post("/transfers", content=body, headers={"Content-Type": content_type})
            error = answer.json()["error"]
            assert error["code"] == CODES.get(answer.status_code), answer.text
            assert "nothing was changed" in error["message"] or "there is no account" in error["message"]

        refuse()
    assert demo.ledger.read() == before


def test_what_is_accepted_moves_just_that_money(demo: Demo, unique: str) -> None:
    """201 if the payer has it, else 409; sent again it is 200, or 409 as before; balances as computed."""
    balances = dict(demo.ledger.read().balances)
    number = 0

    @settings(REPEATABLE, max_examples=60)
    @given(
        st.lists(KNOWN, min_size=2, max_size=2, unique=True),
        st.integers(1, 10_000) | st.integers(1, MAX_AMOUNT) | st.sampled_from([1, MAX_AMOUNT]),
    )
    def move(users: list[str], amount: int) -> None:
        nonlocal number
        number += 1
        payer, payee = users
        statuses = [
            demo.transfer(f"{unique}-{number}", amount, payer=payer, payee=payee).status for _ in range(2)
        ]
        if balances[payer] >= amount:
            balances[payer] -= amount
            balances[payee] += amount
            assert statuses == [201, 200]
        else:
            assert statuses == [409, 409]
        assert demo.account.get(f"/accounts/{payer}").body["balance"] == balances[payer]

    move()
    assert demo.ledger.read().balances == balances
