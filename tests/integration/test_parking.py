"""Messages that fail for good: counted, parked, replayed. On a real broker and a real database."""

from __future__ import annotations

import threading
import time
from typing import Any

import pymysql
import pytest

from rmq_txn import Delivery, Reject, Transaction
from rmq_txn.consumer.parking import ParkedState, failures
from rmq_txn.consumer.upkeep import Upkeep
from rmq_txn.database.pool import parse_url
from rmq_txn.errors import InvalidMessageError
from rmq_txn.transport import Deliver
from rmq_txn.verdict import Answer
from tests.kit.desk import Desk
from tests.kit.rows import rows
from tests.kit.statements import COMMIT, Killer, hooked
from tests.kit.transports import DeliverTwice
from tests.kit.wait import until

pytestmark = pytest.mark.servers


def parked(desk: Desk) -> list[tuple[ParkedState, int]]:
    """Return state and failures of every row, failing ones included."""
    found = rows(desk.url, "SELECT state, attempts FROM rmq_txn_parked ORDER BY first_failed_at, dedup_key")
    return [(ParkedState(state), attempts) for state, attempts in found]


def key(desk: Desk) -> str:
    """Return the dedup key of the one message in the table."""
    ((found,),) = rows(desk.url, "SELECT dedup_key FROM rmq_txn_parked")
    return str(found.decode())


def inbox(desk: Desk) -> int:
    """Return how many messages the group is done with."""
    return len(rows(desk.url, "SELECT 1 FROM rmq_txn_inbox"))


class Broken:
    """A handler that writes its effect and then fails for some messages, until it is mended."""

    def __init__(self, desk: Desk, *ids: str, error: Exception | None = None) -> None:
        self._desk = desk
        self._ids = set(ids)
        self._error = error or ValueError("no such user")
        self.calls: list[str] = []

    def __call__(self, txn: Transaction, delivery: Delivery) -> None:
        self._desk.award(txn, delivery)
        self.calls.append(delivery.json()["id"])
        if self.calls[-1] in self._ids:
            raise self._error

    def mend(self) -> None:
        self._ids.clear()


def test_a_poison_message_is_parked_after_its_attempts_and_those_behind_it_go_on(desk: Desk) -> None:
    """Acknowledged, so that the broker never buries it, with everything that a replay needs."""
    handler = Broken(desk, "poison")
    desk.consumer(handler, max_attempts=3)
    desk.publish("poison", "a", "b", tag="gold")
    until(lambda: parked(desk) == [(ParkedState.EXHAUSTED, 3)], "parked after three failures", 40)
    desk.wait_effects("a", "b")
    assert handler.calls.count("poison") == 3
    assert "poison" not in desk.effects()
    assert inbox(desk) == 3
    ((topic, tag, body, error),) = rows(desk.url, "SELECT topic, tag, body, error FROM rmq_txn_parked")
    assert (topic.decode(), tag, body) == (desk.topic, b"gold", b'{"id":"poison"}')
    assert error == b"ValueError: no such user"


def test_a_rejected_message_is_parked_at_once_and_its_writes_are_undone(desk: Desk) -> None:
    """The handler knows that no later try can help."""
    handler = Broken(desk, "bad", error=Reject("amount is negative"))
    desk.consumer(handler)
    desk.publish("bad", "good")
    desk.wait_effects("good")
    until(lambda: parked(desk) == [(ParkedState.REJECTED, 1)], "parked")
    assert desk.effects() == ["good"]
    assert handler.calls.count("bad") == 1


def test_a_handler_that_returns_without_having_run_is_never_acknowledged_as_done(desk: Desk) -> None:
    """A lambda hides the coroutine at registration; what comes back is seen before COMMIT."""

    async def award(txn: Transaction, delivery: Delivery) -> None:
        desk.award(txn, delivery)

    desk.consumer(lambda txn, delivery: award(txn, delivery), max_attempts=1)
    desk.publish("m")
    until(lambda: parked(desk) == [(ParkedState.EXHAUSTED, 1)], "parked", 40)
    assert desk.effects() == []
    ((error,),) = rows(desk.url, "SELECT error FROM rmq_txn_parked")
    assert b"returned a coroutine: that work has not run" in error


