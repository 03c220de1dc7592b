"""
The rule of undisturbed time: when a process may believe that the broker has the verdicts it sent.

That a verdict was sent proves nothing, the end of a transaction is one-way. But a broker without the
verdict asks, again and again, until its check budget is used up. If all that time this process ran,
was known to the brokers and could look its log rows up, and so did whoever else of its group the brokers
ask, then it was asked and has answered. No I/O here; docs/decisions/0012 and 0029.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rmq_txn.clock import boot_seconds
from rmq_txn.logs import get_logger

log = get_logger("outbox")

_SLICE_SECONDS = 1.0
_TXN_ID_BYTES = 16


class UndisturbedTime:
    """
    Since when nothing kept this process, and its group, from being asked and from answering. Thread-safe.

    Args:
        pause_seconds: a longer gap between two ticks means that the process stood still.
        silence_seconds: one of `others` who was not heard for longer disturbs, until heard again.
        others: whose answers check-back needs.
        now, wall: the clocks. A jump of the wall clock counts as a gap, too: when a virtual machine
            is frozen, its monotonic clock is as well.

    Attributes:
        disturbances: how often this process itself could not vouch for its answers, by whatever cause.
        vouched_until: up to here the whole group is known to have answered; see `vouch`.
    """

    def __init__(
        self,
        *,
        pause_seconds: float,
        silence_seconds: float,
        others: tuple[str, ...],
        now: Callable[[], float] = boot_seconds,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.now = now
        self._wall = wall
        self._pause_seconds = pause_seconds
        self._silence_seconds = silence_seconds
        self._others = others
        self._lock = threading.Lock()
        self.disturbances = 0
        self.vouched_until = -math.inf
        self._group_cause = ""
        self._cause: str | None = None
        self.begin()

    def begin(self) -> None:
        """Count from now on: nobody ticked before."""
        with self._lock:
            self._since = self._own_since = self._ticked = self.now()
            self._wall_ticked = self._wall()
            self._heard = dict.fromkeys(self._others, self._since)

    def heard(self, who: str) -> None:
        """Take note that one of the others answered."""
        with self._lock:
            self._heard[who] = self.now()

    def tick(self) -> float:
        """
        Look at the clocks, once a second and before each decision; return since when all was well.
        """
        with self._lock:
            self._look(self.now(), self._wall())
            return self._since

    def tick_own(self) -> float:
        """As `tick`, without what the rest of the group did: since when brokers could reach this process."""
        with self._lock:
            self._look(self.now(), self._wall())
            return self._own_since

    def _look(self, now: float, wall: float) -> None:
        cause = None
        if max(now - self._ticked, wall - self._wall_ticked) > self._pause_seconds:
            cause = "this process stood still"
        for who, heard in self._heard.items():
            if now - heard > self._silence_seconds:
                cause = cause or f"no answer of the {who}"
        self._ticked, self._wall_ticked = now, wall
        if cause is not None:
            self.disturbances += 1
            self._own_since = now
        self._note(cause or self._group_cause or None, now)

    def disturb(self, cause: str) -> None:
        """Begin anew, now: something of this process's own, which the rest of the group shall know, too."""
        with self._lock:
            self.disturbances += 1
            self._own_since = now = self.now()
            self._note(cause, now)

    def disturb_by_group(self, cause: str) -> None:
        """Begin anew, now, because of another process; not passed on, or it would never end."""
        with self._lock:
            self._note(cause, self.now())

    def keep_disturbing_by_group(self, cause: str) -> None:
        """Let another process disturb from now on, until this is called with an empty cause."""
        with self._lock:
            self._group_cause = cause
            if cause:
                self._note(cause, self.now())

    def vouch(self, until: float) -> None:
        """Take note that until then nobody of the group was unwell without this process knowing."""
        with self._lock:
            self.vouched_until = until

    def _note(self, cause: str | None, now: float) -> None:
        if cause is not None:
            self._since = now
            if cause != self._cause:  # a silence is found again each second
                log.warning("verdicts sent before now are not trusted, the relay takes over", cause=cause)
        self._cause = cause


@dataclass(slots=True)
class _Slice:
    """Transactions that ended within one second."""

    ended: float
    first_began: float
    txn_ids: bytearray = field(default_factory=bytearray)  # 16 bytes each: there may be a million


class SentVerdicts:
    """
    The transactions whose COMMIT this process sent, until their copies may be deleted. Thread-safe.

    Args:
        check_budget_seconds: how long a broker goes on asking about a half message.
    """

    def __init__(self, undisturbed: UndisturbedTime, check_budget_seconds: float) -> None:
        self._undisturbed = undisturbed
        self.now = undisturbed.now
        """Returns the time to give to `add`, before the first half message."""
        self._budget_seconds = check_budget_seconds
        self._lock = threading.Lock()
        self._slices: deque[_Slice] = deque()

    def add(self, txn_id: str, began: float) -> None:
        """
        Remember a transaction whose verdict was just sent.

        Args:
            began: `now()` before its first half message.
        """
        now = self._undisturbed.now()
        if now - began > self._budget_seconds / 4:
            return  # the broker has asked in vain for a while: too few questions may be left
        with self._lock:
            if not self._slices or now - self._slices[-1].ended >= _SLICE_SECONDS:
                self._slices.append(_Slice(now, began))
            last = self._slices[-1]
            last.first_began = min(last.first_began, began)
            last.txn_ids += bytes.fromhex(txn_id)

    def settled(self) -> Iterator[list[str]]:
        """
        Take out, in batches, the transactions of which the broker surely has the verdict.

        What is older than the check budget and does not pass is forgotten: the relay has it.
        """
        while (batch := self._oldest_of_age()) is not None:
            since = self._undisturbed.tick()  # after the age was judged: a pause before it shows now
            if batch.first_began >= since:
                packed = batch.txn_ids.hex()
                step = 2 * _TXN_ID_BYTES
                yield [packed[start : start + step] for start in range(0, len(packed), step)]

    def _oldest_of_age(self) -> _Slice | None:
        with self._lock:
            if not self._slices:
                return None
            # Not its age now: who fell ill since the last look at the group is not known yet.
            # The slice takes more transactions for a second after `ended`.
            age = self._undisturbed.vouched_until - self._slices[0].ended - _SLICE_SECONDS
            return self._slices.popleft() if age > self._budget_seconds else None
