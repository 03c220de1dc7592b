"""What a consumer's upkeep makes of what brokers and tables say."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, cast

import pytest

from rmq_txn.consumer import parking
from rmq_txn.consumer.health import HealthNotes, Seen
from rmq_txn.consumer.parking import ParkedCount
from rmq_txn.consumer.upkeep import Upkeep
from rmq_txn.database.sideline import Sideline
from rmq_txn.errors import BrokerUnavailableError, DatabaseUnavailableError
from rmq_txn.transport import ConsumerTransport, Lag, TagFilter


class Client:
    """FAKE. A client whose brokers say what the test wants."""

    def __init__(self) -> None:
        self.registered = True
        self.behind: Lag | Exception = Lag(0, 7)
        self.others: tuple[TagFilter, ...] = ()

    def is_registered(self, _topic: str) -> bool:
        return self.registered

    def lag(self) -> Lag:
        if isinstance(self.behind, Exception):
            raise self.behind
        return self.behind

    def filters(self) -> tuple[TagFilter, ...]:
        return self.others


class Line:
    """FAKE. A sideline whose sessions do nothing, or are refused."""

    refused = False

    @contextmanager
    def session(self) -> Any:
        if self.refused:
            raise DatabaseUnavailableError("the parked messages can't be worked on: gone (error 2013)")
        yield None


class Post:
    """An upkeep on fakes, with a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client, self.line, self.clock = Client(), Line(), 1000.0
        self.failing = self.parked = ParkedCount()
        monkeypatch.setattr(parking, "count", lambda _session, _group: (self.failing, self.parked))
        self.upkeep = Upkeep(
            cast(Any, None),
            "points",
            ["transfer"],
            cast(ConsumerTransport, self.client),
            HealthNotes(),
            now=lambda: self.clock,
        )

    def look(self, after_seconds: float = 0.0) -> Seen:
        self.clock += after_seconds
        return self.upkeep.look(cast(Sideline, self.line))


@pytest.fixture
def post(monkeypatch: pytest.MonkeyPatch) -> Post:
    return Post(monkeypatch)


def test_all_is_well(post: Post) -> None:
    assert post.look() == Seen(registered=True, lag=0)


def test_what_fails_and_what_is_parked_are_problems_with_the_time_of_the_oldest(post: Post) -> None:
    post.failing, post.parked = ParkedCount(2, 0.0), ParkedCount(3, 86_400.0)
    seen = post.look()
    assert (seen.failing, seen.parked) == (2, 3)
    failing, parked = seen.problems
    assert failing.startswith("2 messages of group points fail and are delivered again")
    assert "since 1970-01-01T00:00:00Z" in failing
    assert parked.startswith("3 messages of group points are parked, the oldest since 1970-01-02T00:00:00Z")


def test_a_group_that_moves_is_not_stuck_however_far_it_is_behind(post: Post) -> None:
    for position in range(20):
        post.client.behind = Lag(1_000_000, position)
        assert post.look(60).problems == ()


def test_a_group_that_stands_while_messages_wait_is_stuck_after_two_minutes(post: Post) -> None:
    post.client.behind = Lag(5, 7)
    assert post.look().problems == ()
    assert post.look(119).problems == ()
    (problem,) = post.look(1).problems
    assert problem.startswith("5 messages wait for group points, and it has acknowledged none for 120 s")
    post.client.behind = Lag(4, 8)
    assert post.look(1).problems == ()


def test_a_group_that_had_nothing_to_do_is_not_stuck_when_messages_come(post: Post) -> None:
    """The time of standing begins with the first message that waits."""
    for _ in range(5):
        assert post.look(60).problems == ()
    post.client.behind = Lag(1, 7)
    assert post.look(60).problems == ()
    assert len(post.look(61).problems) == 1


def test_a_consumer_that_brokers_do_not_know_is_a_problem_when_they_should_have_heard(post: Post) -> None:
    post.client.registered = False
    assert post.look() == Seen(registered=False, lag=0)
    assert post.look(39).problems == ()
    assert post.look(1).problems == ("a broker does not know this consumer, it would not deliver to it",)
    post.client.registered = True
    assert post.look(1).problems == ()
    post.client.registered = False
    assert post.look(1).problems == ()


def test_a_member_that_filters_is_a_problem_while_it_is_there_and_logged_once(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    post.client.others = (TagFilter("10.0.0.7@12", "JAVA", "transfer", "created || paid"),)
    for _ in range(2):
        (problem,) = post.look().problems
        assert problem.startswith(
            "member 10.0.0.7@12 (JAVA) of group points wants only 'created || paid' of topic 'transfer'"
        )
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    post.client.others = ()
    assert post.look().problems == ()


def test_brokers_and_database_that_can_not_be_asked_are_problems_and_no_numbers(post: Post) -> None:
    """One of both is asked all the same."""
    post.client.behind = BrokerUnavailableError("silent")
    post.parked = ParkedCount(1, 0.0)
    seen = post.look()
    assert (seen.registered, seen.lag, seen.parked) == (False, None, 1)
    assert seen.problems[0] == "the brokers can't be asked: silent"
    post.line.refused = True
    assert post.look().problems[1:] == ("the parked messages can't be worked on: gone (error 2013)",)