def test_a_replay_after_a_fix_has_its_effect_once_however_often_it_is_done(desk: Desk) -> None:
    """A replay that fails leaves the message parked; of eight at once only one has an effect."""
    handler = Broken(desk, "m")
    consumer = desk.consumer(handler, max_attempts=1)
    desk.publish("m")
    until(lambda: parked(desk) == [(ParkedState.EXHAUSTED, 1)], "parked")
    message = key(desk)
    with pytest.raises(ValueError, match="no such user"):
        consumer.replay(message)
    assert parked(desk) == [(ParkedState.EXHAUSTED, 2)]
    handler.mend()
    together = threading.Barrier(8)
    replayed: list[bool] = []

    def replay() -> None:
        together.wait(20)
        replayed.append(consumer.replay(message))

    threads = [threading.Thread(target=replay) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(replayed) == [False] * 7 + [True]
    assert consumer.replay(message) is False
    assert desk.effects() == ["m"]
    assert (parked(desk), inbox(desk)) == ([], 1)


def test_a_parked_message_that_the_broker_delivers_again_is_skipped(desk: Desk) -> None:
    """The ack was lost, or the process killed after the COMMIT: it stays parked, the handler rests."""
    handler = Broken(desk, "m")
    twice = DeliverTwice()
    consumer = desk.consumer(handler, max_attempts=1, around_deliver=twice)
    desk.publish("m")
    until(lambda: twice.delivered_twice() == 1, "acknowledged, and delivered again", 40)
    assert handler.calls == ["m"]
    assert parked(desk) == [(ParkedState.EXHAUSTED, 1)]
    handler.mend()
    assert consumer.replay(key(desk))
    assert desk.effects() == ["m"]


COUNTING = ["INSERT INTO rmq_txn_inbox", "INSERT INTO rmq_txn_parked"]
COUNTING += ["INSERT INTO rmq_txn_parked", "UPDATE rmq_txn_parked", "RELEASE", COMMIT]


@pytest.mark.parametrize("at", [0, 1, 3, 5], ids=lambda at: f"{at}-{COUNTING[at]}")
def test_a_connection_killed_while_parking_acknowledges_nothing_before_the_row_is_there(
    desk: Desk, at: int
) -> None:
    """The step is repeated until it is committed; the only answer the broker gets follows that."""
    statements_before = 3  # inbox row, effect, and the look whether the failure left something durable
    killer = Killer(parse_url(desk.url), statements_before + at)
    answers: list[tuple[Answer, list[tuple[ParkedState, int]]]] = []

    def around(deliver: Deliver) -> Deliver:
        def delivered(delivery: Delivery) -> Answer:
            answer = deliver(delivery)
            answers.append((answer, parked(desk)))
            return answer

        return delivered

    desk.publish("m")
    with hooked(before=killer):
        desk.consumer(Broken(desk, "m"), max_attempts=1, around_deliver=around)
        until(lambda: answers, "the broker is answered", 40)
    assert killer.statements[statements_before + at].startswith(COUNTING[at])
    assert answers[0] == (Answer.ACK, [(ParkedState.EXHAUSTED, 1)])
    assert (desk.effects(), inbox(desk)) == ([], 1)


def test_closing_consumers_and_lock_errors_use_up_no_attempt(desk: Desk) -> None:
    """The broker counts both; with two attempts, one real failure is not the last."""
    given_back: list[int] = []
    errors: list[Exception] = [ValueError("a real one")]
    errors += [pymysql.err.OperationalError(1213, "Deadlock found")] * 2

    def as_closing_does(deliver: Deliver) -> Deliver:
        def delivered(delivery: Delivery) -> Answer:
            if delivery.redeliveries < 2:
                given_back.append(delivery.redeliveries)
                return Answer.RETRY
            return deliver(delivery)

        return delivered

    def handler(txn: Transaction, delivery: Delivery) -> None:
        if errors:
            raise errors.pop()
        desk.award(txn, delivery)

    desk.consumer(handler, max_attempts=2, around_deliver=as_closing_does)
    desk.publish("m")
    desk.wait_effects("m")
    assert set(given_back) == {0, 1}  # in this order, twice if a busy broker delivers the message twice
    assert [d.redeliveries >= 2 for d in desk.deliveries] == [True]
    assert parked(desk) == []


def test_a_success_after_failures_deletes_their_count(desk: Desk) -> None:
    """In the transaction of the success; while it fails, the row is only a counter."""
    seen: list[Any] = []
    failures = [ValueError("first"), ValueError("second")]

    def flaky(txn: Transaction, delivery: Delivery) -> None:
        seen.append((parked(desk), inbox(desk)))
        if failures:
            raise failures.pop(0)
        desk.award(txn, delivery)

    desk.consumer(flaky)
    desk.publish("m")
    desk.wait_effects("m")
    assert seen == [([], 0), ([(ParkedState.FAILING, 1)], 0), ([(ParkedState.FAILING, 2)], 0)]
    assert (parked(desk), inbox(desk)) == ([], 1)


def test_a_message_older_than_the_inbox_remembers_is_parked_untried(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its inbox row may have been pruned, so only a person may have it handled."""
    eight_days_ago = f"{int((time.time() - 8 * 86_400) * 1000):012x}{'0' * 20}"
    with monkeypatch.context() as patch:
        patch.setattr("rmq_txn.producer.checkback.new_txn_id", lambda _now: eight_days_ago)
        desk.publish("old")
    consumer = desk.consumer(inbox_retention_days=7.0)
    until(lambda: parked(desk) == [(ParkedState.OVER_AGE, 0)], "parked", 40)
    assert desk.deliveries == []
    with pytest.raises(InvalidMessageError, match="replay it with --force or drop it"):
        consumer.replay(key(desk))
    assert parked(desk) == [(ParkedState.OVER_AGE, 0)]
    assert consumer.replay(key(desk), force=True)
    assert desk.effects() == ["old"]


def test_ddl_in_a_handler_parks_the_message_whose_claim_it_made_durable(desk: Desk) -> None:
    """A delivery would be skipped as a duplicate; so it is parked, and a person looks at the data."""
    tries: list[str] = []

    def sneaky(txn: Transaction, delivery: Delivery) -> None:
        tries.append(delivery.message_id)
        if len(tries) < 3:
            txn.execute(f"CREATE TABLE IF NOT EXISTS made_by_handler_{len(tries)} (id INT)")
        desk.award(txn, delivery)

    consumer = desk.consumer(sneaky)
    desk.publish("ddl")
    until(lambda: parked(desk) == [(ParkedState.LOST, 1)], "parked", 40)
    assert (desk.effects(), inbox(desk)) == ([], 1)
    message = key(desk)
    with pytest.raises(InvalidMessageError, match="parked as lost"):
        consumer.replay(message)
    # Not mended yet: the DDL commits the end of the parking, which is taken back.
    with pytest.raises(Exception, match="ended the transaction"):
        consumer.replay(message, force=True)
    assert parked(desk) == [(ParkedState.LOST, 1)]
    assert consumer.replay(message, force=True)
    assert (desk.effects(), parked(desk)) == (["ddl"], [])


def test_a_message_whose_handler_fails_after_ddl_is_parked_as_lost(desk: Desk) -> None:
    """Its own exception hides it, but the inbox row is durable: a redelivery would be skipped."""
    tries: list[str] = []

    def fails(txn: Transaction, delivery: Delivery) -> None:
        tries.append(delivery.message_id)
        if len(tries) == 1:
            txn.execute("CREATE TABLE IF NOT EXISTS made_before_the_failure (id INT)")
            raise ValueError("something else")
        desk.award(txn, delivery)

    consumer = desk.consumer(fails)
    desk.publish("ddl")
    until(lambda: parked(desk) == [(ParkedState.LOST, 1)], "parked", 40)
    assert consumer.replay(key(desk), force=True)
    assert (desk.effects(), parked(desk)) == (["ddl"], [])


def test_a_message_without_a_usable_dedup_key_is_parked_under_its_own(desk: Desk) -> None:
    """The user's function fails for it; once mended, the replay remembers the key it gives."""

    def order_of(delivery: Delivery) -> str:
        return str(delivery.json()["order"]) if broken else f"order-{delivery.json()['id']}"

    broken = True
    consumer = desk.consumer(dedup_key=order_of, max_attempts=1)
    desk.publish("m")
    until(lambda: parked(desk) == [(ParkedState.EXHAUSTED, 1)], "parked", 40)
    broken = False
    assert consumer.replay(key(desk))
    assert desk.effects() == ["m"]
    keys = {found.decode() for (found,) in rows(desk.url, "SELECT dedup_key FROM rmq_txn_inbox")}
    assert "order-m" in keys


def test_health_counts_what_fails_and_what_is_parked_until_it_is_mended(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And how many messages wait; all of it seen by a look at the real servers."""
    monkeypatch.setattr(
        Upkeep.__init__, "__kwdefaults__", Upkeep.__init__.__kwdefaults__ | {"round_seconds": 0.2}
    )
    handler = Broken(desk, "fails", "rejected")
    consumer = desk.consumer(handler, max_attempts=16)
    until(lambda: consumer.health().registered, "the first look")
    assert consumer.health().problems == ()
    desk.publish("fails")
    until(lambda: consumer.health().failing == 1, "a failing message")
    assert "fail and are delivered again" in " ".join(consumer.health().problems)
    handler._error = Reject("never")
    desk.publish("rejected")
    until(lambda: consumer.health().parked, "a parked message")
    assert "are parked, the oldest since" in " ".join(consumer.health().problems)
    handler.mend()
    with desk.database.transaction(read_only=True) as txn:
        keys = [failure.key for failure in failures(txn, consumer.group, 10) if failure.state]
    assert [consumer.replay(key) for key in keys] == [True] * len(keys)
    until(lambda: consumer.health().problems == (), "all is well again", 60)
    seen = consumer.health()
    assert (seen.failing, seen.parked, seen.registered) == (0, 0, True)
    until(lambda: consumer.health().lag == 0, "nothing waits", 60)


def test_lag_counts_the_messages_that_wait_for_the_group(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """While every handler of the group is busy."""
    monkeypatch.setattr(
        Upkeep.__init__, "__kwdefaults__", Upkeep.__init__.__kwdefaults__ | {"round_seconds": 0.2}
    )
    goes_on = threading.Event()
    consumer = desk.consumer(
        lambda txn, delivery: (goes_on.wait(60), desk.award(txn, delivery))[-1], threads=1
    )
    try:
        desk.publish("a", "b", "c")
        until(lambda: consumer.health().lag == 3, "three wait")
    finally:
        goes_on.set()
    desk.wait_effects("a", "b", "c")
    until(lambda: consumer.health().lag == 0, "none waits", 60)
