"""Broken wrappers of any transport: each breaks one promise, and names the test that must turn red."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from rmq_txn.errors import InvalidMessageError, LifecycleError
from rmq_txn.message import Delivery, Outbound
from rmq_txn.testing.contract import Desk, TransportContract
from rmq_txn.transport import (
    Check,
    Checker,
    ConsumerTransport,
    Deliver,
    Execute,
    ProducerTransport,
    Transport,
)
from rmq_txn.verdict import Answer, Verdict


class Faulty:
    """A transport, broken in one place. Without a fault it changes nothing."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner

    def producer(self, group: str, check: Checker) -> ProducerTransport:
        """See Transport."""
        return FaultyProducer(self, self._inner.producer(group, self.check(check)))

    def consumer(
        self, group: str, subscriptions: Mapping[str, Sequence[str]], threads: int, deliver: Deliver
    ) -> ConsumerTransport:
        """See Transport."""
        return self._inner.consumer(group, subscriptions, threads, self.deliver(deliver))

    def check(self, check: Checker) -> Checker:
        """Change how questions are answered."""
        return check

    def deliver(self, deliver: Deliver) -> Deliver:
        """Change how deliveries are handed over."""
        return deliver

    def send(self, producer: ProducerTransport, message: Outbound, execute: Execute) -> None:
        """Change how half messages are sent."""
        producer.send_half(message, execute)

    def send_plain(self, producer: ProducerTransport, message: Outbound, message_id: str) -> None:
        """Change how plain messages are sent."""
        producer.send_plain(message, message_id)

    def is_published(self, producer: ProducerTransport, message: Outbound, message_id: str) -> bool:
        """Change what is said to be there."""
        return producer.is_published(message, message_id)


class FaultyProducer:
    """Sends through its transport's `send`."""

    def __init__(self, transport: Faulty, inner: ProducerTransport) -> None:
        self._transport, self._inner = transport, inner

    def start(self, topics: Sequence[str] = ()) -> None:
        """See ProducerTransport."""
        self._inner.start(topics)

    def send_half(self, message: Outbound, execute: Execute) -> None:
        """See ProducerTransport."""
        self._transport.send(self._inner, message, execute)

    def send_plain(self, message: Outbound, message_id: str) -> None:
        """See ProducerTransport."""
        self._transport.send_plain(self._inner, message, message_id)

    def is_published(self, message: Outbound, message_id: str) -> bool:
        """See ProducerTransport."""
        return self._transport.is_published(self._inner, message, message_id)

    def is_registered(self, topic: str) -> bool:
        """See ProducerTransport."""
        return self._inner.is_registered(topic)

    @property
    def instance(self) -> str:
        """See ProducerTransport."""
        return self._inner.instance

    def registered_clients(self, topic: str) -> Mapping[str, frozenset[str]]:
        """See ProducerTransport."""
        return self._inner.registered_clients(topic)

    def close(self, timeout_seconds: float) -> None:
        """See ProducerTransport."""
        self._inner.close(timeout_seconds)


class SwallowsWhatExecuteRaises(Faulty):
    """As the vendor's client does: the caller sees success."""

    def send(self, producer: ProducerTransport, message: Outbound, execute: Execute) -> None:
        """Send and forget."""
        with suppress(ValueError, KeyboardInterrupt, SystemExit):
            producer.send_half(message, execute)


class CallsExecuteTwice(Faulty):
    """A retry that runs the local transaction again."""

    def send(self, producer: ProducerTransport, message: Outbound, execute: Execute) -> None:
        """Run it twice."""

        def twice(message_id: str) -> Verdict:
            execute(message_id)
            return execute(message_id)

        producer.send_half(message, twice)


class RunsExecuteOnAnotherThread(Faulty):
    """The caller's connection and context are not there."""

    def send(self, producer: ProducerTransport, message: Outbound, execute: Execute) -> None:
        """Run it elsewhere."""

        def elsewhere(message_id: str) -> Verdict:
            verdicts: list[Verdict] = []
            thread = threading.Thread(target=lambda: verdicts.append(execute(message_id)))
            thread.start()
            thread.join()
            return verdicts[0]

        producer.send_half(message, elsewhere)


