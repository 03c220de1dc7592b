"""
The protocol, checked: every promise holds, and each protection is there for a reason.

`-s` prints what was found; a broken promise comes with the shortest story that breaks it. How to read the
model: docs/model.md. What the protections are good for that break nothing: docs/decisions/0019.
"""

from __future__ import annotations

import pkgutil
from dataclasses import fields
from pathlib import Path

import pytest

from tests.model import consuming, producing
from tests.model.consuming import Consuming
from tests.model.explorer import Found
from tests.model.producing import Producing

# protection, form, faults that the shortest story needs, the promise that breaks without it
NEEDED_TO_PRODUCE = [
    ("fence", "A", 1, producing.LOST),
    ("fence", "B", 1, producing.LOST),
    ("fence_committed_before_rollback", "A", 2, producing.LOST),
    ("fence_committed_before_rollback", "B", 2, producing.LOST),
    ("lock_wait_is_unknown", "A", 1, producing.LOST),
    ("lock_wait_is_unknown", "B", 1, producing.LOST),
    ("owner_stamp", "A", 2, producing.LOST),
    ("owner_stamp", "B", 2, producing.LOST),
    ("log_row_first", "B", 0, producing.REFUSED),
    ("log_row_open_until_the_end", "B", 1, producing.PHANTOM),
    ("tripwire", "A", 1, producing.TORN),
    ("resolve", "A", 1, producing.LIE),
    ("resolve", "B", 1, producing.LIE),
    ("kill_before_resolve", "A", 1, producing.VAGUE),
    ("kill_before_resolve", "B", 1, producing.VAGUE),
    ("outbox", "A", 1, producing.LOST),
    ("outbox", "B", 1, producing.LOST),
    ("relay", "A", 1, producing.LOST),
    ("relay", "B", 1, producing.LOST),
    ("relay_waits_for_the_disk", "A", 1, producing.LOST),
    ("relay_waits_for_the_disk", "B", 1, producing.LOST),
    ("relay_compares_what_it_finds", "A", 2, producing.LOST),
    ("relay_compares_what_it_finds", "B", 2, producing.LOST),
    ("removal_waits_for_the_last_question", "A", 1, producing.LOST),
    ("removal_waits_for_the_last_question", "B", 1, producing.LOST),
    ("removal_only_when_undisturbed", "A", 1, producing.LOST),
    ("removal_only_when_undisturbed", "B", 1, producing.LOST),
    ("removal_not_after_late_verdict", "A", 1, producing.LOST),
    ("removal_not_after_late_verdict", "B", 1, producing.LOST),
    ("lasting_lock_disturbs", "A", 1, producing.LOST),
    ("lasting_lock_disturbs", "B", 1, producing.LOST),
    ("witness_saw_the_beginning", "A", 1, producing.LOST),
    ("witness_saw_the_beginning", "B", 1, producing.LOST),
    ("witness_needs_short_transactions", "A", 1, producing.LOST),
    ("witness_needs_short_transactions", "B", 1, producing.LOST),
    ("unknown_from_an_error_disturbs", "A", 2, producing.LOST),
    ("unknown_from_an_error_disturbs", "B", 2, producing.LOST),
    ("siblings_have_rows", "A", 2, producing.LOST),
    ("siblings_have_rows", "B", 2, producing.LOST),
    ("siblings_tell_disturbances", "A", 2, producing.LOST),
    ("siblings_tell_disturbances", "B", 2, producing.LOST),
    ("removal_waits_for_old_rows", "A", 2, producing.LOST),
    ("removal_waits_for_old_rows", "B", 2, producing.LOST),
    ("stamp", "A", 1, producing.FORGED),
    ("stamp", "B", 1, producing.FORGED),
]
# What is needed only where a transaction may take long; elsewhere its lock disturbs before.
OF_LONG_TRANSACTIONS = {"removal_not_after_late_verdict", "witness_needs_short_transactions"}
NEEDED_TO_CONSUME = [
    ("inbox", 1, consuming.TWICE),
    ("inbox_row_in_the_same_transaction", 1, consuming.TWICE),
    ("lock_wait_is_no_duplicate", 1, consuming.LOST),
    ("tripwire", 2, consuming.TWICE),
    ("autocommit_off", 1, consuming.TWICE),
    ("ack_only_after_commit", 0, consuming.LOST),
    ("parked_before_ack", 0, consuming.LOST),
    ("parked_keeps_inbox_row", 1, consuming.TWICE),
    ("replay_takes_the_parked_row", 0, consuming.TWICE),
    ("age_rule", 1, consuming.TWICE),
    ("over_age_replay_needs_force", 1, consuming.TWICE),
]
# Questioned, and kept, in docs/decisions/0019-protections-that-no-promise-needs.md
KEPT_WITHOUT_NEED = ["winning_id", "open_row_counted", "check_back_has_an_age_limit"]


