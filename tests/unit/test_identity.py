"""Transaction ids, owners and keys."""

from __future__ import annotations

import time
from unittest import mock

import pytest

from rmq_txn import identity
from rmq_txn.identity import (
    age_seconds,
    dedup_key,
    foreign_dedup_key,
    former_dedup_key,
    is_position,
    is_txn_id,
    new_txn_id,
    owner_of,
)


def test_an_id_is_32_hex_characters() -> None:
    """What the log row's column and the message property hold."""
    txn_id = new_txn_id()
    assert len(txn_id) == 32
    assert int(txn_id, 16) >= 0
    assert is_txn_id(txn_id)


def test_ids_differ_even_in_the_same_millisecond() -> None:
    """80 random bits."""
    with mock.patch.object(time, "time_ns", return_value=1_700_000_000_000_000_000):
        ids = {new_txn_id() for _ in range(2_000)}
    assert len(ids) == 2_000
    assert {txn_id[:12] for txn_id in ids} == {f"{1_700_000_000_000:012x}"}


def test_ids_of_later_milliseconds_sort_later() -> None:
    """Rows are inserted at the right edge of the B-tree; pruning is a key range."""
    made = []
    for milliseconds in (1, 999, 1_700_000_000_000, 1_700_000_000_001, 2**47):
        with mock.patch.object(time, "time_ns", return_value=milliseconds * 1_000_000):
            made.append(new_txn_id())
    assert made == sorted(made)
    assert all(map(is_txn_id, made))


@pytest.mark.parametrize(
    "text", ["", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "0" * 32 + "\n", "0" * 31 + "é", "٣" * 32]
)
def test_what_is_not_exactly_an_id_is_none(text: str) -> None:
    """It comes from the wire."""
    assert not is_txn_id(text)


def test_age_is_counted_from_the_milliseconds_in_the_id() -> None:
    """And negative when the clock of the sender is ahead."""
    txn_id = f"{1_700_000_000_000:012x}" + "0" * 20
    with mock.patch.object(identity.time, "time", return_value=1_700_000_010.5):
        assert age_seconds(txn_id) == pytest.approx(10.5)
    with mock.patch.object(identity.time, "time", return_value=1_699_999_999.0):
        assert age_seconds(txn_id) == pytest.approx(-1.0)


def test_a_fresh_id_is_seconds_old_at_most() -> None:
    """Maker and reader agree on the unit."""
    assert -0.1 < age_seconds(new_txn_id()) < 5


@pytest.mark.parametrize("text", ["0", "1", "31", "9999"])
def test_a_position_is_a_short_decimal_number(text: str) -> None:
    """More than any transaction can have."""
    assert is_position(text)


@pytest.mark.parametrize(
    "text", ["", "00", "01", "-1", "+1", "1 ", "1\n", "1e3", "10000", "٣", "²", "9" * 5000]
)
def test_a_position_has_one_spelling(text: str) -> None:
    """Else one message would have two dedup keys, or a key of any length."""
    assert not is_position(text)


def test_owner_and_key_are_made_of_their_parts() -> None:
    """Both are stored; a change of form would orphan what is stored."""
    assert owner_of("account-service", "6f1c") == "account-service@6f1c"
    assert (
        dedup_key("a" * 32, 0, "transfer", "account-service@6f1c")
        == f"{'a' * 32}.0/transfer/c66a472c96a67a93"
    )
    assert former_dedup_key("a" * 32, 0) == "a" * 32 + ".0"
    assert foreign_dedup_key("orders", "AC10") == "orders/AC10"
