"""
Visits every state a small model can reach, the nearest first, and reports the shortest way into a bad one.

Two kinds of promise are checked:

* safety: `wrong(state)` names what must never be true;
* liveness: from every state a run without further faults can still reach a state that is `finished`.
  With a finite number of states that means "in the end", if no step is put off for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

S = TypeVar("S", bound=Hashable)


class Step(NamedTuple, Generic[S]):
    """One thing that may happen next: in words, and the state after it."""

    text: str
    state: S
    is_fault: bool = False


@dataclass(frozen=True)
class Found:
    """What an exploration found: how much it saw, and the shortest story that ends badly, if any."""

    states: int
    steps: int
    broken: str | None = None
    story: tuple[str, ...] = ()

    def __str__(self) -> str:
        seen = f"{self.states} states, {self.steps} steps"
        if self.broken is None:
            return f"every promise holds ({seen})"
        lines = [f"{number:3}. {text}" for number, text in enumerate(self.story, 1)]
        return "\n".join([f"BROKEN: {self.broken} ({seen})", *lines])


def explore(
    first: S,
    steps: Callable[[S], Iterator[Step[S]]],
    wrong: Callable[[S], str | None],
    finished: Callable[[S], bool],
    never_finished: str,
) -> Found:
    """Visit every state reachable from `first`; stop at the first one that is wrong."""
    came_from: dict[S, tuple[S, str] | None] = {first: None}
    led_here: dict[S, list[S]] = {}  # by steps that are no faults
    count = 0

    def story(state: S) -> tuple[str, ...]:
        told: list[str] = []
        while (before := came_from[state]) is not None:
            state, text = before
            told.append(text)
        return tuple(reversed(told))

    queue = [first]
    for state in queue:  # it grows while we walk: breadth first
        if broken := wrong(state):
            return Found(len(came_from), count, broken, story(state))
        for text, after, is_fault in steps(state):
            count += 1
            if not is_fault:
                led_here.setdefault(after, []).append(state)
            if after not in came_from:
                came_from[after] = (state, text)
                queue.append(after)

    hopeful = {state for state in queue if finished(state)}
    backwards = list(hopeful)
    for state in backwards:
        for before in led_here.get(state, ()):
            if before not in hopeful:
                hopeful.add(before)
                backwards.append(before)
    for state in queue:
        if state not in hopeful:
            return Found(len(queue), count, never_finished, story(state))
    return Found(len(queue), count)
