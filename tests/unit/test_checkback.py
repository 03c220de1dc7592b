"""The pure part of the oracle: what it never decides. Decisions on a real database are integration."""

from __future__ import annotations

import time
from typing import Any, NoReturn, cast
from unittest import mock

import pytest

from rmq_txn import Database, identity
from rmq_txn.checkback import Oracle
from rmq_txn.identity import PROPERTY_OWNER, PROPERTY_POSITION, PROPERTY_TXN_ID, new_txn_id
from rmq_txn.transport import Check
from rmq_txn.verdict import Verdict

OWNER = "account-service@6f1c"
RETENTION_SECONDS = 7 * 86_400.0


class Asked(Exception):
    """The database was asked."""


class Untouchable:
    """Stands where a database would; any use of it raises. Not a fake: it has no behaviour."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise Asked(name)


@pytest.fixture
def oracle() -> Oracle:
    """Return an oracle whose database must not be asked."""
    return Oracle(cast(Database, Untouchable()), OWNER, RETENTION_SECONDS)


def question(**changes: str | None) -> Check:
    """Return a question about our own fresh message, with changes; None removes a property."""
    properties: dict[str, Any] = {
        PROPERTY_TXN_ID: new_txn_id(),
        PROPERTY_POSITION: "0",
        PROPERTY_OWNER: OWNER,
    } | changes
    return Check("AC10", {name: value for name, value in properties.items() if value is not None})


def aged(seconds: float) -> str:
    """Return a transaction id that is that old."""
    with mock.patch.object(time, "time_ns", return_value=time.time_ns() - int(seconds * 1e9)):
        return new_txn_id()


def test_a_sound_question_does_ask_the_database(oracle: Oracle) -> None:
    """So that the other tests here can fail."""
    with pytest.raises(Asked, match="begin_check"):
        oracle.check(question())


@pytest.mark.parametrize("name", [PROPERTY_TXN_ID, PROPERTY_POSITION, PROPERTY_OWNER])
def test_a_missing_property_is_answered_unknown(oracle: Oracle, name: str) -> None:
    """Another client of the group sent it, and only that client can know."""
    assert oracle.check(question(**{name: None})) is Verdict.UNKNOWN


def test_a_message_without_any_property_is_answered_unknown(oracle: Oracle) -> None:
    """As a Java producer of the same group sends it."""
    assert oracle.check(Check("AC10", {})) is Verdict.UNKNOWN


@pytest.mark.parametrize(
    "owner",
    [
        "",
        "account-service",
        "@6f1c",
        "other-service@6f1c",
        "account-service@9999",
        OWNER.upper(),
        OWNER + " ",
    ],
)
def test_a_foreign_owner_is_answered_unknown(oracle: Oracle, owner: str) -> None:
    """Our database holds no evidence about it; a fence there would roll back what committed elsewhere."""
    assert oracle.check(question(**{PROPERTY_OWNER: owner})) is Verdict.UNKNOWN


@pytest.mark.parametrize(
    "txn_id",
    [
        "",
        "x",
        "A" * 32,
        "g" * 32,
        "0" * 31,
        "0" * 33,
        "0" * 32 + "\n",
        "'; DROP TABLE rmq_txn_log; --",
        "٣" * 32,
    ],
)
def test_a_hostile_transaction_id_is_answered_unknown(oracle: Oracle, txn_id: str) -> None:
    """Whoever may send to the broker chooses it."""
    assert oracle.check(question(**{PROPERTY_TXN_ID: txn_id})) is Verdict.UNKNOWN


@pytest.mark.parametrize("position", ["", "-1", "x", "1.0", "0x1", "²", "٣", " 0", "0\n", "9" * 5_000])
def test_a_hostile_position_is_answered_unknown(oracle: Oracle, position: str) -> None:
    """And does not raise: 5,000 digits are more than Python turns into a number."""
    assert oracle.check(question(**{PROPERTY_POSITION: position})) is Verdict.UNKNOWN


def test_a_question_older_than_the_retention_is_answered_unknown(oracle: Oracle) -> None:
    """Its row may have been pruned, so that the absence of one proves nothing."""
    assert oracle.check(question(**{PROPERTY_TXN_ID: aged(RETENTION_SECONDS + 60)})) is Verdict.UNKNOWN
    assert oracle.check(question(**{PROPERTY_TXN_ID: "0" * 32})) is Verdict.UNKNOWN


def test_a_question_within_the_retention_is_asked(oracle: Oracle) -> None:
    """The other side of the edge."""
    with pytest.raises(Asked):
        oracle.check(question(**{PROPERTY_TXN_ID: aged(RETENTION_SECONDS - 60)}))


def test_age_is_read_from_the_id_not_from_the_message(oracle: Oracle) -> None:
    """The clock moves on, the id stays."""
    asked = question()
    with mock.patch.object(identity.time, "time", return_value=time.time() + RETENTION_SECONDS + 60):
        assert oracle.check(asked) is Verdict.UNKNOWN
