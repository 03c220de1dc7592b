"""The memory broker as a test sees it: a transport, a clock, scripted faults and a story."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

from rmq_txn.errors import LifecycleError, RmqTxnError
from rmq_txn.message import Delivery, Outbound, check_group, check_tag, check_topic
from rmq_txn.quantities import number_between, positive_number
from rmq_txn.testing.crashes import CrashPoints, Step
from rmq_txn.testing.memory import faults
from rmq_txn.testing.memory.clients import MemoryConsumer, MemoryProducer, inside_callback
from rmq_txn.testing.memory.faults import ScriptedFaults
from rmq_txn.testing.memory.settings import DELAY_LEVELS, MemorySettings
from rmq_txn.testing.memory.store import MemoryStore
from rmq_txn.testing.memory.story import Event, Story
from rmq_txn.transport import Checker, ConsumerTransport, Deliver, ProducerTransport
from rmq_txn.transport.wrapped import Wrapped

_LONGEST_ADVANCE_SECONDS = 400 * 86_400.0


class NotSettledError(RmqTxnError, AssertionError):
    """A check-back or a delivery did not end in time on this machine's clock."""


class NotConsumedError(RmqTxnError, AssertionError):
    """A message was not consumed; the text tells its story."""


class MemoryBroker:
    """
    RocketMQ in this process, for unit tests: a transport without servers, and time that stands still.

    Half messages are invisible until their COMMIT; a half message without a verdict is asked about in rounds,
    by any producer of its group, until the budget is used up; what a handler fails at comes again after the
    broker's delays, and is buried after the last try. Each consumer group gets each message, one member of
    it; a new group begins with everything there is.

        broker = MemoryBroker(topics=["transfer"])
        producer = TransactionProducer(group="account", broker=broker, database=database, topics=["transfer"])

    What is virtual: the pauses of the broker, which are check-back rounds, redeliveries and scripted
    delays. They pass when `advance` is called, at once. What is not: everything of the library and the
    database. Transaction ids, ages, retention, `local_timeout_seconds`, the relay and the deletion of
    copies go by real clocks, which `advance` does not touch, and so do the times that a message is stamped
    with. So ten minutes of check-backs may pass within a millisecond of a transaction's life: what then
    comes back was sent a moment ago, no copy is old enough for the relay, and no row for the pruning. To
    test the relay, give the producer short `check_budget_seconds` and `outbox_times`, and wait.

    Thread-safe. Clients use threads of their own, handlers run on them.

    Not promised: order, as with a real broker; what is not in `rmq_txn.transport`, such as offsets, queues,
    admin tools, other clients; that a killed process is survived: nothing is stored outside this one. It
    is for tests of your service. That rmq_txn and RocketMQ fit together is proved by tests on real servers.

    Args:
        topics: those that exist; `create_topic` makes more.
        transaction_timeout_seconds: age of a half message when it is first asked about.
        transaction_check_interval_seconds: pause between two rounds of questions; the first round is so long
            after the broker was made.
        transaction_check_max: questions about a half message until it is given up.
        delay_levels: `messageDelayLevel`; the first redelivery has the third, each further one the next.
        max_redeliveries: tries after the first, until a message is buried.
        new_group_from: where a group begins that is new to a topic: "earliest" or "latest".
        speed: virtual seconds that pass by themselves in each second; 0: only `advance` moves the clock. Then
            use it in a `with` block, or call `close`.
        settle_seconds: how long `advance` and others wait for handlers and check-backs, by a real clock.

    Raises:
        SettingsError, InvalidMessageError: a number or a name is not usable.
    """

    def __init__(
        self,
        topics: Sequence[str] = (),
        *,
        transaction_timeout_seconds: float = 6.0,
        transaction_check_interval_seconds: float = 30.0,
        transaction_check_max: int = 15,
        delay_levels: str = DELAY_LEVELS,
        max_redeliveries: int = 16,
        new_group_from: Literal["earliest", "latest"] = "earliest",
        speed: float = 0.0,
        settle_seconds: float = 10.0,
    ) -> None:
        settings = MemorySettings(
            transaction_timeout_seconds=transaction_timeout_seconds,
            transaction_check_interval_seconds=transaction_check_interval_seconds,
            transaction_check_max=transaction_check_max,
            delay_levels=delay_levels,
            max_redeliveries=max_redeliveries,
            new_group_from=new_group_from,
            speed=speed,
        )
        self._settle_seconds = positive_number("settle_seconds", settle_seconds)
        self._scripted = ScriptedFaults()
        self._story = Story()
        self._store = MemoryStore(settings, self._scripted, self._story)
        self._crashes = _ToldCrashes(self._store)
        self._clients = Wrapped(_Clients(self._store), self._crashes)
        self._closed = False
        self._advancing = threading.Lock()
        for topic in topics:
            self.create_topic(topic)
        if speed:
            threading.Thread(target=self._run_clock, name="rmq_txn memory clock", daemon=True).start()

    def create_topic(self, name: str) -> None:
        """Make a topic; nothing if it is there. As a broker in production, it makes none by itself."""
        self._store.create_topic(check_topic(name))

    def producer(self, group: str, check: Checker) -> ProducerTransport:
        """See `Transport.producer`."""
        return self._clients.producer(check_group(group), check)

    def consumer(
        self, group: str, subscriptions: Mapping[str, Sequence[str]], threads: int, deliver: Deliver
    ) -> ConsumerTransport:
        """See `Transport.consumer`."""
        return self._clients.consumer(check_group(group), subscriptions, threads, deliver)

    def close(self) -> None:
        """Stop the clock. Idempotent; clients are closed by who made them."""
        with self._store.changed:
            self._closed = True
            self._store.changed.notify_all()

    def __enter__(self) -> MemoryBroker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- time

    @property
    def now(self) -> float:
        """Seconds of the virtual clock since the broker was made."""
        with self._store.changed:
            return self._store.clock.now()

    def advance(self, seconds: float) -> None:
        """
        Let time pass: whatever is due meanwhile happens, each at its time, and has ended when this returns.

        Not from inside a handler or a check-back, for which it would wait.

        Raises:
            NotSettledError: a handler or a check-back did not end within `settle_seconds`.
            LifecycleError: called from inside one.
        """
        number_between("seconds", seconds, 0, _LONGEST_ADVANCE_SECONDS)
        self.settle()
        with self._advancing:
            target = self.now + seconds
            while self._step(target):
                self.settle()

    def _step(self, target: float) -> bool:
        with self._store.changed:
            due = self._store.clock.next_due()
            self._store.clock.move_to(target if due is None else min(due, target))
            return self._happen() or self._store.clock.now() < target

    def _happen(self) -> bool:
        actions = self._store.clock.take_due()
        for action in actions:
            action()
        self._store.changed.notify_all()
        return bool(actions)

    def settle(self) -> None:
        """
        Wait until nothing goes on that needs no time to pass: deliveries that can be made have ended.

        Raises: as `advance`.
        """
        if inside_callback():
            raise LifecycleError(
                "a handler or a check-back can't wait until it has ended; move the clock on the test's thread"
            )
        told = self._store.wait_settled(self._settle_seconds)
        if told:
            raise NotSettledError(
                f"after {self._settle_seconds:g} s on this machine's clock {told}\n{self.story()}".rstrip()
            )

    def _run_clock(self) -> None:
        with self._store.changed:
            while not self._closed:
                self._happen()
                self._store.changed.wait(self._store.clock.real_seconds_to_next())

    def wait_until_consumed(
        self, topic: str | None = None, *, group: str | None = None, seconds: float = 10.0
    ) -> None:
        """
        Wait until the groups acknowledged every message, and no half message is left undecided.

        What needs time to pass never comes while the clock stands still, and is told at once. Dead letters
        count as done, see `dead_letters`.

        Args:
            topic: only messages of this one.
            group: only this consumer group.
            seconds: how long to wait, on this machine's clock.

        Raises:
            NotConsumedError: something is left; its story is told.
            LifecycleError: called from inside a handler or a check-back.
        """
        if inside_callback():
            raise LifecycleError("a handler can't wait until its own message is consumed")
        deadline = time.monotonic() + seconds
        with self._store.changed:
            while left := list(self._store.unconsumed(topic, group)):
                stuck = not self._store.clock.runs and not any(self._store.busy())
                if stuck or not self._store.changed.wait(max(0.0, deadline - time.monotonic())):
                    way = "; let time pass with advance(seconds)" if stuck else f" after {seconds:g} s"
                    told = "; ".join(dict.fromkeys(left))
                    raise NotConsumedError(f"not consumed: {told}{way}\n{self.story()}".rstrip())

    # -- what happened

    def story(self, txn_id: str | None = None) -> str:
        """Tell what happened to each message, step by step; of one transaction, if its id is given."""
        return self._story.text(txn_id)

    def events(self, txn_id: str | None = None) -> tuple[Event, ...]:
        """Return the steps that `story` tells."""
        return self._story.events(txn_id)

    def half_messages(self) -> int:
        """Count the half messages without a verdict that the broker still asks about."""
        with self._store.changed:
            return len(self._store.halves)

    def given_up(self) -> int:
        """Count the half messages that the broker gave up: its questions were used up."""
        with self._store.changed:
            return len(self._store.given_up)

    def dead_letters(self, group: str) -> tuple[Delivery, ...]:
        """Return what a consumer group failed at to the last try."""
        with self._store.changed:
            return tuple(self._store.groups[group].buried) if group in self._store.groups else ()

    # -- faults

    def crash_at(self, step: Step, count: int = 1) -> None:
        """
        Let the process crash, as far as a test can go on after it, the next time that it reaches a step.

        `rmq_txn.testing.Crash` is raised there. See `rmq_txn.testing.CrashPoints`, which does the same around
        any transport.
        """
        self._crashes.crash_at(step, count)

    def lose_verdict(self, count: int = 1) -> None:
        """Let the next COMMITs and ROLLBACKs get lost on their way to the broker, which has to ask."""
        self._scripted.arm(faults.LOSE_VERDICT, count)

    def delay_verdict(self, seconds: float, count: int = 1) -> None:
        """Let the next COMMITs and ROLLBACKs arrive so many virtual seconds late."""
        self._scripted.arm(faults.DELAY_VERDICT, count, positive_number("seconds", seconds))

    def delay_delivery(self, seconds: float, count: int = 1) -> None:
        """Let the next messages that become visible reach a group so many virtual seconds late."""
        self._scripted.arm(faults.DELAY_DELIVERY, count, positive_number("seconds", seconds))

    def duplicate_half(self, count: int = 1) -> None:
        """
        Store the next half messages twice, as the native client does when an answer is slow.

        The other one has an id that its sender never hears of; the broker asks about it.
        """
        self._scripted.arm(faults.DUPLICATE_HALF, count)

    def deliver_twice(self, count: int = 1) -> None:
        """Deliver the next acknowledged messages once more, as a broker does whose memory of it was lost."""
        self._scripted.arm(faults.DELIVER_TWICE, count)

    def refuse_send(self, count: int = 1, *, stored: bool = False) -> None:
        """
        Refuse the next messages.

        Args:
            stored: the broker has them all the same, only its answer was lost.
        """
        self._scripted.arm(faults.STORE_AND_REFUSE if stored else faults.REFUSE_SEND, count)

    def go_away(self) -> None:
        """Be unreachable from now on: nothing is taken, asked or delivered, verdicts are lost."""
        self._set_away(True)

    def come_back(self) -> None:
        """Be there again."""
        self._set_away(False)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Be unreachable in this block."""
        self.go_away()
        try:
            yield
        finally:
            self.come_back()

    def _set_away(self, away: bool) -> None:
        with self._store.changed:
            self._store.away = away
            self._store.changed.notify_all()

    def armed_faults(self) -> dict[str, int]:
        """Return the scripted faults and crashes that did not happen yet, and how often each is to."""
        return {**self._scripted.armed(), **self._crashes.armed()}


class _ToldCrashes(CrashPoints):
    """Crash points whose crashes are a part of the story."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__()
        self._store = store

    def crashed(self, step: Step, message: Outbound | Delivery) -> None:
        with self._store.changed:
            self._store.tell(message, f"crash at {step}")


class _Clients:
    """The transport inside the crash points."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._name = f"memory broker {uuid.uuid4().hex}"

    def producer(self, group: str, check: Checker) -> ProducerTransport:
        return MemoryProducer(self._store, group, check, self._name)

    def consumer(
        self, group: str, subscriptions: Mapping[str, Sequence[str]], threads: int, deliver: Deliver
    ) -> ConsumerTransport:
        wanted = {
            check_topic(topic): None if "*" in tags else frozenset(map(check_tag, tags))
            for topic, tags in subscriptions.items()
        }
        return MemoryConsumer(self._store, group, wanted, threads, deliver)
