"""What a transport promises of deliveries."""

from __future__ import annotations

import threading

from rmq_txn.message import Delivery
from rmq_txn.testing.contract.desk import Desk, Script
from rmq_txn.testing.contract.scripts import ACK, COMMIT, RETRY
from rmq_txn.testing.waiting import until
from rmq_txn.verdict import Answer


class DeliveryContract:
    """See `TransportContract`."""

    # -- deliveries

    def test_an_acknowledged_delivery_does_not_come_back(self, desk: Desk) -> None:
        """Another one, sent with it and refused twice, does."""
        acked, refused = desk.message(), desk.message(on_delivery=Script(RETRY, RETRY, ACK))
        desk.send(acked)
        desk.send(refused)
        desk.wait_redelivered(refused, times=2)
        assert len(desk.deliveries_of(acked)) == 1

    def test_a_refused_delivery_takes_no_other_with_it(self, desk: Desk) -> None:
        """A consumer that finds a backlog pulls several at once; only the refused one comes back."""
        got: list[tuple[bytes, int]] = []

        def deliver(delivery: Delivery) -> Answer:
            if delivery.tag != "backlog":
                return Answer.ACK
            got.append((delivery.body, delivery.redeliveries))
            return Answer.RETRY if delivery.body == b"0" and delivery.redeliveries < 3 else Answer.ACK

        for n in range(24):
            desk.send(desk.message(b"%d" % n, tag="backlog"))
        desk.new_consumer(deliver, group=desk.new_group())
        until(lambda: (b"0", 3) in got and len({body for body, _ in got}) == 24, "all are handled", 60)
        assert {body for body, redeliveries in got if redeliveries and body != b"0"} == set()

    def test_a_delivery_without_a_proper_answer_comes_back(self, desk: Desk) -> None:
        """It raised, or was answered with what is no answer; the message is the same again."""
        first = [ValueError("handler"), KeyboardInterrupt(), SystemExit(0)]
        nonsense = [None, True, False, 0, 1, "ack", COMMIT]
        messages = [
            desk.message(b"again", key="k", on_delivery=Script(answer, ACK)) for answer in [*first, *nonsense]
        ]
        messages.append(desk.message(b"again", key="k", on_delivery=Script(RETRY, ACK)))
        for message in messages:
            desk.send(message)
        desk.wait_redelivered(*messages)
        for message in messages:
            one, two = desk.deliveries_of(message)[:2]
            assert (one.topic, one.message_id, one.body, one.key) == (
                two.topic,
                two.message_id,
                two.body,
                two.key,
            )
            assert one.properties == two.properties
            assert (one.redeliveries, two.redeliveries) == (0, 1)

    def test_a_consumer_gets_the_tags_it_asked_for(self, desk: Desk) -> None:
        """Several tags of one topic; others pass it by."""
        got: list[str | None] = []

        def deliver(delivery: Delivery) -> Answer:
            got.append(delivery.tag)
            return ACK

        desk.new_consumer(deliver, tags=("red", "blue"), group=desk.new_group())
        for tag in ("red", "green", "blue", None, "red"):
            desk.send(desk.message(tag=tag))
        until(lambda: len(got) >= 3, "three deliveries", desk.features.delivery_within_seconds)
        last = desk.message(tag="blue")
        desk.send(last)
        desk.wait_delivered(last)
        until(lambda: len(got) >= 4, "the last delivery", desk.features.delivery_within_seconds)
        assert sorted(map(str, got)) == ["blue", "blue", "red", "red"]

    def test_as_many_deliveries_as_threads_are_handled_at_once(self, desk: Desk) -> None:
        """Two are inside together, and a third does not join them while the broker delivers others."""
        lock, may_leave = threading.Lock(), threading.Event()
        inside = most = 0

        def deliver(delivery: Delivery) -> Answer:
            nonlocal inside, most
            if delivery.tag == "meet":
                with lock:
                    inside += 1
                    most = max(most, inside)
                may_leave.wait(desk.features.delivery_within_seconds)
                with lock:
                    inside -= 1
            return ACK

        desk.new_consumer(deliver, threads=2, group=desk.new_group())
        # A pull is one task of one thread, and brings one queue: many messages fill several queues.
        for _ in range(12):
            desk.send(desk.message(tag="meet"))
        until(lambda: most >= 2, "two at once", desk.features.delivery_within_seconds)
        later = [desk.message() for _ in range(4)]  # to another group: time in which a third would come
        for message in later:
            desk.send(message)
        desk.wait_delivered(*later)
        may_leave.set()
        assert most == 2

    def test_lag_counts_what_waits_for_the_group_and_its_position_grows_as_it_consumes(
        self, desk: Desk
    ) -> None:
        """A message that is being handled waits still: it may come again."""
        may_answer = threading.Event()

        def deliver(_delivery: Delivery) -> Answer:
            may_answer.wait(60)
            return ACK

        consumer = desk.new_consumer(deliver, threads=1, group=desk.new_group())
        seconds = desk.features.delivery_within_seconds
        before = consumer.lag()
        try:
            for _ in range(3):
                desk.send(desk.message(tag="lag"))
            until(lambda: consumer.lag().messages >= 3, "three messages wait", seconds)
        finally:
            may_answer.set()
        until(lambda: consumer.lag().messages == 0, "none waits", seconds)
        assert consumer.lag().position >= before.position + 3
