"""When a producer may delete what another one left: it was there, and all was well, the whole time."""

from __future__ import annotations

import pytest

from rmq_txn.clock import DatabaseClock
from rmq_txn.identity import new_txn_id
from rmq_txn.producer.undisturbed_time import UndisturbedTime
from rmq_txn.producer.witness import Witness

BUDGET, LONGEST = 600.0, 75.0
EPOCH = 1_700_000_000.0
"""What the database's clock says when the machine's says 0."""


class Scene:
    """A process that began at 0, its clocks, and transactions of others."""

    def __init__(self, *, longest_seconds: float = LONGEST) -> None:
        self.now = 0.0
        self.stepped = 0.0
        self.time = UndisturbedTime(
            pause_seconds=5000.0,
            silence_seconds=5000.0,
            others=(),
            now=lambda: self.now,
            wall=lambda: self.now,
        )
        self.clock = DatabaseClock(lambda: self.now, lambda: self.now)
        self.witness = Witness(
            self.time, self.clock, check_budget_seconds=BUDGET, longest_seconds=longest_seconds
        )

    def database_time(self, at: float) -> float:
        return EPOCH + at + self.stepped

    def look(self, *present: str) -> None:
        """Do what a round does: ask the time, vouch, read what there is."""
        self.clock.set(self.database_time(self.now))
        self.time.vouch(self.now - 40)
        self.witness.look(self.time.tick(), max(present, default=""))

    def id_at(self, at: float) -> str:
        return new_txn_id(self.database_time(at))

    def saw(self, txn_id: str, stored_at: float) -> bool:
        return self.witness.saw(txn_id, self.now - stored_at)


def seen(scene: Scene) -> str:
    """Live through a transaction of another one: begun at 100, stored at 101, over at 760."""
    scene.look()
    txn_id = scene.id_at(100)
    scene.now = 102
    scene.look(txn_id)
    scene.now = 760
    scene.look(txn_id)
    return txn_id


def test_a_transaction_that_came_and_went_while_all_was_well_is_settled() -> None:
    scene = Scene()
    assert scene.saw(seen(scene), 101)


def test_what_lay_there_at_the_first_look_is_not() -> None:
    """Whatever its age says: nothing is known of the time before."""
    scene = Scene()
    scene.now = 100
    txn_id = scene.id_at(100)
    scene.look(txn_id)
    scene.now = 760
    scene.look(txn_id)
    assert not scene.saw(txn_id, 101)


def test_it_is_not_before_the_broker_has_asked_for_the_last_time() -> None:
    """As of what is known of the group, which is a while ago."""
    scene = Scene()
    scene.look()
    txn_id = scene.id_at(100)
    scene.now = 101 + BUDGET + 35
    scene.look(txn_id)
    assert not scene.saw(txn_id, 101)
    scene.now += 10
    scene.look(txn_id)
    assert scene.saw(txn_id, 101)


@pytest.mark.parametrize("disturb", ["disturb", "disturb_by_group"])
def test_a_disturbance_of_this_process_or_of_its_group_ends_it(disturb: str) -> None:
    """Also one that the next look does not know yet."""
    scene = Scene()
    txn_id = seen(scene)
    getattr(scene.time, disturb)("somebody was cut off")
    assert not scene.saw(txn_id, 101)
    scene.look(txn_id)
    assert not scene.saw(txn_id, 101)


def test_after_a_disturbance_what_comes_later_is_settled_again() -> None:
    scene = Scene()
    scene.look()
    scene.now = 50
    scene.time.disturb("a pause")
    assert scene.saw(seen(scene), 101)


def test_a_transaction_that_began_long_before_is_not_though_it_committed_later() -> None:
    """The broker may have asked in vain for more than a quarter of its time."""
    scene = Scene()
    for began, expected in ((-BUDGET / 4 - 5, False), (-BUDGET / 4 + 5, True)):
        scene.now = 0.0
        scene.time.begin()
        scene.look()
        txn_id = scene.id_at(began)
        scene.now = 760
        scene.look(txn_id)
        scene.witness._newest = ""  # it was not there yet at the first look
        assert scene.saw(txn_id, -1) is expected


def test_one_whose_copies_came_late_is_not() -> None:
    """Its half message may have been stored at its beginning, and its verdict come as late."""
    scene = Scene()
    scene.look()
    txn_id = scene.id_at(100)
    scene.now = 1200
    scene.look(txn_id)
    assert not scene.saw(txn_id, 100 + BUDGET / 4)
    assert scene.saw(txn_id, 100 + BUDGET / 4 - 5)


def test_nothing_is_told_where_transactions_may_take_long() -> None:
    """A lock that lasts for a quarter of the budget disturbs nobody there."""
    scene = Scene(longest_seconds=BUDGET / 4 + 1)
    assert not scene.saw(seen(scene), 101)
    scene = Scene(longest_seconds=BUDGET / 4)
    assert scene.saw(seen(scene), 101)


@pytest.mark.parametrize("step", [-500.0, 500.0])
def test_a_database_whose_clock_was_set_makes_nothing_young(step: float) -> None:
    """What was there then is not settled; what comes after it is."""
    scene = Scene()
    txn_id = seen(scene)
    scene.stepped = step
    scene.look(txn_id)
    assert not scene.saw(txn_id, 101)
    later = scene.id_at(scene.now + 600)
    scene.now += 600 + 760
    scene.look(later)
    assert scene.saw(later, scene.now - 700)
