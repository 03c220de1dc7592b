"""
Crashes at a named step, in a test that goes on after them. They work around any transport.

What is raised stands for a process that is gone: nobody in between may catch it, and what the process had
not yet sent is never sent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Literal, get_args

from rmq_txn.errors import SettingsError
from rmq_txn.message import Delivery, Outbound
from rmq_txn.quantities import positive_whole_number
from rmq_txn.transport import Deliver, Execute
from rmq_txn.transport.wrapped import Hooks
from rmq_txn.verdict import Answer, Verdict

Step = Literal[
    "before_half", "after_half", "after_commit", "after_verdict", "before_handler", "after_handler"
]
"""
Where a crash may happen:

* `before_half`: a half message is about to be sent;
* `after_half`: the broker has it; nothing is committed;
* `after_commit`: the local transaction is committed; no verdict of it is sent;
* `after_verdict`: the verdict is sent; the caller is not told;
* `before_handler`: a delivery arrived; its handler has not run;
* `after_handler`: the handler's transaction is committed; nothing is acknowledged.
"""
STEPS: Final[tuple[str, ...]] = get_args(Step)


class Crash(BaseException):
    """
    Stands for a process that died. Not an Exception: what handles errors must not handle this.

    Not promised: what the kernel does. `finally` blocks run, and the database connection is rolled back by
    the library instead of by the server. The same producer answers check-backs later, as the one that a
    supervisor starts again would.
    """


class CrashPoints(Hooks):
    """
    Hooks that crash where they were told to. Thread-safe.

        faults = CrashPoints()
        broker = Wrapped(RocketMQ("127.0.0.1:9876"), faults)
        faults.crash_at("after_commit")
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: dict[str, int] = {}
        self._of_thread = threading.local()

    def crash_at(self, step: Step, count: int = 1) -> None:
        """
        Crash at a step, the next time that it is reached.

        Args:
            step: see `Step`.
            count: so many times in turn.

        Raises:
            SettingsError: there is no such step.
        """
        if step not in STEPS:
            raise SettingsError(f"step is {step!r}, allowed is one of {', '.join(STEPS)}")
        positive_whole_number("count", count)
        with self._lock:
            self._left[step] = self._left.get(step, 0) + count

    def armed(self) -> dict[str, int]:
        """Return the steps at which a crash is still to come, and how often."""
        with self._lock:
            return {step: left for step, left in self._left.items() if left}

    def crashed(self, step: Step, message: Outbound | Delivery) -> None:
        """Be told of a crash, right before it; does nothing as it stands."""

    def _reach(self, step: Step, message: Outbound | Delivery) -> None:
        with self._lock:
            if not self._left.get(step):
                return
            self._left[step] -= 1
        self.crashed(step, message)
        crash = Crash(f"crash at {step}, as the test has asked for")
        if self._depth:
            self._of_thread.crash = crash
        raise crash

    @property
    def _depth(self) -> int:
        return getattr(self._of_thread, "depth", 0)

    def send_half(self, group: str, message: Outbound, send: Callable[[Outbound], None]) -> None:
        """See `Hooks.send_half`. A crash ends all sends that it happens in, one inside the other."""
        self._of_thread.depth = self._depth + 1
        try:
            self._reach("before_half", message)
            send(message)
            self._die_on()
            self._reach("after_verdict", message)
        finally:
            self._of_thread.depth -= 1
            if not self._of_thread.depth:
                self._of_thread.crash = None

    def execute(self, group: str, message: Outbound, message_id: str, execute: Execute) -> Verdict:
        """See `Hooks.execute`."""
        self._reach("after_half", message)
        verdict = execute(message_id)
        self._die_on()  # further inside: a process that is gone sends no verdict
        if verdict is Verdict.COMMIT:
            self._reach("after_commit", message)
        return verdict

    def _die_on(self) -> None:
        crash: Crash | None = getattr(self._of_thread, "crash", None)
        if crash is not None:
            raise crash

    def deliver(self, group: str, delivery: Delivery, deliver: Deliver) -> Answer:
        """See `Hooks.deliver`."""
        self._reach("before_handler", delivery)
        answer = deliver(delivery)
        if answer is Answer.ACK:
            self._reach("after_handler", delivery)
        return answer
