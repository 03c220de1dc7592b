"""What a producer says about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ROWS_COUNTED_BY_ALL: Final = 10_000
"""Of hundreds of producers each would walk over the millions of rows that a busy database has."""


@dataclass(frozen=True, slots=True)
class ProducerHealth:
    """
    How a producer is, as of its last look, some seconds ago; asks nobody.

    Attributes:
        registered: the brokers of all topics know this producer, so check-backs reach it.
        outbox_rows: copies in the database, of all its producers. From 10,000 on only the producer that
            is its relay counts them; the others say 10,000.
        oldest_row_seconds: age of the oldest, 0 if there is none.
        foreign_checks: questions about half messages of another owner, since the start.
        problems: a sentence for each thing that somebody has to look at; empty is healthy.
        forged_checks: questions about half messages that name this owner and that it did not sign.
        clock_skew_seconds: how far this machine's clock is ahead of the database's; negative: behind.
        database_answers: the last look could read and write our tables.
        suspects: clients that brokers ask about messages of this group, and whose answers nobody can
            vouch for; as long as there is one, copies are kept and published again.
    """

    registered: bool
    outbox_rows: int
    oldest_row_seconds: float
    foreign_checks: int
    problems: tuple[str, ...]
    forged_checks: int = 0
    clock_skew_seconds: float = 0.0
    database_answers: bool = True
    suspects: int = 0