class TakesFalseForCommit(Faulty):
    """As the native client does: False is 0 is COMMIT."""

    def send(self, producer: ProducerTransport, message: Outbound, execute: Execute) -> None:
        """Turn every falsy answer into COMMIT."""
        producer.send_half(message, lambda message_id: execute(message_id) or Verdict.COMMIT)


class CommitsWhatWasRolledBack(Faulty):
    """The phantom message."""

    def send(self, producer: ProducerTransport, message: Outbound, execute: Execute) -> None:
        """Ignore ROLLBACK."""

        def committed(message_id: str) -> Verdict:
            execute(message_id)
            return Verdict.COMMIT

        producer.send_half(message, committed)


class DeliversBeforeTheVerdict(Faulty):
    """Half messages that are no half messages: stored as committed, then executed."""

    def send(self, producer: ProducerTransport, message: Outbound, execute: Execute) -> None:
        """Commit first, and run the local transaction after that."""
        ids: list[str] = []

        def committed(message_id: str) -> Verdict:
            ids.append(message_id)
            return Verdict.COMMIT

        producer.send_half(message, committed)
        execute(ids[0])


class SendsAfterClose(Faulty):
    """Accepts silently what it can't send."""

    def send(self, producer: ProducerTransport, message: Outbound, execute: Execute) -> None:
        """Pretend."""
        with suppress(LifecycleError):
            producer.send_half(message, execute)


class SendsPlainMessagesUnderANewId(Faulty):
    """As a client does that makes an id for each send."""

    def send_plain(self, producer: ProducerTransport, message: Outbound, message_id: str) -> None:
        """Change the id."""
        producer.send_plain(message, message_id + "-")


class ShowsWhatHasTheSameId(Faulty):
    """Then whoever repeats an id makes a message vanish."""

    def is_published(self, producer: ProducerTransport, message: Outbound, message_id: str) -> bool:
        """Look for what the suite sent under that id, whatever is asked for."""
        return any(
            producer.is_published(dataclasses.replace(message, body=body), message_id)
            for body in (message.body, b"theirs")
        )


class ShowsHalfMessages(Faulty):
    """As one that looks for an id anywhere."""

    def is_published(self, producer: ProducerTransport, message: Outbound, message_id: str) -> bool:
        """Say yes."""
        return True


class TakesARefusalForSuccess(Faulty):
    """Then a message is lost without a word."""

    def send_plain(self, producer: ProducerTransport, message: Outbound, message_id: str) -> None:
        """Say nothing."""
        with suppress(InvalidMessageError):
            producer.send_plain(message, message_id)


class NeverChecksBack(Faulty):
    """Every question is answered UNKNOWN without asking."""

    def check(self, check: Checker) -> Checker:
        """Ask nobody."""
        return lambda _question: Verdict.UNKNOWN


class GivesAnotherIdInACheck(Faulty):
    """Then no log row ever proves a commit."""

    def check(self, check: Checker) -> Checker:
        """Change the id."""
        return lambda question: check(Check(question.message_id.lower() + "-", question.properties))


class AcknowledgesFailedDeliveries(Faulty):
    """As the vendor's client may: what raises counts as success."""

    def deliver(self, deliver: Deliver) -> Deliver:
        """Swallow and acknowledge."""

        def acknowledged(delivery: Delivery) -> Answer:
            with suppress(ValueError, KeyboardInterrupt, SystemExit):
                deliver(delivery)
            return Answer.ACK

        return acknowledged


class RedeliversAcknowledged(Faulty):
    """The first ACK of each message is lost."""

    def deliver(self, deliver: Deliver) -> Deliver:
        """Lose it."""
        seen: set[str] = set()

        def again(delivery: Delivery) -> Answer:
            answer = deliver(delivery)
            if delivery.message_id in seen:
                return answer
            seen.add(delivery.message_id)
            return Answer.RETRY

        return again


def _changed(change: Callable[[Delivery], dict[str, Any]]) -> Callable[[Faulty, Deliver], Deliver]:
    """Make a `deliver` that changes each delivery."""

    def deliver_(_self: Faulty, deliver: Deliver) -> Deliver:
        return lambda delivery: deliver(dataclasses.replace(delivery, **change(delivery)))

    return deliver_


class TruncatesBodiesAtNul(Faulty):
    """As the C function does."""

    deliver = _changed(lambda delivery: {"body": delivery.body.split(b"\x00")[0]})


