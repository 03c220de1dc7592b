"""What the demo page is told of a transaction and of a delivery: by the steps themselves, by no log line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest

from demo_chassis.events import Events
from demo_chassis.faults import DELIVER_TWICE, SLOW_CHECK_BACK, AccountFaults, PointsFaults
from demo_chassis.watching import WatchedConsumer, _ConsumerSteps, _ProducerSteps, _Runs
from rmq_txn import Database, Delivery
from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.message import Outbound
from rmq_txn.telemetry import Telemetry
from rmq_txn.transport import Check
from rmq_txn.verdict import Answer, Verdict
from tests.unit.fakes import URL

TXN_ID = "0" * 32
DELIVERY = Delivery(
    topic="transfer",
    body=b"{}",
    message_id="M",
    key="t-1",
    redeliveries=3,
    properties={"rmq_txn_id": TXN_ID, "rmq_txn_n": "0", "rmq_txn_owner": "g@d"},
)
MESSAGE = Outbound(topic="transfer", body=b"{}", key="t-1", tag=None, properties={"rmq_txn_id": "x1"})


class Points:
    """The consumer's side, with a handler that runs as often as it is told."""

    def __init__(self, folder: Path) -> None:
        self.events = Events("points", folder / "events.jsonl")
        self.faults = PointsFaults(folder / "faults.json", self.events)
        self.runs = _Runs()
        self.steps = _ConsumerSteps(self.events, self.faults, self.runs)

    def deliver(self, answer: Answer, *runs: type[Exception] | None) -> Answer:
        """Deliver once; the handler runs once for each of `runs`, and raises it, or returns."""

        def handle(_delivery: Delivery) -> Answer:
            for error in runs:
                with suppress(*filter(None, runs)), self.runs.one():
                    if error is not None:
                        raise error
            return answer

        return self.steps.deliver("g", DELIVERY, handle)

    def told(self) -> list[str]:
        """Return the steps so far, with the number of the attempt where there is one."""
        return [
            event["step"] + (f" {event['detail']['attempts']}" if "attempts" in event["detail"] else "")
            for event in self.events.after(0)
        ]


@pytest.mark.parametrize(
    ("answer", "runs", "step"),
    [
        (Answer.ACK, [None], ["committed", "acked"]),
        (Answer.ACK, [], ["skipped", "acked"]),
        (Answer.RETRY, [ValueError], ["failed 1", "given_back"]),
        (Answer.ACK, [ValueError], ["parked 1", "acked"]),
        (Answer.RETRY, [], ["given_back"]),
        # A lock error, and the same transaction again, on the same delivery.
        (Answer.ACK, [ValueError, None], ["committed", "acked"]),
        # The handler returned, and the database went away before the COMMIT.
        (Answer.RETRY, [None], ["given_back"]),
    ],
)
def test_what_became_of_a_delivery_is_told(
    tmp_path: Path, answer: Answer, runs: list[type[Exception] | None], step: list[str]
) -> None:
    """By how the handler ended last, and by the answer."""
    points = Points(tmp_path)
    assert points.deliver(answer, *runs) is answer
    assert points.told() == ["delivered", *step]
    assert {(event["txn_id"], event["transfer_id"]) for event in points.events.after(0)} == {(TXN_ID, "t-1")}


def test_failures_are_counted_across_processes_and_a_duplicate_is_no_run_of_before(tmp_path: Path) -> None:
    """Each is the next attempt, also after a kill; what the delivery before left behind tells nothing."""
    points = Points(tmp_path)
    points.deliver(Answer.RETRY, ValueError)
    points = Points(tmp_path)
    points.deliver(Answer.RETRY, ValueError)
    points.deliver(Answer.ACK, ValueError)
    points.deliver(Answer.ACK)
    assert [step for step in points.told() if step not in ("delivered", "acked", "given_back")] == [
        *("failed 1", "failed 2", "parked 3", "skipped"),
    ]


def test_a_withheld_ack_is_told_after_the_commit(tmp_path: Path) -> None:
    """Once; the redelivery is acknowledged."""
    points = Points(tmp_path)
    points.faults.arm(DELIVER_TWICE, "t-1")
    assert points.deliver(Answer.ACK, None) is Answer.RETRY
    assert points.deliver(Answer.ACK) is Answer.ACK
    assert points.told() == ["delivered", "committed", "ack_withheld", "delivered", "skipped", "acked"]


def test_what_a_handler_returns_reaches_the_consumer(tmp_path: Path) -> None:
    """rmq_txn refuses work that was returned without having run; the demo must not hide it."""
    points = Points(tmp_path)
    database = Database.mysql(URL)
    consumer = WatchedConsumer(
        name_server="127.0.0.1:1",
        telemetry=Telemetry(),
        events=points.events,
        faults=points.faults,
        group="g",
        database=database,
    )
    returned: Callable[..., object] = Mock(return_value="a coroutine")
    registered: list[Callable[..., object]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmq_txn.IdempotentConsumer.handles", lambda *_: registered.append)
        consumer.handles("transfer")(returned)
    assert registered[0](Mock(), DELIVERY) == "a coroutine"
    assert points.told() == ["inbox_row", "handler"]


def producer_steps() -> tuple[Events, AccountFaults, _ProducerSteps]:
    """Make the producer's side."""
    events = Events("account", None)
    faults = AccountFaults(None, events)
    return events, faults, _ProducerSteps(events, faults)


def test_a_transaction_is_told_in_its_order_and_a_lost_verdict_as_lost() -> None:
    """The broker is told UNKNOWN in place of COMMIT; then it asks."""
    events, faults, steps = producer_steps()
    faults.arm(SLOW_CHECK_BACK, "t-1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("demo_chassis.faults.SLOW_SECONDS", 0.0)
        for _ in range(2):
            told = steps.execute("g", MESSAGE, "M", lambda _id: Verdict.COMMIT)
            steps.ended("g", MESSAGE, "M", told)
        steps.check("g", Check("M", {"rmq_txn_id": "x1"}), lambda _question: Verdict.COMMIT)
    assert [event["step"] for event in events.after(0)] == [
        *("half_stored", "committed", "verdict_unknown"),
        *("half_stored", "committed", "message_committed"),
        *("check_asked", "check_answered"),
    ]


def test_a_refused_half_message_is_told() -> None:
    """And raised as it came."""
    events, _faults, steps = producer_steps()
    with pytest.raises(BrokerUnavailableError):
        steps.send_half("g", MESSAGE, Mock(side_effect=BrokerUnavailableError("away")))
    assert [event["step"] for event in events.after(0)] == ["half_refused"]
