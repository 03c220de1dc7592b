"""
What the memory broker knows and does: half messages, check-back rounds, groups, redeliveries.

All state stands under one lock. It has no thread: the clients' threads take work out of it, and who moves
the clock lets happen what is due.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from rmq_txn.errors import BrokerUnavailableError, InvalidMessageError
from rmq_txn.message import Delivery, Outbound
from rmq_txn.testing.memory import faults
from rmq_txn.testing.memory.clock import VirtualClock
from rmq_txn.testing.memory.faults import ScriptedFaults
from rmq_txn.testing.memory.groups import (
    ConsumerGroup,
    ConsumerMember,
    ProducerMember,
    Stored,
    Waiting,
    new_message_id,
    too_large,
    unix_milliseconds,
)
from rmq_txn.testing.memory.settings import MemorySettings
from rmq_txn.testing.memory.story import Story
from rmq_txn.transport import Lag, TagFilter
from rmq_txn.verdict import Verdict

_AWAY = "the memory broker is away, as the test has asked for"
_REFUSED = "the memory broker refused the message, as the test has asked for"
_ANSWER_LOST = "the memory broker's answer was lost, as the test has asked for"


class MemoryStore:
    """The state. Thread-safe; whoever waits for a change waits on `changed`."""

    def __init__(self, settings: MemorySettings, scripted: ScriptedFaults, story: Story) -> None:
        self._settings = settings
        self._scripted = scripted
        self._story = story
        self.changed = threading.Condition(threading.RLock())
        self.clock = VirtualClock(settings.speed)
        self.away = False
        self.halves: dict[str, Stored] = {}
        self.given_up: list[Stored] = []
        self.groups: dict[str, ConsumerGroup] = {}
        self._topics: dict[str, list[Stored]] = {}
        self._producers: list[ProducerMember] = []
        self._consumers: list[ConsumerMember] = []
        self.clock.after(settings.transaction_check_interval_seconds, self._check_round)

    def tell(self, message: Outbound | Delivery, what: str) -> None:
        """Add a step to the story."""
        self._story.tell(self.clock.now(), message, what)

    # -- topics and clients

    def create_topic(self, name: str) -> None:
        """Make a topic; nothing if it is there."""
        with self.changed:
            self._topics.setdefault(name, [])

    def require(self, topic: str) -> list[Stored]:
        """
        Return what a topic holds.

        Raises:
            BrokerUnavailableError: the broker is away, or has no such topic.
        """
        self.require_reachable()
        if topic not in self._topics:
            raise BrokerUnavailableError(
                f"the memory broker has no topic {topic!r}, make it with create_topic({topic!r})"
            )
        return self._topics[topic]

    def require_reachable(self) -> None:
        """Raise BrokerUnavailableError if the broker is away."""
        if self.away:
            raise BrokerUnavailableError(_AWAY)

    def join_producer(self, member: ProducerMember) -> None:
        """Take note of a producer that can be asked from now on."""
        with self.changed:
            self._producers.append(member)

    def leave_producer(self, member: ProducerMember) -> None:
        """Forget a producer, and what it was not asked yet: the next round asks another one."""
        with self.changed:
            self._producers = [other for other in self._producers if other is not member]
            member.questions.clear()
            self.changed.notify_all()

    def producers(self, group: str) -> list[ProducerMember]:
        """Return the producers of a group that the broker would ask."""
        with self.changed:
            return [member for member in self._producers if member.group == group]

    def filters(self, member: ConsumerMember) -> tuple[TagFilter, ...]:
        """Return what the other members of a consumer's group leave out of its topics."""
        with self.changed:
            others = [one for one in self._consumers if one.group == member.group and one is not member]
            return tuple(found for one in others for found in one.filters(member.subscriptions))

    def join_consumer(self, member: ConsumerMember) -> None:
        """Take note of a consumer; a group that is new to a topic begins where the settings say."""
        with self.changed:
            for topic in member.subscriptions:
                self.require(topic)
            group = self.groups.setdefault(member.group, ConsumerGroup(member.group))
            for topic in member.subscriptions:
                if topic not in group.topics:
                    group.topics.add(topic)
                    if self._settings.new_group_from == "earliest":
                        group.ready.extend(map(Waiting, self._topics[topic]))
            self._consumers.append(member)
            self.changed.notify_all()

    def leave_consumer(self, member: ConsumerMember) -> None:
        """Forget a consumer; what it did not take stays for its group."""
        with self.changed:
            self._consumers = [other for other in self._consumers if other is not member]
            self.changed.notify_all()

    def is_consumer(self, member: ConsumerMember) -> bool:
        """Whether the broker would deliver to a consumer."""
        with self.changed:
            return any(other is member for other in self._consumers)

    # -- sending

    def store_half(self, group: str, message: Outbound) -> Stored:
        """
        Store a half message; the one that its sender hears of is the last of them.

        Raises:
            BrokerUnavailableError: not taken, as far as the sender hears.
        """
        with self.changed:
            self.require(message.topic)
            if self._scripted.take(faults.REFUSE_SEND):
                self.tell(message, "the broker refused it")
                raise BrokerUnavailableError(_REFUSED)
            if problem := too_large(message):
                raise BrokerUnavailableError(problem)
            refused = self._scripted.take(faults.STORE_AND_REFUSE)
            if refused or self._scripted.take(faults.DUPLICATE_HALF):
                orphan = self._store(group, message)
                self.tell(message, f"half message {orphan.message_id} stored; its sender did not hear of it")
            if refused:
                raise BrokerUnavailableError(_ANSWER_LOST)
            half = self._store(group, message)
            self.tell(message, f"half message {half.message_id} stored; no consumer can see it")
            return half

    def _store(self, group: str, message: Outbound) -> Stored:
        half = Stored(message, new_message_id(), group, self.clock.now())
        self.halves[half.message_id] = half
        return half

    def end(self, half: Stored, verdict: Verdict, whose: str) -> None:
        """Take a verdict, if it arrives; `whose` says in the story where it came from."""
        with self.changed:
            told = f"{whose}: {verdict.value.upper()}"
            if verdict is Verdict.UNKNOWN:
                self.tell(half.message, told)
            elif self.away or self._scripted.take(faults.LOSE_VERDICT):
                self.tell(half.message, f"{told}, and it was lost on the way")
            elif seconds := self._scripted.take(faults.DELAY_VERDICT):
                self.clock.after(seconds, lambda: self._ended(half, verdict))
                self.tell(half.message, f"{told}, and it is {seconds:g} s on the way")
            else:
                self.tell(half.message, told)
                self._ended(half, verdict)
            self.changed.notify_all()

    def _ended(self, half: Stored, verdict: Verdict) -> None:
        if self.halves.pop(half.message_id, None) is None:
            return  # decided before
        if verdict is Verdict.COMMIT:
            self._publish(half)
        else:
            self.tell(half.message, f"half message {half.message_id} dropped")

    def store_plain(self, group: str, message: Outbound, message_id: str) -> None:
        """
        Store a message that consumers see at once.

        Raises: as `ProducerTransport.send_plain`.
        """
        with self.changed:
            self.require(message.topic)
            if problem := too_large(message):
                raise InvalidMessageError(problem)
            if self._scripted.take(faults.REFUSE_SEND):
                raise BrokerUnavailableError(_REFUSED)
            self.tell(message, f"plain message {message_id} stored")
            self._publish(Stored(message, message_id, group, self.clock.now()))
            if self._scripted.take(faults.STORE_AND_REFUSE):
                raise BrokerUnavailableError(_ANSWER_LOST)
            self.changed.notify_all()

    def _publish(self, stored: Stored) -> None:
        topic = stored.message.topic
        self._topics[topic].append(stored)
        for group in self.groups.values():
            if topic in group.topics:
                delay = self._scripted.take(faults.DELAY_DELIVERY)
                self._put(group, Waiting(stored), delay)
        names = ", ".join(group.name for group in self.groups.values() if topic in group.topics)
        self.tell(stored.message, f"visible to {names or 'nobody: no group consumes the topic yet'}")

    def _put(self, group: ConsumerGroup, waiting: Waiting, delay_seconds: float) -> None:
        if not delay_seconds:
            group.ready.append(waiting)
            return

        def due() -> None:
            del group.later[waiting]
            waiting.stored_milliseconds = unix_milliseconds()
            group.ready.append(waiting)

        group.later[waiting] = self.clock.after(delay_seconds, due)

    # -- check-back

    def _check_round(self) -> None:
        self.clock.after(self._settings.transaction_check_interval_seconds, self._check_round)
        if self.away:
            return
        for half in list(self.halves.values()):
            if self.clock.now() - half.stored_at < self._settings.transaction_timeout_seconds:
                continue
            if half.checks >= self._settings.transaction_check_max:
                del self.halves[half.message_id]
                self.given_up.append(half)
                self.tell(half.message, f"given up after {half.checks} questions without a verdict")
                continue
            half.checks += 1  # nobody there to be asked costs one as well
            self._ask_somebody(half)

    def _ask_somebody(self, half: Stored) -> None:
        members = self.producers(half.group)
        if not members:
            self.tell(half.message, f"question {half.checks}: no producer of group {half.group} is there")
            return
        member = members[0]
        self._producers.remove(member)  # in turn
        self._producers.append(member)
        member.questions.append(half)

    def next_question(self, member: ProducerMember) -> Stored | None:
        """Wait for a question to a producer and count it as running; None: it is closing."""
        with self.changed:
            while not member.closing.is_set():
                if member.questions:
                    member.asking += 1
                    return member.questions.popleft()
                self.changed.wait()
            return None

    def answered(self, member: ProducerMember) -> None:
        """Count a question as answered."""
        with self.changed:
            member.asking -= 1
            self.changed.notify_all()

    # -- deliveries

    def take(self, member: ConsumerMember) -> Waiting | None:
        """Wait for a message for a consumer, and count it as running; None: it is closing."""
        with self.changed:
            while not member.closing.is_set():
                group = self.groups[member.group]
                if (waiting := self._find(member)) is not None:
                    group.ready.remove(waiting)
                    group.running[waiting] = member
                    member.running += 1
                    return waiting
                self.changed.wait()
            return None

    def _find(self, member: ConsumerMember) -> Waiting | None:
        """Return what a consumer may take next; the group is done with what its filter leaves out."""
        group = self.groups[member.group]
        for waiting in list(group.ready) if not self.away else ():
            message = waiting.stored.message
            if message.topic in member.subscriptions:
                if member.wants(message):
                    return waiting
                group.ready.remove(waiting)
                group.consumed += 1
        return None

    def has_work(self, member: ConsumerMember) -> bool:
        """Whether a consumer could take something now, or handles something."""
        with self.changed:
            return member.running > 0 or self._find(member) is not None

    def acknowledge(self, member: ConsumerMember, waiting: Waiting) -> None:
        """End a delivery that was acknowledged."""
        with self.changed:
            group = self._end_delivery(member, waiting)
            if self.away:
                self._come_back(group, waiting, "acknowledged, and the broker did not hear it")
                return
            group.consumed += 1
            self.tell(waiting.stored.message, f"group {group.name} acknowledged")
            if self._scripted.take(faults.DELIVER_TWICE):
                self._come_back(
                    group, Waiting(waiting.stored, waiting.redeliveries), "is delivered once more"
                )

    def give_back(self, member: ConsumerMember, waiting: Waiting, why: str) -> None:
        """End a delivery that is to be made again later, or bury the message after the last try."""
        with self.changed:
            group = self._end_delivery(member, waiting)
            if self.away:
                self._come_back(group, waiting, "given back, and the broker did not hear it")
                return
            group.consumed += 1
            if waiting.redeliveries >= self._settings.max_redeliveries:
                group.buried.append(waiting.delivery())
                self.tell(waiting.stored.message, f"group {group.name}: {why}; buried in %DLQ%{group.name}")
                return
            seconds = self._settings.redelivery_seconds(waiting.redeliveries)
            self._put(group, Waiting(waiting.stored, waiting.redeliveries + 1), seconds)
            self.tell(waiting.stored.message, f"group {group.name}: {why}; again in {seconds:g} s")

    def lose(self, member: ConsumerMember, waiting: Waiting) -> None:
        """End a delivery whose consumer died: the group gets it again, and nothing is counted."""
        with self.changed:
            group = self._end_delivery(member, waiting)
            self._come_back(group, waiting, "its consumer died before the acknowledgment")

    def _end_delivery(self, member: ConsumerMember, waiting: Waiting) -> ConsumerGroup:
        group = self.groups[member.group]
        del group.running[waiting]
        member.running -= 1
        self.changed.notify_all()
        return group

    def _come_back(self, group: ConsumerGroup, waiting: Waiting, why: str) -> None:
        self.tell(waiting.stored.message, f"group {group.name}: {why}")
        group.ready.append(waiting)

    def lag(self, name: str) -> Lag:
        """Return how far a group is behind."""
        with self.changed:
            self.require_reachable()
            group = self.groups.get(name) or ConsumerGroup(name)
            return Lag(len(group.ready) + len(group.running), group.consumed)

    # -- what is going on

    def busy(self) -> Iterator[str]:
        """Say what runs now, or will without the clock being moved."""
        for producer in self._producers:
            if producer.asking or producer.questions:
                yield f"a producer of group {producer.group} is being asked"
        for consumer in self._consumers:
            if consumer.running:
                yield f"a delivery to group {consumer.group} is being handled"
            elif not consumer.closing.is_set() and self._find(consumer) is not None:
                yield f"a delivery to group {consumer.group} is about to be handled"

    def wait_settled(self, seconds: float) -> str:
        """Wait until nothing is going on; return what still is after so long on this machine's clock."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while told := "; ".join(dict.fromkeys(self.busy())):
                if not self.changed.wait(max(0.0, deadline - time.monotonic())):
                    return told
            return ""

    def unconsumed(self, topic: str | None, group: str | None) -> Iterator[str]:
        """Say what keeps messages of a topic from having been consumed by a group; None: by all, of all."""
        now = self.clock.now()
        for half in self.halves.values():
            if topic in (None, half.message.topic):
                yield f"a half message of topic {half.message.topic} waits for a verdict"
        found = [
            one
            for one in self.groups.values()
            if group in (None, one.name) and (topic is None or topic in one.topics)
        ]
        if not found:
            yield f"no group {group or ''} consumes {f'topic {topic}' if topic else 'anything'}"
        for one in found:
            for waiting in [*one.ready, *one.running]:
                if topic in (None, waiting.stored.message.topic):
                    yield f"a message waits for group {one.name}"
            for waiting, due in one.later.items():
                if topic in (None, waiting.stored.message.topic):
                    yield f"a message comes to group {one.name} in {due - now:g} s"