class LosesUserProperties(Faulty):
    """Only ours are left."""

    deliver = _changed(
        lambda delivery: {
            "properties": {k: v for k, v in delivery.properties.items() if k.startswith("rmq_txn_")}
        }
    )


class DeliversUnderAnotherId(Faulty):
    """The broker's storage id in the place of the producer's."""

    deliver = _changed(lambda delivery: {"message_id": delivery.message_id + "-"})


Test = Callable[[Desk], None]
SUITE = TransportContract()


def body_test(desk: Desk) -> None:
    """Be one case of the parametrised test."""
    SUITE.test_a_body_arrives_byte_for_byte(desk, b"a\x00b\x00")


FAULTS: list[tuple[type[Faulty], Test, str]] = [
    (
        SwallowsWhatExecuteRaises,
        SUITE.test_what_execute_raises_arrives_unchanged_and_the_verdict_is_unknown,
        "DID NOT RAISE ValueError",
    ),
    (
        CallsExecuteTwice,
        SUITE.test_execute_runs_once_on_the_calling_thread_before_the_send_returns,
        "Left contains one more item",
    ),
    (
        RunsExecuteOnAnotherThread,
        SUITE.test_execute_runs_once_on_the_calling_thread_before_the_send_returns,
        "lost",
    ),
    (
        TakesFalseForCommit,
        SUITE.test_what_is_no_verdict_is_refused_and_counts_as_unknown,
        "DID NOT RAISE any of",
    ),
    (
        CommitsWhatWasRolledBack,
        SUITE.test_a_rolled_back_message_is_never_delivered,
        r"assert not True(.|\n)*deliveries_of",
    ),
    (
        DeliversBeforeTheVerdict,
        SUITE.test_a_half_message_is_not_delivered_before_its_verdict,
        r"assert not \[Delivery",
    ),
    (
        SendsAfterClose,
        SUITE.test_a_send_before_start_or_after_close_is_refused,
        "DID NOT RAISE LifecycleError",
    ),
    (
        SendsPlainMessagesUnderANewId,
        SUITE.test_a_plain_message_arrives_as_its_half_message_did,
        "assert Delivery",
    ),
    (
        TakesARefusalForSuccess,
        SUITE.test_a_plain_message_that_is_refused_is_told_from_a_broker_that_is_away,
        "DID NOT RAISE InvalidMessageError",
    ),
    (
        ShowsWhatHasTheSameId,
        SUITE.test_what_only_has_the_id_of_a_message_is_not_it,
        "assert not True",
    ),
    (
        ShowsHalfMessages,
        SUITE.test_a_message_that_consumers_see_is_shown_whichever_way_it_came,
        "assert not True",
    ),
    (
        NeverChecksBack,
        SUITE.test_a_message_of_unknown_fate_is_asked_about_and_gets_the_answer,
        "2 messages asked about",
    ),
    (
        GivesAnotherIdInACheck,
        SUITE.test_a_message_of_unknown_fate_is_asked_about_and_gets_the_answer,
        r"assert Check\(",
    ),
    (
        AcknowledgesFailedDeliveries,
        SUITE.test_a_delivery_without_a_proper_answer_comes_back,
        "11 messages delivered 2",
    ),
    (RedeliversAcknowledged, SUITE.test_an_acknowledged_delivery_does_not_come_back, r"assert \d == 1"),
    (TruncatesBodiesAtNul, body_test, r"assert b'a' == b'a\\x00b"),
    (LosesUserProperties, SUITE.test_topic_id_key_tag_and_properties_arrive, "名字"),
    (DeliversUnderAnotherId, SUITE.test_topic_id_key_tag_and_properties_arrive, "At index 1 diff"),
]
QUICK = [
    SUITE.test_execute_runs_once_on_the_calling_thread_before_the_send_returns,
    SUITE.test_a_rolled_back_message_is_never_delivered,
    SUITE.test_a_half_message_is_not_delivered_before_its_verdict,
    SUITE.test_a_send_before_start_or_after_close_is_refused,
    SUITE.test_an_acknowledged_delivery_does_not_come_back,
    SUITE.test_topic_id_key_tag_and_properties_arrive,
    body_test,
]
