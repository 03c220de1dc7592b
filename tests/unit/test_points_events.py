"""What the demo's points service takes for an event, and what it rejects for good."""

from __future__ import annotations

import pytest

from demo_points_service.awards import Transferred
from rmq_txn import Delivery, Reject

TXN_ID = "0" * 32
OURS = {"rmq_txn_id": TXN_ID, "rmq_txn_n": "0"}


def delivery(body: bytes, properties: dict[str, str]) -> Delivery:
    """Return a delivery with this body."""
    return Delivery(topic="transfer", body=body, message_id="ID", properties=properties)


def test_an_event_is_read() -> None:
    """Every field that the service needs."""
    event = Transferred.of(delivery(b'{"transfer_id":"t","user_id":"alice","amount":250}', OURS))
    assert event == Transferred("t", "alice", 250, TXN_ID)


@pytest.mark.parametrize(
    ("body", "properties", "said"),
    [
        (b"{", OURS, "is not JSON"),
        (b"\xff", OURS, "is not JSON"),
        (b"[]", OURS, "is not a JSON object"),
        (b'{"transfer_id":"t","user_id":"alice"}', OURS, "lacks"),
        (b'{"transfer_id":"t","user_id":"alice","amount":0}', OURS, "lacks"),
        (b'{"transfer_id":"t","user_id":"alice","amount":true}', OURS, "lacks"),
        (b'{"transfer_id":"t","user_id":"alice","amount":250}', {}, "was not sent in a transaction"),
    ],
)
def test_what_never_becomes_an_event_is_rejected(body: bytes, properties: dict[str, str], said: str) -> None:
    """Parked at once: no later delivery of the same bytes can succeed."""
    with pytest.raises(Reject, match=said):
        Transferred.of(delivery(body, properties))
