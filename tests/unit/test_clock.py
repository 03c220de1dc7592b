"""The clock by which ages are judged."""

from __future__ import annotations

import pytest

from rmq_txn.clock import DatabaseClock


class Machine:
    """A machine whose wall clock is as wrong as it is told."""

    def __init__(self) -> None:
        self.boot, self.wall = 100.0, 1_700_000_000.0


@pytest.fixture
def machine() -> Machine:
    """Return a machine."""
    return Machine()


@pytest.fixture
def clock(machine: Machine) -> DatabaseClock:
    """Return the clock on that machine."""
    return DatabaseClock(lambda: machine.boot, lambda: machine.wall)


def test_until_the_database_was_asked_this_machine_is_believed(clock: DatabaseClock) -> None:
    """There is no better one."""
    assert clock.now() == 1_700_000_000.0
    assert clock.skew_seconds() == 0.0


def test_it_goes_on_between_two_answers_and_no_step_of_this_machine_moves_it(
    machine: Machine, clock: DatabaseClock
) -> None:
    """By the clock since boot."""
    clock.set(1_600_000_000.0)
    machine.boot += 7.0
    machine.wall += 86_400.0
    assert clock.now() == 1_600_000_007.0


def test_skew_is_positive_when_this_machine_is_ahead(machine: Machine, clock: DatabaseClock) -> None:
    """Eight days, say."""
    clock.set(machine.wall - 8 * 86_400)
    assert clock.skew_seconds() == 8 * 86_400
    clock.set(machine.wall + 61)
    assert clock.skew_seconds() == -61


def test_a_step_of_the_databases_clock_is_counted_and_drift_is_not(
    machine: Machine, clock: DatabaseClock
) -> None:
    """The first answer is no step, however wrong this machine is."""
    clock.set(1_600_000_000.0)
    machine.boot += 10.0
    clock.set(1_600_000_012.0)
    assert clock.steps == 0
    machine.boot += 10.0
    clock.set(1_600_000_012.0)
    machine.boot += 10.0
    clock.set(1_600_000_032.0)
    assert clock.steps == 2
