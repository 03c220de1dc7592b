"""
The promises of `rmq_txn.transport` as tests. A transport runs them by subclassing `TransportContract`.

The fixture `desk` (conftest.py) makes one started producer client and one consumer client of the
module's fixture `transport`; messages carry their own scripts, so tests share them.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rmq_txn.errors import BrokerUnavailableError, InvalidMessageError, LifecycleError
from rmq_txn.identity import PROPERTY_TXN_ID, new_txn_id
from rmq_txn.message import Delivery, Message
from rmq_txn.transport import Check, Transport
from rmq_txn.verdict import Answer, Verdict
from tests.contract.desk import CLOSE_SECONDS, OWNER, Desk, Features, Script
from tests.kit.wait import until

COMMIT, ROLLBACK, UNKNOWN = Verdict.COMMIT, Verdict.ROLLBACK, Verdict.UNKNOWN
ACK, RETRY = Answer.ACK, Answer.RETRY
LONG_DELIVERY_SECONDS = 3.0


def commit(_message_id: str) -> Verdict:
    """Be the local transaction that commits."""
    return COMMIT


def must_not_run(_message_id: str) -> Verdict:
    """Be the local transaction that must not run."""
    raise AssertionError("execute was called")


class TransportContract:
    """One test for each promise. Subclass it, name the subclass Test..., and set `features`."""

    features = Features()

    def unreachable(self) -> Transport:
        """Return a transport of the same kind whose broker is not there."""
        raise NotImplementedError

    # -- verdicts

    def test_a_half_message_is_not_delivered_before_its_verdict(self, desk: Desk) -> None:
        """Another one, sent later and committed, arrives while the first is still undecided."""
        held, later = desk.message(), desk.message()

        def execute(_message_id: str) -> Verdict:
            desk.send(later)
            desk.wait_delivered(later)
            assert not desk.deliveries_of(held)
            return COMMIT

        desk.producer.send_half(held, execute)
        desk.wait_delivered(held)

    def test_a_rolled_back_message_is_never_delivered(self, desk: Desk) -> None:
        """Those committed after it arrive, on every queue of the topic."""
        rolled_back = [desk.message() for _ in range(4)]
        for message in rolled_back:
            desk.send(message, ROLLBACK)
        later = [desk.message() for _ in range(8)]
        for message in later:
            desk.send(message)
        desk.wait_delivered(*later)
        assert not any(map(desk.deliveries_of, rolled_back))

    def test_a_message_of_unknown_fate_is_asked_about_and_gets_the_answer(self, desk: Desk) -> None:
        """COMMIT delivers, ROLLBACK drops, and neither a committed nor a rolled-back one is asked about."""
        kept = desk.message(on_check=Script(COMMIT))
        dropped = desk.message(on_check=Script(ROLLBACK))
        committed, rolled_back = desk.message(), desk.message()
        desk.send(committed)
        desk.send(rolled_back, ROLLBACK)
        kept_id = desk.send(kept, UNKNOWN)
        dropped_id = desk.send(dropped, UNKNOWN)
        desk.wait_asked(kept, dropped)
        desk.wait_delivered(kept)
        assert desk.checks_of(kept)[0] == Check(kept_id, _ours(kept.properties))
        assert desk.checks_of(dropped)[0] == Check(dropped_id, _ours(dropped.properties))
        assert not desk.deliveries_of(dropped)
        assert not desk.deliveries_of(rolled_back)
        assert not desk.checks_of(committed)
        assert not desk.checks_of(rolled_back)

    def test_a_check_without_a_proper_answer_counts_as_unknown(self, desk: Desk) -> None:
        """It raised, or gave what is no verdict: the broker asks again, nothing is decided meanwhile."""
        nonsense = [ValueError("check"), KeyboardInterrupt(), SystemExit(0), False, True, 0, None, UNKNOWN]
        messages = [desk.message(on_check=Script(answer, COMMIT)) for answer in nonsense]
        for message in messages:
            desk.send(message, UNKNOWN)
        desk.wait_asked(*messages)
        assert not any(desk.deliveries_of(m) and len(desk.checks_of(m)) == 1 for m in messages)
        desk.wait_asked(*messages, times=2)
        desk.wait_delivered(*messages)

    # -- execute

    def test_execute_runs_once_on_the_calling_thread_before_the_send_returns(self, desk: Desk) -> None:
        """In its context too, so that thread-locals and context variables are at hand."""
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="lost")
        variable.set("kept")
        ran: list[tuple[int, str]] = []

        def execute(_message_id: str) -> Verdict:
            ran.append((threading.get_ident(), variable.get()))
            return COMMIT

        message = desk.message()
        desk.producer.send_half(message, execute)
        assert ran == [(threading.get_ident(), "kept")]
        desk.wait_delivered(message)
        assert len(ran) == 1

    def test_what_execute_raises_arrives_unchanged_and_the_verdict_is_unknown(self, desk: Desk) -> None:
        """Ctrl-C and `sys.exit` included; the broker asks, nothing was delivered until then."""
        messages = []
        for problem in (ValueError("business"), KeyboardInterrupt(), SystemExit(3)):
            message = desk.message(on_check=Script(ROLLBACK))
            with pytest.raises(type(problem)) as caught:
                desk.producer.send_half(message, _raising(problem))
            assert caught.value is problem
            messages.append(message)
        desk.wait_asked(*messages)
        assert not any(map(desk.deliveries_of, messages))

    def test_what_is_no_verdict_is_refused_and_counts_as_unknown(self, desk: Desk) -> None:
        """`False` would be COMMIT to the native client."""
        messages = []
        for nonsense in (False, True, 0, 1, None, "commit", ACK):
            message = desk.message(on_check=Script(ROLLBACK))
            with pytest.raises((KeyError, TypeError, ValueError)):
                desk.producer.send_half(message, Script(nonsense))
            messages.append(message)
        desk.wait_asked(*messages)
        assert not any(map(desk.deliveries_of, messages))

    def test_execute_may_send_again(self, desk: Desk) -> None:
        """Three nested half messages exist before the first verdict; all get theirs."""
        messages = [desk.message() for _ in range(3)]
        ids: list[str] = []

        def nested(position: int) -> Callable[[str], Verdict]:
            def execute(message_id: str) -> Verdict:
                ids.append(message_id)
                if position + 1 < len(messages):
                    desk.producer.send_half(messages[position + 1], nested(position + 1))
                assert len(ids) == len(messages)
                assert not any(map(desk.deliveries_of, messages[: position + 1]))
                return COMMIT

            return execute

        desk.producer.send_half(messages[0], nested(0))
        desk.wait_delivered(*messages)
        assert len(set(ids)) == 3
        assert [desk.deliveries_of(message)[0].message_id for message in messages] == ids

    def test_the_first_send_of_a_client_may_be_nested_too(self, desk: Desk) -> None:
        """First sends are special in some clients; they must not wait for themselves."""
        producer = desk.new_silent_producer(group=desk.new_group())
        outer, inner = desk.message(), desk.message()

        def execute(_message_id: str) -> Verdict:
            producer.send_half(inner, commit)
            return COMMIT

        sender = threading.Thread(target=producer.send_half, args=(outer, execute), daemon=True)
        sender.start()
        sender.join(20)
        assert not sender.is_alive(), "a nested first send waits for itself"
        desk.wait_delivered(outer, inner)

    def test_what_a_nested_execute_raises_passes_through_all_sends_unchanged(self, desk: Desk) -> None:
        """And is not called a failure of the broker on the way."""
        outer, inner = (desk.message(on_check=Script(ROLLBACK)) for _ in range(2))
        problem = RuntimeError("inside")

        def execute(_message_id: str) -> Verdict:
            desk.producer.send_half(inner, _raising(problem))
            return COMMIT

        with pytest.raises(RuntimeError) as caught:
            desk.producer.send_half(outer, execute)
        assert caught.value is problem
        later = desk.message()
        desk.send(later)
        desk.wait_delivered(later)
        assert not desk.deliveries_of(outer)
        assert not desk.deliveries_of(inner)

    def test_a_message_that_was_not_taken_is_told_and_execute_does_not_run(self, desk: Desk) -> None:
        """Its topic does not exist."""
        message = Message(f"{desk.topic}-missing", b"x").outbound(
            txn_id=new_txn_id(), position=0, owner=OWNER
        )
        with pytest.raises(BrokerUnavailableError, match="missing"):
            desk.producer.send_half(message, must_not_run)

    def test_several_threads_send_at_once(self, desk: Desk) -> None:
        """Each message has an id of its own, its own thread for `execute`, and arrives once."""
        batches = [[desk.message(b"%d" % n) for _ in range(8)] for n in range(8)]
        ids: list[str] = []
        problems: list[str] = []

        def send(batch: list[Any]) -> None:
            me = threading.get_ident()

            def execute(message_id: str) -> Verdict:
                if threading.get_ident() != me:
                    problems.append("execute ran on another thread")
                ids.append(message_id)
                return COMMIT

            for message in batch:
                desk.producer.send_half(message, execute)

        senders = [threading.Thread(target=send, args=(batch,)) for batch in batches]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(60)
        assert problems == []
        assert len(ids) == len(set(ids)) == 64
        messages = [message for batch in batches for message in batch]
        desk.wait_delivered(*messages)
        delivered = [desk.deliveries_of(message) for message in messages]
        assert {found[0].message_id for found in delivered} == set(ids)
        assert [found[0].body for found in delivered] == [message.body for message in messages]

    # -- what is carried

    @pytest.mark.parametrize(
        "body",
        [
            b"\x00",
            b"a\x00b\x00",
            b"\x01\x02\xff\xfe",
            bytes(range(256)) * 64,
            "积分\U0001f600\u2028".encode(),
            b"x" * 4096,
            b"\x00" * 300_000,
        ],
        ids=["NUL", "with-NULs", "not-UTF-8", "16-KiB", "unicode", "compressible", "300-KB-of-NULs"],
    )
    def test_a_body_arrives_byte_for_byte(self, desk: Desk, body: bytes) -> None:
        """Whatever is in it, and whether a client compresses it or not."""
        message = desk.message(body)
        desk.send(message)
        desk.wait_delivered(message)
        assert desk.deliveries_of(message)[0].body == body

    def test_topic_id_key_tag_and_properties_arrive(self, desk: Desk) -> None:
        """The id is the one `execute` got."""
        properties = {"名字": "值 \U0001f600", "x-empty": " ", "Case": "a=b;c,d"}
        message = desk.message(key="键-1", tag="标签", properties=properties)
        message_id = desk.send(message)
        desk.wait_delivered(message)
        got = desk.deliveries_of(message)[0]
        assert (got.topic, got.message_id, got.key, got.tag) == (desk.topic, message_id, "键-1", "标签")
        assert got.redeliveries == 0
        assert _ours(message.properties).items() <= got.properties.items()
        if self.features.user_properties:
            assert properties.items() <= got.properties.items()

    def test_what_was_not_set_is_none(self, desk: Desk) -> None:
        """Not an empty text."""
        message = desk.message()
        desk.send(message)
        desk.wait_delivered(message)
        got = desk.deliveries_of(message)[0]
        assert (got.key, got.tag) == (None, None)

    # -- plain messages

    def test_a_plain_message_arrives_as_its_half_message_did(self, desk: Desk) -> None:
        """Nobody can tell the two deliveries apart but by their time, so the inbox takes them for one."""
        properties = {"名字": "值 \U0001f600", "Case": "a=b;c,d"}
        message = desk.message(bytes(range(256)) * 64, key="键-1", tag="标签", properties=properties)
        message_id = desk.send(message)
        desk.wait_delivered(message)
        desk.producer.send_plain(message, message_id)
        desk.wait_delivered(message, times=2)
        times = {"born_milliseconds": 0, "stored_milliseconds": 0}
        first, second = (replace(found, **times) for found in desk.deliveries_of(message)[:2])
        assert first == second
        assert not desk.checks_of(message)

    def test_a_plain_message_without_key_and_tag_arrives_too(self, desk: Desk) -> None:
        """Not as an empty text."""
        message = desk.message()
        desk.producer.send_plain(message, "PLAIN-ID")
        desk.wait_delivered(message)
        got = desk.deliveries_of(message)[0]
        assert (got.key, got.tag, got.message_id) == (None, None, "PLAIN-ID")

    def test_a_plain_message_that_is_refused_is_told_from_a_broker_that_is_away(self, desk: Desk) -> None:
        """The one would be refused for ever, the other may pass later; others are not held up."""
        sound = desk.message()
        with pytest.raises(InvalidMessageError, match="refuses"):
            desk.producer.send_plain(replace(sound, body=b"x" * (5 << 20)), "TOO-LARGE")
        with pytest.raises(BrokerUnavailableError, match="missing"):
            desk.producer.send_plain(replace(sound, topic=f"{desk.topic}-missing"), "NO-TOPIC")
        desk.producer.send_plain(sound, "SOUND")
        desk.wait_delivered(sound)

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
        strangers = (
            desk.transport.consumer(group, {desk.topic: ["*"]}, 1, desk.answer_delivery),
            desk.transport.producer(desk.group, desk.answer_check),
        )
        for known, stranger in zip((consumer, desk.producer), strangers, strict=True):
            assert not stranger.is_registered(desk.topic)
            with pytest.raises(BrokerUnavailableError, match="missing"):
                known.is_registered(f"{desk.topic}-missing")

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


def _raising(problem: BaseException) -> Callable[[str], Verdict]:
    def execute(_message_id: str) -> Verdict:
        raise problem

    return execute


def _ours(properties: Any) -> dict[str, str]:
    """Return the properties of this package, without the list of the user's names."""
    return {name: properties[name] for name in ("rmq_txn_id", "rmq_txn_n", "rmq_txn_owner")}
