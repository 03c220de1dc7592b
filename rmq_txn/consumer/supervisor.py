"""
Keeps consumer processes running: restarts with growing pauses, and recognises a crash loop.

Pure: processes, clock and chance are given, so tests need none of them. `cli/consume.py` gives the
real ones. Nothing here loads the native library or user code: what kills a child can't kill this.
"""

from __future__ import annotations

import math
import random
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from rmq_txn.logs import get_logger

log = get_logger("supervisor")

FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 60.0
WELL_SECONDS: Final = 60.0
"""A child that ran this long before it ended begins again with the shortest pause."""
LOOP_CRASHES: Final = 3
LOOP_SECONDS: Final = 300.0
"""So many crashes of any children within this time are a loop."""

# What native code dies of. Not SIGKILL: that is an operator's, or the kernel's when memory is short.
CRASH_SIGNALS: Final = frozenset(
    {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP}
)


class Child(Protocol):
    """A consumer process; `subprocess.Popen` with a pipe, or a test's."""

    pid: int

    def poll(self) -> int | None:
        """Return its exit status, negative for a signal; None while it runs."""

    def is_ready(self) -> bool:
        """Whether it said that its consumer has started."""

    def send_signal(self, number: int, /) -> None:
        """Send a signal; nothing happens if it has ended."""


@dataclass
class _Slot:
    """One of the N places for a child."""

    number: int
    child: Child | None = None
    ready: bool = False
    started_at: float = 0.0
    due_at: float = 0.0
    told_at: float | None = None
    """When its child was told to end."""
    failures: int = 0
    restart: bool = False
    """Its turn in a rolling restart is still to come."""


@dataclass
class Supervisor:
    """
    Runs children until it is told to stop. One thread; `stop` and `restart` fit signal handlers.

    Args:
        spawn: starts a child; an `OSError` of it (no memory, no process, no file left) is retried.
        explain: called in a crash loop, to find the message; returns at once.
        processes: how many children.
        stop_seconds: how long a child that was told to end may take before it is killed.
        final: exit statuses that a restart does not mend, such as a wrong setting. They end the
            supervisor if no child was ever ready; later they are retried like other failures, so that
            a bad deployment does not take down the children that still run.
    """

    spawn: Callable[[], Child]
    explain: Callable[[], None]
    processes: int
    stop_seconds: float
    final: frozenset[int] = frozenset()
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    killed: bool = field(default=False, init=False)
    """Whether a child did not end in time."""
    _status: int | None = field(default=None, init=False)
    _failed: int = field(default=0, init=False)
    _restart: bool = field(default=False, init=False)
    _was_ready: bool = field(default=False, init=False)
    _crashes: deque[float] = field(default_factory=deque, init=False)

    def __post_init__(self) -> None:
        self._slots = [_Slot(number) for number in range(1, self.processes + 1)]

    def stop(self) -> None:
        """Ask for the end: children are told, waited for, then killed."""
        self._status = self._status or 0  # the status of a failed start stays

    def restart(self) -> None:
        """Ask for a rolling restart: one child after the other, the next when the last one is ready."""
        self._restart = True

    def step(self) -> int | None:
        """
        Look once at all children and do what is due; call again a moment later.

        Returns:
            None while it goes on; at the end 0, or the status of a child that could not start or
            did not end well.
        """
        now = self.clock()
        for slot in self._slots:
            if slot.child is None:
                continue
            status = slot.child.poll()
            if status is not None:
                self._ended(slot, slot.child, status, now)
            elif not slot.ready and slot.child.is_ready():
                slot.ready = self._was_ready = True
                log.info("consumer process ready", process=slot.number, pid=slot.child.pid)
        if self._status is None:
            self._roll(now)
            self._start_due(now)
        else:
            for slot in self._slots:
                self._tell(slot, now)
        self._kill_late(now)
        if self._status is not None and all(slot.child is None for slot in self._slots):
            return self._status or self._failed
        return None

    def _start_due(self, now: float) -> None:
        for slot in self._slots:
            if slot.child is None and now >= slot.due_at:
                try:
                    slot.child = self.spawn()
                except OSError as error:
                    slot.failures += 1
                    pause = self._pause(slot.failures)
                    slot.due_at = now + pause
                    log.error(
                        "consumer process can't be started, it will be tried again; the others go on",
                        process=slot.number,
                        error=str(error),
                        next_start_in=round(pause, 1),
                    )
                    continue
                slot.started_at, slot.ready, slot.told_at = now, False, None
                log.info("consumer process started", process=slot.number, pid=slot.child.pid)

    def _pause(self, failures: float) -> float:
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * math.pow(2, min(failures - 1, 30)))
        return pause * (0.5 + self.chance() / 2)  # so that many supervisors do not come back as one

    def _roll(self, now: float) -> None:
        if self._restart:
            self._restart = False
            for slot in self._slots:
                slot.restart = True
            log.info("rolling restart", processes=self.processes)
        # One at a time: nobody's turn comes while a child is missing, ending or not ready yet,
        # except that one which waits for its restart has its turn at once.
        waiting = [slot for slot in self._slots if slot.restart]
        for slot in waiting:
            if slot.child is None:
                slot.restart, slot.due_at = False, now
                return
        if waiting and all(slot.ready and slot.told_at is None for slot in self._slots if not slot.restart):
            waiting[0].restart = False
            self._tell(waiting[0], now)

    def _tell(self, slot: _Slot, now: float) -> None:
        if slot.child is not None and slot.told_at is None:
            slot.told_at = now
            slot.child.send_signal(signal.SIGTERM)

    def _kill_late(self, now: float) -> None:
        for slot in self._slots:
            late = slot.told_at is not None and now >= slot.told_at + self.stop_seconds
            if slot.child is not None and late:
                self.killed, slot.told_at = True, math.inf
                log.error("consumer process did not end in time, killed", pid=slot.child.pid)
                slot.child.send_signal(signal.SIGKILL)

    def _ended(self, slot: _Slot, child: Child, status: int, now: float) -> None:
        slot.child, slot.ready, ran = None, False, now - slot.started_at
        line = log.bind(process=slot.number, pid=child.pid, ended=_words(status), seconds=round(ran, 1))
        if slot.told_at is not None:
            slot.failures, slot.due_at = 0, now
            # SIGTERM itself ended it: it was still importing and had nothing to finish.
            if status not in (0, -signal.SIGTERM, -signal.SIGKILL):
                self._failed = status if status > 0 else 1
            line.info("consumer process ended as told")
            return
        if status in self.final and not self._was_ready:
            line.critical("consumer process can't start; a restart would not mend it, so this ends as well")
            self._status = self._status or status
            return
        slot.failures = 1 if ran >= WELL_SECONDS else slot.failures + 1
        looping = -status in CRASH_SIGNALS and self._is_loop(now)
        pause = self._pause(math.inf if looping else slot.failures)
        slot.due_at = now + pause
        line = line.bind(next_start_in=round(pause, 1))
        if looping:
            line.critical("crash loop: the native client dies again and again, on a message it can't decode?")
            self.explain()
        else:
            line.error("consumer process ended, it will be started again")

    def _is_loop(self, now: float) -> bool:
        self._crashes.append(now)
        while self._crashes[0] < now - LOOP_SECONDS:
            self._crashes.popleft()
        return len(self._crashes) >= LOOP_CRASHES


def _words(status: int) -> str:
    if status >= 0:
        return f"exit {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:  # a real-time signal
        return f"signal {-status}"
