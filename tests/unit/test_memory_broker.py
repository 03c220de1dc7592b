"""The memory broker keeps RocketMQ's schedule by the test's own clock, and fails where it is told."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from rmq_txn.errors import BrokerUnavailableError, InvalidMessageError, LifecycleError, SettingsError
from rmq_txn.identity import new_txn_id
from rmq_txn.message import Delivery, Message, Outbound
from rmq_txn.testing import Crash, CrashPoints, MemoryBroker, NotConsumedError, NotSettledError
from rmq_txn.testing.crashes import STEPS
from rmq_txn.transport import Check, ConsumerTransport, ProducerTransport
from rmq_txn.transport.wrapped import Wrapped
from rmq_txn.verdict import Answer, Verdict
from tests.kit.wait import until

COMMIT, ROLLBACK, UNKNOWN = Verdict.COMMIT, Verdict.ROLLBACK, Verdict.UNKNOWN
ACK, RETRY = Answer.ACK, Answer.RETRY
LEVELS = [10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200]
"""Pauses before the 16 redeliveries, in seconds: the third delay level of a broker, and those after it."""


class Bench:
    """Clients of one memory broker with the topic `t`; what they were asked and given, and when."""

    def __init__(self, broker: MemoryBroker, resources: ExitStack) -> None:
        self.broker = broker
        self.resources = resources
        self.asked: list[tuple[float, str]] = []
        self.got: list[tuple[float, str, int]] = []
        self.checks: list[Check] = []

    def producer(self, answer: Any = UNKNOWN, group: str = "p", name: str = "first") -> ProducerTransport:
        def check(question: Check) -> Any:
            self.asked.append((self.broker.now, name))
            self.checks.append(question)
            return answer

        client = self.broker.producer(group, check)
        self.resources.callback(client.close, 5.0)
        client.start(["t"])
        return client

    def consumer(
        self,
        answer: Callable[[Delivery], Any] = lambda _delivery: ACK,
        *,
        group: str = "c",
        tags: tuple[str, ...] = ("*",),
        name: str | None = None,
    ) -> ConsumerTransport:
        def deliver(delivery: Delivery) -> Any:
            self.got.append((self.broker.now, name or group, delivery.redeliveries))
            return answer(delivery)

        client = self.broker.consumer(group, {"t": tags}, 2, deliver)
        self.resources.callback(client.close, 0.0, 5.0)
        client.start()
        return client


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def bench(resources: ExitStack) -> Bench:
    return Bench(MemoryBroker(topics=["t"]), resources)


def message(tag: str | None = None) -> Outbound:
    made = Message("t", {"n": 1}, tag=tag)
    return made.outbound(txn_id=new_txn_id(), position=0, owner="p@unit")


def send(client: ProducerTransport, verdict: Verdict = COMMIT, tag: str | None = None) -> str:
    ids: list[str] = []

    def execute(message_id: str) -> Verdict:
        ids.append(message_id)
        return verdict

    client.send_half(message(tag), execute)
    return ids[0]


# -- half messages and check-back


def test_a_half_message_is_asked_about_in_the_first_round_after_six_seconds(bench: Bench) -> None:
    producer = bench.producer()
    bench.broker.advance(23)
    send(producer, UNKNOWN)
    bench.broker.advance(2)
    send(producer, UNKNOWN)
    bench.broker.advance(5)
    assert [at for at, _ in bench.asked] == [30]
    bench.broker.advance(30)
    assert [at for at, _ in bench.asked] == [30, 60, 60]


def test_a_broker_asks_15_times_and_then_gives_a_half_message_up(bench: Bench) -> None:
    send(bench.producer(), UNKNOWN)
    bench.consumer()
    bench.broker.advance(456)
    assert [at for at, _ in bench.asked] == [30.0 * n for n in range(1, 16)]
    assert (bench.broker.half_messages(), bench.broker.given_up()) == (1, 0)
    bench.broker.advance(24 * 3600)
    assert (bench.broker.half_messages(), bench.broker.given_up()) == (0, 1)
    assert len(bench.asked) == 15
    assert bench.got == []
    assert "given up after 15 questions" in bench.broker.story()


def test_questions_cost_the_budget_while_no_producer_is_there(bench: Bench) -> None:
    producer = bench.producer()
    send(producer, UNKNOWN)
    producer.close(5.0)
    bench.broker.advance(30 * 13)
    bench.producer(COMMIT, name="late")
    bench.broker.advance(30)
    assert bench.asked == [(420.0, "late")]
    assert "no producer of group p is there" in bench.broker.story()


def test_any_producer_of_the_group_is_asked_in_turn_and_none_of_another(bench: Bench) -> None:
    send(bench.producer(name="one"), UNKNOWN)
    bench.producer(name="two")
    bench.producer(group="other", name="stranger")
    bench.broker.advance(120)
    assert [name for _, name in bench.asked] == ["one", "two", "one", "two"]


def test_the_answer_to_a_check_back_decides(bench: Bench) -> None:
    stored = send(bench.producer(COMMIT), UNKNOWN)
    bench.consumer()
    bench.broker.advance(30)
    assert bench.got == [(30.0, "c", 0)]
    assert bench.checks[0].message_id == stored
    bench.broker.advance(300)
    assert len(bench.asked) == 1


def test_the_schedule_of_questions_can_be_set(resources: ExitStack) -> None:
    broker = MemoryBroker(
        ["t"],
        transaction_timeout_seconds=1,
        transaction_check_interval_seconds=2,
        transaction_check_max=3,
    )
    bench = Bench(broker, resources)
    send(bench.producer(), UNKNOWN)
    broker.advance(60)
    assert [at for at, _ in bench.asked] == [2, 4, 6]


# -- deliveries


def test_redeliveries_have_the_pauses_of_a_broker_and_the_last_try_is_buried(bench: Bench) -> None:
    bench.consumer(lambda _delivery: RETRY)
    send(bench.producer())
    bench.broker.advance(24 * 3600)
    times = [at for at, *_ in bench.got]
    assert [later - at for at, later in itertools.pairwise(times)] == LEVELS
    assert [redeliveries for *_, redeliveries in bench.got] == list(range(17))
    (buried,) = bench.broker.dead_letters("c")
    assert buried.redeliveries == 16
    assert bench.broker.dead_letters("nobody") == ()


def test_each_group_gets_each_message_and_one_member_of_it(bench: Bench) -> None:
    for group, name in (("c1", "a"), ("c1", "b"), ("c2", "c")):
        bench.consumer(group=group, name=name)
    producer = bench.producer()
    for _ in range(20):
        send(producer)
    bench.broker.wait_until_consumed("t")
    names = [name for _, name, _ in bench.got]
    assert names.count("c") == 20
    assert names.count("a") + names.count("b") == 20


def test_a_group_gets_the_tags_it_asked_for_and_is_done_with_the_others(bench: Bench) -> None:
    got: list[str | None] = []

    def deliver(delivery: Delivery) -> Answer:
        got.append(delivery.tag)
        return ACK

    bench.consumer(deliver, tags=("red", "blue"))
    producer = bench.producer()
    for tag in ("red", "green", None, "blue"):
        send(producer, tag=tag)
    bench.broker.wait_until_consumed("t", group="c")
    assert sorted(map(str, got)) == ["blue", "red"]


@pytest.mark.parametrize(("begins", "count"), [("earliest", 2), ("latest", 1)])
def test_a_new_group_begins_where_it_is_told(resources: ExitStack, begins: Any, count: int) -> None:
    bench = Bench(MemoryBroker(["t"], new_group_from=begins), resources)
    producer = bench.producer()
    send(producer)
    bench.consumer()
    send(producer)
    bench.broker.wait_until_consumed()
    assert len(bench.got) == count


def test_what_is_not_acknowledged_stays_for_the_next_member(bench: Bench) -> None:
    producer = bench.producer()
    bench.consumer(name="first").close(0.0, 5.0)
    send(producer)
    bench.broker.settle()
    assert bench.got == []
    bench.consumer(name="second")
    bench.broker.wait_until_consumed()
    assert [name for _, name, _ in bench.got] == ["second"]


# -- faults


def test_a_lost_verdict_is_asked_for(bench: Bench) -> None:
    bench.broker.lose_verdict()
    bench.consumer()
    send(bench.producer(COMMIT))
    bench.broker.settle()
    assert bench.got == []
    bench.broker.advance(30)
    assert len(bench.got) == 1


def test_a_verdict_may_arrive_late(bench: Bench) -> None:
    bench.broker.delay_verdict(20)
    bench.consumer()
    send(bench.producer())
    bench.broker.advance(19)
    assert bench.got == []
    bench.broker.advance(1)
    assert bench.got == [(20.0, "c", 0)]


def test_a_delivery_may_arrive_late(bench: Bench) -> None:
    bench.broker.delay_delivery(7)
    bench.consumer()
    send(bench.producer())
    send(bench.producer(name="next"))
    bench.broker.advance(7)
    assert bench.got == [(0.0, "c", 0), (7.0, "c", 0)]


def test_a_half_message_that_was_stored_twice_is_asked_about_under_the_other_id(bench: Bench) -> None:
    bench.broker.duplicate_half()
    bench.consumer()
    known = send(bench.producer(ROLLBACK))
    bench.broker.advance(60)
    assert [check.message_id == known for check in bench.checks] == [False]
    assert len(bench.got) == 1


def test_an_acknowledged_message_may_come_once_more_and_is_the_same(bench: Bench) -> None:
    deliveries: list[Delivery] = []

    def deliver(delivery: Delivery) -> Answer:
        deliveries.append(delivery)
        return ACK

    bench.broker.deliver_twice()
    bench.consumer(deliver)
    send(bench.producer())
    bench.broker.wait_until_consumed()
    one, two = deliveries
    assert (one.message_id, one.dedup_key, two.redeliveries) == (two.message_id, two.dedup_key, 0)


@pytest.mark.parametrize("stored", [False, True])
def test_a_refused_send_did_not_run_and_may_be_stored_all_the_same(bench: Bench, stored: bool) -> None:
    bench.broker.refuse_send(stored=stored)
    producer = bench.producer(ROLLBACK)
    with pytest.raises(BrokerUnavailableError, match="as the test has asked for"):
        producer.send_half(message(), pytest.fail)
    assert bench.broker.half_messages() == stored
    bench.broker.advance(30)
    assert len(bench.checks) == stored
    assert bench.broker.armed_faults() == {}
    send(producer)


def test_a_broker_that_is_away_takes_nothing_and_hears_no_verdict_and_no_acknowledgment(bench: Bench) -> None:
    producer = bench.producer(COMMIT)
    may_end, entered = threading.Event(), threading.Event()

    def deliver(_delivery: Delivery) -> Answer:
        entered.set()
        may_end.wait(10)
        return ACK

    consumer = bench.consumer(deliver)
    send(producer)
    assert entered.wait(10)

    def execute(_message_id: str) -> Verdict:
        bench.broker.go_away()
        return COMMIT

    producer.send_half(message(), execute)
    for ask in (lambda: send(producer), lambda: producer.is_registered("t"), consumer.lag):
        with pytest.raises(BrokerUnavailableError, match="away"):
            ask()
    may_end.set()
    bench.broker.advance(300)
    assert (len(bench.got), bench.asked) == (1, [])
    bench.broker.come_back()
    bench.broker.advance(30)
    assert len(bench.asked) == 1
    assert len(bench.got) == 3


# -- crashes


@pytest.mark.parametrize(
    ("step", "stored", "ran", "visible"),
    [
        ("before_half", 0, False, False),
        ("after_half", 1, False, False),
        ("after_commit", 1, True, False),
        ("after_verdict", 0, True, True),
    ],
)
def test_a_crash_of_a_producer_leaves_what_was_done_before_its_step(
    bench: Bench, step: Any, stored: int, ran: bool, visible: bool
) -> None:
    runs: list[str] = []

    def execute(message_id: str) -> Verdict:
        runs.append(message_id)
        return COMMIT

    bench.consumer()
    producer = bench.producer(COMMIT)
    bench.broker.crash_at(step)
    with pytest.raises(Crash, match=step):
        producer.send_half(message(), execute)
    bench.broker.settle()
    assert bench.broker.half_messages() == stored
    assert (bool(runs), bool(bench.got)) == (ran, visible)
    assert f"crash at {step}" in bench.broker.story()
    send(producer)  # it happens once


@pytest.mark.parametrize(("step", "handled"), [("before_handler", 1), ("after_handler", 2)])
def test_a_crash_of_a_consumer_brings_the_message_back_uncounted(
    bench: Bench, step: Any, handled: int
) -> None:
    bench.broker.crash_at(step)
    bench.consumer()
    send(bench.producer())
    bench.broker.wait_until_consumed()
    assert [redeliveries for *_, redeliveries in bench.got] == [0] * handled
    assert f"crash at {step}" in bench.broker.story()


def test_a_crash_sends_no_verdict_of_the_sends_around_it_even_if_somebody_catches_it(bench: Bench) -> None:
    producer = bench.producer()

    def outer(_message_id: str) -> Verdict:
        with pytest.raises(Crash):
            producer.send_half(message(), lambda _id: COMMIT)
        return COMMIT

    bench.broker.crash_at("after_commit")
    with pytest.raises(Crash):
        producer.send_half(message(), outer)
    assert bench.broker.half_messages() == 2
    send(producer)
    assert bench.broker.half_messages() == 2


def test_crash_points_work_around_any_transport(bench: Bench, resources: ExitStack) -> None:
    points = CrashPoints()
    producer = Wrapped(bench.broker, points).producer("p", lambda _check: UNKNOWN)
    resources.callback(producer.close, 5.0)
    producer.start()
    points.crash_at("after_commit")
    assert points.armed() == {"after_commit": 1}
    with pytest.raises(Crash):
        send(producer)
    assert points.armed() == {}


def test_a_step_that_does_not_exist_is_refused(bench: Bench) -> None:
    with pytest.raises(SettingsError, match=", ".join(STEPS)):
        bench.broker.crash_at("after_lunch")  # type: ignore[arg-type]


# -- waiting, and being told


def test_the_clock_is_not_moved_from_inside_a_handler_or_a_check_back(bench: Bench) -> None:
    problems: list[BaseException] = []

    def deliver(_delivery: Delivery) -> Answer:
        for wait in (lambda: bench.broker.advance(1), bench.broker.wait_until_consumed):
            try:
                wait()
            except LifecycleError as error:
                problems.append(error)
        return ACK

    bench.consumer(deliver)
    send(bench.producer())
    bench.broker.settle()
    assert len(problems) == 2


def test_a_handler_that_does_not_end_is_named(resources: ExitStack) -> None:
    bench = Bench(MemoryBroker(["t"], settle_seconds=0.05), resources)
    entered, may_end = threading.Event(), threading.Event()

    def deliver(_delivery: Delivery) -> Answer:
        entered.set()
        may_end.wait(10)
        return ACK

    bench.consumer(deliver)
    resources.callback(may_end.set)
    send(bench.producer())
    assert entered.wait(10)
    with pytest.raises(NotSettledError, match="a delivery to group c is being handled"):
        bench.broker.advance(1)


def test_waiting_for_what_needs_time_fails_at_once_and_tells_the_story(bench: Bench) -> None:
    bench.consumer(lambda delivery: ACK if delivery.redeliveries else RETRY)
    producer = bench.producer(COMMIT)
    with pytest.raises(NotConsumedError, match="no group nobody"):
        bench.broker.wait_until_consumed("t", group="nobody")
    send(producer)
    with pytest.raises(NotConsumedError, match=r"comes to group c in 10 s; let time pass(.|\n)*given back"):
        bench.broker.wait_until_consumed(seconds=3600)
    bench.broker.advance(10)
    bench.broker.wait_until_consumed("t", group="c")
    bench.broker.lose_verdict()
    send(producer)
    with pytest.raises(NotConsumedError, match="a half message of topic t waits for a verdict"):
        bench.broker.wait_until_consumed("t")


def test_the_story_is_told_by_transaction(bench: Bench) -> None:
    bench.consumer()
    producer = bench.producer()
    one, two = message(), message()
    for sent in (one, two):
        producer.send_half(sent, lambda _id: COMMIT)
    bench.broker.wait_until_consumed()
    story = bench.broker.story(one.properties["rmq_txn_id"])
    assert two.properties["rmq_txn_id"] not in story
    steps = ["stored; no consumer can see it", "local transaction: COMMIT", "visible to c", "acknowledged"]
    assert [step for step in steps if step in story] == steps
    assert [event.at for event in bench.broker.events(one.properties["rmq_txn_id"])] == [0, 0, 0, 0]


def test_a_clock_with_a_speed_runs_by_itself(resources: ExitStack) -> None:
    broker = resources.enter_context(MemoryBroker(["t"], speed=1000))
    bench = Bench(broker, resources)
    send(bench.producer(COMMIT), UNKNOWN)
    bench.consumer()
    until(lambda: bench.got, "the delivery after a check-back")
    broker.wait_until_consumed()


def test_a_topic_has_to_exist(bench: Bench) -> None:
    client = bench.broker.consumer("c", {"missing": ["*"]}, 1, lambda _delivery: ACK)
    with pytest.raises(BrokerUnavailableError, match=r"create_topic\('missing'\)"):
        client.start()
    with pytest.raises(InvalidMessageError):
        bench.broker.create_topic("no name")


@pytest.mark.parametrize(
    "settings",
    [
        {"transaction_timeout_seconds": -1},
        {"transaction_check_interval_seconds": 0},
        {"transaction_check_max": 0},
        {"delay_levels": "1 s"},
        {"delay_levels": ""},
        {"max_redeliveries": 1.5},
        {"new_group_from": "yesterday"},
        {"speed": -1},
        {"speed": float("nan")},
        {"settle_seconds": 0},
    ],
)
def test_a_setting_that_no_broker_would_take_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(settings))):
        MemoryBroker(**settings)


def test_time_does_not_go_back_and_faults_happen_at_least_once(bench: Bench) -> None:
    with pytest.raises(SettingsError, match="seconds"):
        bench.broker.advance(-1)
    with pytest.raises(SettingsError, match="count"):
        bench.broker.lose_verdict(0)
    with pytest.raises(SettingsError, match="seconds"):
        bench.broker.delay_verdict(0)


def test_importing_it_imports_neither_pytest_nor_a_container_engine() -> None:
    code = (
        "import sys, rmq_txn.testing as t; t.MemoryBroker(['t']); "
        "print([m for m in ('pytest', 'testcontainers', 'docker', 'rocketmq') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
