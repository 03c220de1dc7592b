"""What is told to a person about one thing: what is known, what nobody could say, and what comes next."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Sentences:
    """
    Sentences that are being collected. For one thread.

    Attributes:
        needs_a_person: one of them is about what does not go on by itself.
    """

    known: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    needs_a_person: bool = False
