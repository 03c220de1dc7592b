"""Ties an action of a model to the code it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


class Names:
    """Collects dotted names; `test_model.py` looks each of them up."""

    def __init__(self) -> None:
        self.by_action: dict[str, tuple[str, ...]] = {}

    def __call__(self, *dotted: str) -> Callable[[F], F]:
        def note(action: F) -> F:
            self.by_action[action.__name__] = dotted
            return action

        return note
