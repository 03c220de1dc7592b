"""The rule of undisturbed time, with clocks that do what they are told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from rmq_txn.clock import boot_seconds
from rmq_txn.identity import new_txn_id
from rmq_txn.producer.undisturbed_time import SentVerdicts, UndisturbedTime

BUDGET = 600.0


class Clocks:
    """A monotonic clock and a wall clock that is an hour ahead of it."""

    def __init__(self) -> None:
        self.monotonic = 1000.0
        self.wall = 4600.0

    def pass_(self, seconds: float) -> None:
        """Let time pass on both."""
        self.monotonic += seconds
        self.wall += seconds


class Rig:
    """A process that ticks each second and hears broker and database each ten."""

    def __init__(self) -> None:
        self.clocks = Clocks()
        self.time = UndisturbedTime(
            pause_seconds=5.0,
            silence_seconds=30.0,
            others=("broker", "database"),
            now=lambda: self.clocks.monotonic,
            wall=lambda: self.clocks.wall,
        )
        self.verdicts = SentVerdicts(self.time, BUDGET)
        self.silent: set[str] = set()
        self.looks = True

    def run(self, seconds: int) -> None:
        """Live through so many seconds without a pause."""
        for second in range(seconds):
            self.clocks.pass_(1.0)
            self.time.tick()
            if self.looks:
                self.time.vouch(self.time.now())
            for who in {"broker", "database"} - self.silent if second % 10 == 0 else ():
                self.time.heard(who)

    def commit(self) -> str:
        """Commit a transaction that takes a moment; return its id."""
        txn_id, began = new_txn_id(), self.time.now()
        self.clocks.pass_(0.1)
        self.verdicts.add(txn_id, began)
        return txn_id

    def settled(self) -> list[str]:
        """Return what may be deleted now."""
        return [txn_id for batch in self.verdicts.settled() for txn_id in batch]


@pytest.fixture
def rig() -> Rig:
    """Return a rig that has been running for a while."""
    rig = Rig()
    rig.run(100)
    return rig


def test_in_calm_a_copy_may_go_after_the_check_budget_and_not_before(rig: Rig) -> None:
    """Once, in the order of the commits."""
    first, second = rig.commit(), rig.commit()
    rig.run(3)
    third = rig.commit()
    rig.run(int(BUDGET) - 3)
    assert rig.settled() == []
    rig.run(3)
    assert rig.settled() == [first, second]
    rig.run(3)
    assert rig.settled() == [third]
    rig.run(1000)
    assert rig.settled() == []


@pytest.mark.parametrize("after", [1, 300, 599])
def test_a_pause_at_any_time_until_then_leaves_the_copy_to_the_relay(rig: Rig, after: int) -> None:
    """For ever: later calm proves nothing about questions of before."""
    rig.commit()
    rig.run(after)
    rig.clocks.pass_(6.0)
    rig.run(2000)
    assert rig.settled() == []


def test_a_pause_that_ends_when_the_age_is_reached_is_seen_first(rig: Rig) -> None:
    """The thread that deletes may wake before the one that ticks; deleting looks at the clock itself."""
    rig.commit()
    rig.run(10)
    rig.clocks.pass_(5000.0)
    assert rig.settled() == []


def test_a_commit_after_a_disturbance_is_not_touched_by_it(rig: Rig) -> None:
    """Undisturbed since the first half message is enough."""
    rig.clocks.pass_(60.0)
    rig.run(1)
    txn_id = rig.commit()
    rig.run(700)
    assert rig.settled() == [txn_id]


def test_a_transaction_that_was_running_at_a_disturbance_is_left_to_the_relay(rig: Rig) -> None:
    """Its half message may have been asked about meanwhile."""
    began = rig.time.now()
    rig.clocks.pass_(6.0)
    rig.time.tick()
    rig.verdicts.add(new_txn_id(), began)
    rig.run(700)
    assert rig.settled() == []


def test_a_small_gap_is_no_pause(rig: Rig) -> None:
    """Threads wait for each other now and then."""
    txn_id = rig.commit()
    for _ in range(200):
        rig.run(1)
        rig.clocks.pass_(4.0)
        for who in ("broker", "database"):
            rig.time.heard(who)
    assert rig.settled() == [txn_id]


@pytest.mark.parametrize("who", ["broker", "database"])
def test_a_silence_of_more_than_30_seconds_disturbs_until_it_ends(rig: Rig, who: str) -> None:
    """Neither what was sent before it nor what was sent in it is trusted."""
    rig.commit()
    rig.run(10)
    rig.silent = {who}
    rig.run(30)
    rig.commit()
    rig.run(60)
    rig.silent = set()
    rig.run(11)
    after = rig.commit()
    rig.run(1000)
    assert rig.settled() == [after]


@pytest.mark.parametrize("who", ["broker", "database"])
def test_a_short_silence_does_not_disturb(rig: Rig, who: str) -> None:
    """A broker that restarts in twenty seconds asks often enough afterwards."""
    txn_id = rig.commit()
    rig.silent = {who}
    rig.run(19)
    rig.silent = set()
    rig.run(700)
    assert rig.settled() == [txn_id]


def test_a_frozen_machine_shows_on_the_wall_clock_alone(rig: Rig) -> None:
    """Its monotonic clock stood still with it; the wall clock is put right afterwards."""
    rig.commit()
    rig.clocks.wall += 3600
    rig.run(700)
    assert rig.settled() == []


def test_a_wall_clock_put_back_changes_nothing(rig: Rig) -> None:
    """Ages are judged by the monotonic clock."""
    txn_id = rig.commit()
    rig.clocks.wall -= 3600
    rig.run(598)
    assert rig.settled() == []
    rig.run(5)
    assert rig.settled() == [txn_id]


def test_a_verdict_sent_late_is_left_to_the_relay(rig: Rig) -> None:
    """The broker asked in vain for a quarter of its budget: if the verdict is lost, too few are left."""
    began = rig.time.now()
    rig.run(149)
    in_time, late = new_txn_id(), new_txn_id()
    rig.verdicts.add(in_time, began)
    rig.run(2)
    rig.verdicts.add(late, began)
    rig.run(700)
    assert rig.settled() == [in_time]


def test_one_late_transaction_makes_its_second_wait_for_its_first_half_message(rig: Rig) -> None:
    """Transactions of one second share the oldest beginning among them."""
    began = rig.time.now()
    rig.clocks.pass_(6.0)
    rig.time.tick()
    rig.verdicts.add(new_txn_id(), rig.time.now())
    rig.verdicts.add(new_txn_id(), began)
    rig.run(700)
    assert rig.settled() == []


def test_a_disturbance_is_logged_once_however_long_it_lasts(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """And again when it comes again."""
    with caplog.at_level(logging.WARNING, "rmq_txn.outbox"):
        rig.silent = {"broker"}
        rig.run(500)
        assert len(caplog.records) == 1
        assert "no answer of the broker" in caplog.text
        rig.silent = set()
        rig.run(100)
        rig.time.disturb("another service")
        rig.clocks.pass_(20.0)
        rig.run(100)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert "another service" in said[1]
    assert "stood still" in said[2]


def test_a_copy_stays_until_the_group_was_looked_at_long_enough_after_the_last_question(rig: Rig) -> None:
    """A sibling that fell ill at the last question still had a row that looked well."""
    txn_id = rig.commit()
    rig.looks = False
    rig.run(1000)
    assert rig.settled() == []
    rig.time.vouch(rig.time.now() - (1000 - BUDGET))
    assert rig.settled() == []
    rig.time.vouch(rig.time.now() - (1000 - BUDGET) + 3)
    assert rig.settled() == [txn_id]


def test_an_ill_sibling_disturbs_until_it_is_well(rig: Rig) -> None:
    """What was sent before and meanwhile goes to the relay."""
    rig.commit()
    rig.run(10)
    rig.time.keep_disturbing_by_group("a sibling is cut off")
    rig.run(100)
    rig.commit()
    rig.run(10)
    rig.time.keep_disturbing_by_group("")
    rig.run(1)
    after = rig.commit()
    rig.run(1000)
    assert rig.settled() == [after]


def test_what_disturbed_a_sibling_is_not_passed_on(rig: Rig) -> None:
    """Two producers would disturb each other for ever."""
    before = rig.time.disturbances
    rig.time.disturb_by_group("a sibling was disturbed")
    rig.time.keep_disturbing_by_group("a sibling is cut off")
    rig.run(10)
    assert rig.time.disturbances == before
    rig.time.disturb("a question was answered unknown")
    assert rig.time.disturbances == before + 1


def test_an_ill_sibling_does_not_keep_the_relay_from_deleting(rig: Rig) -> None:
    """What was published again is only in danger when brokers were; a stranger in the group may stay."""
    rig.time.keep_disturbing_by_group("another service shares this producer group")
    rig.run(100)
    since = rig.time.now() - 50
    assert rig.time.tick() > since
    assert rig.time.tick_own() < since
    rig.clocks.pass_(6.0)
    assert rig.time.tick_own() > since


def test_what_was_before_the_beginning_disturbs_nobody(rig: Rig) -> None:
    """A start that waited for brokers is no pause."""
    rig.clocks.pass_(60.0)
    rig.time.begin()
    before = rig.time.disturbances
    rig.run(10)
    assert rig.time.disturbances == before


def test_a_million_transactions_cost_sixteen_bytes_each(rig: Rig) -> None:
    """Ten minutes at more than a thousand a second."""
    ids = [new_txn_id() for _ in range(5000)]
    for txn_id in ids:
        rig.verdicts.add(txn_id, rig.time.now())
    (only,) = rig.verdicts._slices
    assert len(only.txn_ids) == 16 * len(ids)
    rig.run(700)
    assert rig.settled() == ids


def test_the_real_clock_goes_on_while_the_machine_sleeps() -> None:
    """Time since boot, not the time it was awake."""
    uptime = Path("/proc/uptime").read_text(encoding="ascii").split()[0]
    assert abs(boot_seconds() - float(uptime)) < 30


def test_its_own_disturbances_are_counted_for_the_others_and_those_of_the_group_are_not(rig: Rig) -> None:
    """Passed on, what another one told would go round for ever."""
    assert rig.time.disturbances == 0
    rig.clocks.pass_(6.0)
    rig.time.tick()
    assert rig.time.disturbances == 1
    rig.time.disturb("a check-back that can't be answered")
    assert rig.time.disturbances == 2
    rig.time.disturb_by_group("producer a of this group was disturbed")
    rig.time.keep_disturbing_by_group("other clients of this group answer, too")
    rig.run(3)
    assert rig.time.disturbances == 2


def test_what_the_group_did_begins_the_time_anew_but_not_this_process_s_own(rig: Rig) -> None:
    since = rig.time.tick()
    rig.run(10)
    rig.time.disturb_by_group("producer a of this group was disturbed")
    assert rig.time.tick() == rig.clocks.monotonic
    assert rig.time.tick_own() == since


def test_a_suspect_disturbs_from_the_moment_it_is_told_until_it_is_not_told_any_more(rig: Rig) -> None:
    rig.run(10)
    rig.time.keep_disturbing_by_group("other clients of this group answer, too")
    told = rig.clocks.monotonic
    assert rig.time._since == told  # before the next tick
    rig.run(10)
    assert rig.time.tick() == rig.clocks.monotonic
    rig.time.keep_disturbing_by_group("")
    last = rig.clocks.monotonic
    rig.run(10)
    assert rig.time.tick() == last


def test_nothing_is_settled_before_anybody_vouched_for_the_group() -> None:
    rig = Rig()
    rig.looks = False
    rig.commit()
    rig.run(int(BUDGET) + 100)
    assert rig.settled() == []
