"""What a transport promises of the life of its clients."""

from __future__ import annotations

import threading

import pytest

from rmq_txn.errors import BrokerUnavailableError, LifecycleError
from rmq_txn.identity import PROPERTY_TXN_ID
from rmq_txn.message import Delivery
from rmq_txn.testing.contract.desk import CLOSE_SECONDS, Desk, Script
from rmq_txn.testing.contract.scripts import ACK, COMMIT, UNKNOWN, commit, must_not_run
from rmq_txn.testing.waiting import until
from rmq_txn.transport import Check, ConsumerTransport, ProducerTransport, Transport
from rmq_txn.verdict import Answer, Verdict

LONG_DELIVERY_SECONDS = 3.0


class LifeContract:
    """See `TransportContract`."""

    def unreachable(self) -> Transport:
        """Return a transport of the same kind whose broker is not there."""
        raise NotImplementedError

    # -- life

    def test_a_started_client_is_known_to_its_brokers_and_another_of_its_group_is_not(
        self, desk: Desk
    ) -> None:
        """Asked about this very client; a topic that no broker has can't be asked about."""
        group = desk.new_group()
        # Not into the desk's records: in a group of its own it gets the messages of other tests once more.
        consumer = desk.new_consumer(lambda _delivery: ACK, group=group)
        until(lambda: consumer.is_registered(desk.topic), "the registration of the consumer")
        assert desk.producer.is_registered(desk.topic)
        strangers: tuple[ConsumerTransport | ProducerTransport, ...] = (
            desk.transport.consumer(group, {desk.topic: ["*"]}, 1, desk.answer_delivery),
            desk.transport.producer(desk.group, desk.answer_check),
        )
        known_ones: tuple[ConsumerTransport | ProducerTransport, ...] = (consumer, desk.producer)
        for known, stranger in zip(known_ones, strangers, strict=True):
            assert not stranger.is_registered(desk.topic)
            with pytest.raises(BrokerUnavailableError, match="missing"):
                known.is_registered(f"{desk.topic}-missing")

    def test_a_member_that_filters_is_told_to_the_others_of_its_group(self, desk: Desk) -> None:
        """Not to itself; one that wants everything is no filter."""
        group = desk.new_group()
        whole = desk.new_consumer(lambda _delivery: ACK, group=group)
        also_whole = desk.new_consumer(lambda _delivery: ACK, group=group)
        picky = desk.new_consumer(lambda _delivery: ACK, group=group, tags=["created", "paid"])
        for member in (whole, also_whole):
            until(member.filters, "the brokers know the one that filters")
            (found,) = member.filters()
            assert found.topic == desk.topic
            assert sorted(found.expression.split(" || ")) == ["created", "paid"]
        assert picky.filters() == ()

    def test_an_unreachable_broker_is_told_at_start(self) -> None:
        """By both kinds of client, in a few seconds."""
        transport = self.unreachable()
        producer = transport.producer("g-nobody", lambda _check: UNKNOWN)
        consumer = transport.consumer("c-nobody", {"nothing": ["*"]}, 1, lambda _delivery: ACK)
        with pytest.raises(BrokerUnavailableError):
            producer.start()
        with pytest.raises(BrokerUnavailableError):
            consumer.start()
        producer.close(CLOSE_SECONDS)
        consumer.close(0.0, CLOSE_SECONDS)

    def test_a_send_before_start_or_after_close_is_refused(self, desk: Desk) -> None:
        """The process goes on, and `execute` does not run."""
        producer = desk.transport.producer(desk.new_group(), desk.answer_check)
        with pytest.raises(LifecycleError):
            producer.send_half(desk.message(), must_not_run)
        with pytest.raises(LifecycleError):
            producer.send_plain(desk.message(), "NEVER")
        started = desk.new_silent_producer(group=desk.new_group())
        started.send_half(desk.message(), commit)
        started.close(CLOSE_SECONDS)
        with pytest.raises(LifecycleError):
            started.send_half(desk.message(), must_not_run)
        with pytest.raises(LifecycleError):
            started.send_plain(desk.message(), "NEVER")

    def test_closing_is_idempotent(self, desk: Desk) -> None:
        """Twice, and without a start."""
        producer, consumer = (
            desk.new_silent_producer(group=desk.new_group()),
            desk.new_consumer(group=desk.new_group()),
        )
        for _ in range(2):
            producer.close(CLOSE_SECONDS)
            consumer.close(0.0, CLOSE_SECONDS)
        desk.transport.producer(desk.new_group(), desk.answer_check).close(CLOSE_SECONDS)
        desk.transport.consumer(desk.new_group(), {desk.topic: ["*"]}, 1, desk.answer_delivery).close(
            0.0, CLOSE_SECONDS
        )

    def test_a_closing_producer_ends_its_check_and_leaves_the_rest_to_another_of_its_group(
        self, desk: Desk
    ) -> None:
        """The running check is waited for; those behind it are answered UNKNOWN, and asked elsewhere."""
        group, closed, entered = desk.new_group(), threading.Event(), threading.Event()
        asked: list[Check] = []
        still_open: list[bool] = []

        def slow(check: Check) -> Verdict:
            asked.append(check)
            entered.set()
            still_open.append(not closed.wait(1.0))
            return UNKNOWN

        first = desk.new_producer(slow, group=group)
        messages = [desk.message(on_check=Script(COMMIT)) for _ in range(4)]
        for message in messages:
            first.send_half(message, Script(UNKNOWN))
        assert entered.wait(desk.features.check_within_seconds)
        first.close(CLOSE_SECONDS)
        closed.set()
        assert still_open == [True], "close returned before its check had ended, or more checks ran"
        assert not any(map(desk.deliveries_of, messages))
        desk.new_producer(group=group)
        desk.wait_asked(*messages)
        desk.wait_delivered(*messages)
        assert len(asked) == 1

    def test_a_closing_consumer_ends_its_delivery_and_gives_the_rest_back(self, desk: Desk) -> None:
        """The running one is waited for; those behind it reach the next consumer of the group."""
        group, closed = desk.new_group(), threading.Event()
        entered, closing = threading.Event(), threading.Event()
        still_open: list[bool] = []
        handled: list[str] = []
        by_next: list[str] = []

        def slow(delivery: Delivery) -> Answer:
            if delivery.tag != "slow":
                return ACK
            entered.set()
            closing.wait(CLOSE_SECONDS)
            # Longer than a client may take to stop when nothing runs: that is no waiting.
            still_open.append(not closed.wait(LONG_DELIVERY_SECONDS))
            handled.append(delivery.properties[PROPERTY_TXN_ID])
            return ACK

        def quick(delivery: Delivery) -> Answer:
            by_next.append(delivery.properties[PROPERTY_TXN_ID])
            return ACK

        first = desk.new_consumer(slow, threads=1, group=group)
        messages = [desk.message(tag="slow") for _ in range(6)]
        for message in messages:
            desk.send(message)
        assert entered.wait(desk.features.delivery_within_seconds)
        closing.set()
        first.close(0.0, CLOSE_SECONDS)
        closed.set()
        desk.new_consumer(quick, group=group)
        wanted = {message.properties[PROPERTY_TXN_ID] for message in messages}
        until(
            lambda: wanted <= {*handled, *by_next},
            "every message handled",
            desk.features.redelivery_within_seconds,
        )
        assert still_open == [True], "close returned before its delivery had ended, or more were handled"
        assert not set(handled) & set(by_next), "an acknowledged delivery came back"

    def test_a_closing_consumer_handles_what_is_already_here_while_it_drains(self, desk: Desk) -> None:
        """Giving back costs a redelivery, and the next consumer ten seconds."""
        entered, closing = threading.Event(), threading.Event()
        handled: list[Delivery] = []

        def deliver(delivery: Delivery) -> Answer:
            if delivery.tag == "drained":
                entered.set()
                closing.wait(CLOSE_SECONDS)
                handled.append(delivery)
            return ACK

        for _ in range(12):  # there before the consumer is, so that a pull brings several
            desk.send(desk.message(tag="drained"))
        consumer = desk.new_consumer(deliver, threads=1, group=desk.new_group())
        assert entered.wait(desk.features.delivery_within_seconds)
        threading.Timer(0.2, closing.set).start()
        consumer.close(CLOSE_SECONDS, CLOSE_SECONDS)
        assert len(handled) > 1
