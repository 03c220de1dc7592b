"""What `rmq-txn status` makes of the numbers; the real servers are in tests/integration/test_status.py."""

from __future__ import annotations

import pytest

from rmq_txn.identity import dedup_key, foreign_dedup_key, former_dedup_key, new_txn_id
from rmq_txn.operating import status
from rmq_txn.producer.outbox import OutboxCount
from rmq_txn.pruning import Growth

AT = 1_700_000_000.0


@pytest.mark.parametrize(("oldest", "late"), [(840.0, False), (841.0, True)])
def test_an_outbox_is_judged_by_its_oldest_copy(oldest: float, late: bool) -> None:
    line = status.of_outbox(OutboxCount(3, oldest), 840.0)
    assert line.text.startswith(f"3 copies, the oldest {oldest:.0f} s old, normal is up to 840 s")
    assert line.needs_a_person is late
    assert ("does a producer" in line.text) is late


def test_the_log_tells_outcomes_and_since_when() -> None:
    line = status.of_log({1: (97, new_txn_id(AT)), 2: (3, new_txn_id(AT + 5))})
    assert line.text == (
        "of the newest 100 transactions, since 2023-11-14T22:13:20Z: 97 committed, 3 rolled back by a "
        "check-back, 0 open"
    )
    assert not line.needs_a_person
    assert not status.of_log({}).needs_a_person


def test_an_open_row_is_named() -> None:
    first = new_txn_id(AT)
    line = status.of_log({0: (1, first), 1: (9, new_txn_id(AT))})
    assert line.needs_a_person
    assert f"rmq-txn explain {first}" in line.text


def test_what_is_parked_needs_a_person_and_what_fails_does_not() -> None:
    assert not status.of_parked("g", {False: (2, AT)}).needs_a_person
    line = status.of_parked("g", {True: (1, AT), False: (2, AT)})
    assert line.needs_a_person
    assert "1 parked, 2 failing" in line.text
    assert "2023-11-14T22:13:20Z" in line.text
    assert "rmq-txn parked list --group g" in line.text


@pytest.mark.parametrize(("waiting", "members", "alone"), [(0, 0, False), (5, 1, False), (5, 0, True)])
def test_what_waits_needs_a_member(waiting: int, members: int, alone: bool) -> None:
    line = status.lag("g", ["a", "b"], waiting, members)
    assert line.needs_a_person is alone
    assert line.text.startswith(f"group g: {waiting} messages of a, b wait, {members} members are online")


def test_a_group_with_dedup_keys_of_its_own_has_no_known_topic() -> None:
    assert status.topics_of(["order-7", "a/b", former_dedup_key(new_txn_id(), 0)]) == ()
    assert "not known" in status.lag("g", (), 0, 0).text


def test_topics_are_read_from_our_dedup_keys() -> None:
    """A topic that is too long for a key is only a digest there."""
    keys = [dedup_key(new_txn_id(), n, topic, "g@d") for n, topic in enumerate(["b", "a", "x" * 200])]
    assert status.topics_of([*keys, foreign_dedup_key("other", "ID")]) == ("a", "b")


def test_growth_is_told_in_rows_and_mebibytes() -> None:
    line = status.of_growth(Growth("rmq_txn_log", 8_640_000, 2**30))
    assert line.text == "rmq_txn_log gets 8640000 rows a day, 1024 MiB, by the last hour"