def without(protection: str, form: str, faults: int) -> Found:
    on = producing.Protections(**{protection: False})
    return Producing(form, on, faults, long_transactions=protection in OF_LONG_TRANSACTIONS).explore()


@pytest.mark.parametrize(("form", "faults", "long"), [("A", 3, False), ("B", 3, False), ("B", 2, True)])
def test_every_promise_of_the_producer_holds(form: str, faults: int, long: bool) -> None:
    """Three faults, four questions of the broker, two ids; two where a transaction may take long."""
    found = Producing(form, producing.Protections(), faults, questions=4, long_transactions=long).explore()
    print(found)
    assert found.broken is None, found
    assert found.states > (20_000 if long else 50_000), "the model has lost most of its states"


def test_every_promise_of_the_consumer_holds() -> None:
    """Four faults, two deliveries at once."""
    found = Consuming(consuming.Protections(), faults=4).explore()
    print(found)
    assert found.broken is None, found
    assert found.states > 1_000, "the model has lost most of its states"


@pytest.mark.parametrize(
    ("protection", "form", "faults", "promise"),
    [pytest.param(*row, id=f"{row[0]}-{row[1]}") for row in NEEDED_TO_PRODUCE],
)
def test_the_producer_breaks_a_promise_without(protection: str, form: str, faults: int, promise: str) -> None:
    """With so many faults, and not with fewer."""
    found = without(protection, form, faults)
    print(found)
    assert found.broken == promise, found
    if faults:
        assert without(protection, form, faults - 1).broken is None


@pytest.mark.parametrize(
    ("protection", "faults", "promise"), [pytest.param(*row, id=row[0]) for row in NEEDED_TO_CONSUME]
)
def test_the_consumer_breaks_a_promise_without(protection: str, faults: int, promise: str) -> None:
    """With so many faults, and not with fewer."""
    on = consuming.Protections(**{protection: False})
    found = Consuming(on, faults).explore()
    print(found)
    assert found.broken == promise, found
    if faults:
        assert Consuming(on, faults - 1).explore().broken is None


@pytest.mark.parametrize("form", ["A", "B"])
@pytest.mark.parametrize("protection", KEPT_WITHOUT_NEED)
def test_no_promise_of_the_producer_needs(protection: str, form: str) -> None:
    """If this goes red the protection has become necessary: move it, and amend the decision record."""
    assert without(protection, form, faults=2).broken is None


def test_every_protection_is_switched_off_once() -> None:
    """A switch that no test touches proves nothing."""
    kept = {(producing, name) for name in KEPT_WITHOUT_NEED}
    needed = {(producing, row[0]) for row in NEEDED_TO_PRODUCE} | {
        (consuming, row[0]) for row in NEEDED_TO_CONSUME
    }
    switches = {(half, field.name) for half in (producing, consuming) for field in fields(half.Protections)}
    assert kept | needed == switches
    assert not kept & needed


@pytest.mark.parametrize("half", [producing, consuming], ids=["producing", "consuming"])
def test_the_code_that_the_model_names_exists(half: object) -> None:
    """An action that stands for renamed code would drift away from it."""
    named = [name for dotted in half.names.by_action.values() for name in dotted]  # type: ignore[attr-defined]
    assert named
    for name in named:
        pkgutil.resolve_name(name)


def test_the_page_shows_what_the_model_finds() -> None:
    """The story in docs/model.md is the real one, and the numbers are right."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "model.md").read_text(encoding="utf-8")
    assert f"```text\n{without('removal_not_after_late_verdict', 'B', 1)}\n```" in page
    assert f"{Consuming(consuming.Protections(), faults=4).explore().states:,} states" in page
