"""The explorer itself, on models small enough to be seen through."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.explorer import Step, explore


def clock(hour: int) -> Iterator[Step[int]]:
    """Three hours in a circle, and a trap behind a fault."""
    if hour < 3:
        yield Step("tick", (hour + 1) % 3)
        yield Step("jump", 2)
        yield Step("FAULT falls down", 3, is_fault=True)


def test_a_promise_that_holds_is_reported_with_what_was_seen() -> None:
    """All states behind steps of both kinds are visited, each once."""
    found = explore(0, clock, lambda hour: None, lambda hour: True, "stuck")
    assert (found.broken, found.states, found.steps) == (None, 4, 9)


def test_the_shortest_way_into_a_wrong_state_is_told() -> None:
    """One jump, not two ticks."""
    found = explore(0, clock, lambda hour: "two" if hour == 2 else None, lambda hour: True, "stuck")
    assert (found.broken, found.story) == ("two", ("jump",))


def test_a_state_that_can_never_finish_is_found() -> None:
    """The trap has no way out."""
    found = explore(0, clock, lambda hour: None, lambda hour: hour == 1, "stuck")
    assert (found.broken, found.story) == ("stuck", ("FAULT falls down",))


def test_a_fault_is_no_way_to_finish() -> None:
    """What can end well only by a fault does not end well."""
    found = explore(0, clock, lambda hour: None, lambda hour: hour == 3, "stuck")
    assert (found.broken, found.story) == ("stuck", ())
