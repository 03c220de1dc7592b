"""What a transport promises of half messages: their verdicts, and the local transaction."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.identity import new_txn_id
from rmq_txn.message import Message
from rmq_txn.testing.contract.desk import OWNER, Desk, Script
from rmq_txn.testing.contract.scripts import (
    ACK,
    COMMIT,
    ROLLBACK,
    UNKNOWN,
    commit,
    must_not_run,
    own_properties,
    raising,
)
from rmq_txn.transport import Check
from rmq_txn.verdict import Verdict


class VerdictContract:
    """See `TransportContract`."""

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
        committed, _ = desk.send_at_once(COMMIT)
        rolled_back, _ = desk.send_at_once(ROLLBACK)
        kept, kept_id = desk.send_at_once(UNKNOWN, on_check=Script(COMMIT))
        dropped, dropped_id = desk.send_at_once(UNKNOWN, on_check=Script(ROLLBACK))
        desk.wait_asked(kept, dropped)
        desk.wait_delivered(kept)
        assert desk.checks_of(kept)[0] == Check(kept_id, own_properties(kept.properties))
        assert desk.checks_of(dropped)[0] == Check(dropped_id, own_properties(dropped.properties))
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
                desk.producer.send_half(message, raising(problem))
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
            desk.producer.send_half(inner, raising(problem))
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
