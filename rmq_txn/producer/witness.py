"""
The rule by which a producer deletes copies of another one: it saw the whole life of their transaction.

A broker asks any client of the group. Who was there, and well, from before the copies were written until
the broker asks no more, was among those it would have asked; so whether the process that sent the verdict
still lives, or ever sent it, does not matter. No I/O here; docs/decisions/0067.
"""

from __future__ import annotations

from typing import Final

from rmq_txn.clock import DatabaseClock
from rmq_txn.identity import made_at
from rmq_txn.producer.undisturbed_time import UndisturbedTime

_ROUNDING_SECONDS: Final = 2.0
"""The database tells the age of a copy in whole seconds."""


class Witness:
    """
    Whether all was well for as long as a broker could ask about some transaction. For one thread.

    Args:
        clock: by which ids are made and copies grow old.
        check_budget_seconds: how long a broker goes on asking about a half message.
        longest_seconds: a transaction that holds its log row for longer disturbs who is asked about it.
    """

    def __init__(
        self,
        undisturbed: UndisturbedTime,
        clock: DatabaseClock,
        *,
        check_budget_seconds: float,
        longest_seconds: float,
    ) -> None:
        self._undisturbed = undisturbed
        self._clock = clock
        self._budget_seconds = check_budget_seconds
        # So long a broker may ask in vain: the transaction has not ended. As with a late verdict, enough
        # questions must be left.
        self._late_seconds = check_budget_seconds / 4
        self._can_tell = longest_seconds <= self._late_seconds
        self._calm: tuple[float, int] | None = None
        self._newest = ""

    def look(self, since: float, newest: str) -> None:
        """
        Take note of the copies that were there already when all had just become well.

        Args:
            since: what `UndisturbedTime.tick` said before the table was read.
            newest: the highest transaction id in the outbox, empty if there is none. A higher one was
                committed later; this is told by no clock, as one that was set back in the middle of an
                outage would make what lay there already look new.
        """
        calm = since, self._clock.steps
        if calm != self._calm:
            self._calm, self._newest = calm, newest

    def saw(self, txn_id: str, stored_ago: float) -> bool:
        """
        Whether the broker surely has what a committed transaction published.

        Args:
            stored_ago: seconds since its copies were written, after its last half message, by the
                database's clock.
        """
        since = self._undisturbed.tick()  # after the age was read: a pause since then shows now
        if not self._can_tell or (since, self._clock.steps) != self._calm or txn_id <= self._newest:
            return False
        now = self._undisturbed.now()
        in_time = now - (self._clock.now() - made_at(txn_id)) + self._late_seconds
        stored = now - stored_ago + _ROUNDING_SECONDS
        asked_until = stored + self._budget_seconds
        return max(since, stored) <= in_time and asked_until < self._undisturbed.vouched_until
