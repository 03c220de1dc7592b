"""How old a delivery is: by which clocks, of which producers."""

from __future__ import annotations

import pytest

from rmq_txn.consumer.aging import age_seconds
from rmq_txn.identity import PROPERTY_OWNER, PROPERTY_POSITION, PROPERTY_STAMP, PROPERTY_TXN_ID, new_txn_id
from rmq_txn.message import Delivery

NOW = 1_800_000_000.0
DAY = 86_400.0


def delivery(*, began: float, sent: float, stored: float, stamped: bool) -> Delivery:
    """Return a delivery with the times that its four clocks gave it."""
    properties = {PROPERTY_TXN_ID: new_txn_id(began), PROPERTY_POSITION: "0", PROPERTY_OWNER: "g@d"}
    if stamped:
        properties[PROPERTY_STAMP] = "00"
    return Delivery(
        topic="t",
        body=b"{}",
        message_id="m",
        born_milliseconds=int(sent * 1000),
        stored_milliseconds=int(stored * 1000),
        properties=properties,
    )


@pytest.mark.parametrize("wrong", [-30 * DAY, 30 * DAY])
def test_the_wall_clock_of_a_producer_makes_no_message_old(wrong: float) -> None:
    """Its ids go by its database, only the time of sending by itself."""
    fresh = delivery(began=NOW - 5, sent=NOW + wrong, stored=NOW - 5, stamped=True)
    assert age_seconds(fresh, NOW) == pytest.approx(5, abs=0.01)


def test_what_a_relay_publishes_again_is_as_old_as_its_transaction() -> None:
    """However new the message is: the inbox row of the first one may have been pruned."""
    again = delivery(began=NOW - 9 * DAY, sent=NOW - 5, stored=NOW - 5, stamped=True)
    assert age_seconds(again, NOW) == pytest.approx(9 * DAY, abs=0.01)


@pytest.mark.parametrize("wrong", [-30 * DAY, 30 * DAY])
def test_of_a_producer_of_an_older_version_only_the_difference_counts(wrong: float) -> None:
    """Both of its times go by the same clock, right or wrong."""
    again = delivery(began=NOW + wrong - 600, sent=NOW + wrong, stored=NOW - 5, stamped=False)
    assert age_seconds(again, NOW) == pytest.approx(605, abs=0.01)
