"""The course of each message of a transaction, from its half message to its readers, as brokers tell it."""

from __future__ import annotations

from collections.abc import Sequence

from rmq_txn.operating.evidence import Facts
from rmq_txn.operating.sentences import Sentences
from rmq_txn.producer.txlog import LogState
from rmq_txn.remoting.broker_facts import BrokerFacts, Fate, HalfMessage, Published, Way


def course(said: Sentences, facts: Facts) -> None:
    """Add what the brokers say of each message, and what they can't."""
    brokers = facts.brokers
    if brokers is None:
        said.missing.append(
            "brokers were not asked for half messages and deliveries: pass --name-server HOST:PORT"
        )
        return
    said.missing.extend(brokers.gaps)
    positions = {half.position for half in brokers.half_messages}
    positions |= {item.position for item in brokers.published}
    for position in sorted(positions | set(range(len(facts.message_ids)))):
        _Message(said, facts, brokers, position).tell()
    for half in facts.foreign:
        said.known.append(
            f"broker {half.broker} has half message {half.message_id} for topic {half.topic}, owned by "
            f"{half.owner}: {_asked(half)}, {half.fate.value}"
        )
    for half in facts.forged:
        said.known.append(
            f"broker {half.broker} has half message {half.message_id} for topic {half.topic} that names this "
            "database and was not signed by it: check-backs about it are answered unknown"
        )


class _Message:
    """One message, and the sentences about it."""

    def __init__(self, said: Sentences, facts: Facts, brokers: BrokerFacts, position: int) -> None:
        self._said, self._facts = said, facts
        self._name = f"message {position}"
        self._committed = facts.state is LogState.COMMITTED
        ids = facts.message_ids
        winner = ids[position] if position < len(ids) else None
        halves = [half for half in brokers.half_messages if half.position == position]
        self._halves = [half for half in halves if winner in (None, half.message_id)]
        self._orphans = [half for half in halves if half not in self._halves]
        self._published = [item for item in brokers.published if item.position == position]
        self._noted = facts.noted(position)
        self._copied = any(copy.position == position for copy in facts.copies)
        self._gaps = bool(brokers.gaps)

    def tell(self) -> None:
        for half in self._halves:
            self._tell_half(half)
        for half in self._orphans:
            self._known(f"a send was repeated, its other half message {half.message_id}: {half.fate.value}")
        for item in self._published:
            self._tell_published(item)
        if len(self._published) > 1:
            self._known(
                f"{len(self._published)} copies of it are there: who is done with one, skips the others"
            )
        if self._published:
            self._tell_readers(self._published)
        elif not self._halves:
            self._tell_nothing()

    def _tell_half(self, half: HalfMessage) -> None:
        where = f"its half message, stored {_after(half.after_seconds)} by broker {half.broker}"
        group = half.owner.rpartition("@")[0]
        if half.fate is Fate.OPEN:
            self._known(f"{where}, has no verdict that the broker has noted; {_asked(half)}")
            self._next(f"the broker asks a producer of group {group}{self._answer()}; is one running?")
        elif half.fate is Fate.GIVEN_UP:
            self._known(f"{where}, was given up: {_asked(half)}, and nobody gave a verdict")
            if self._committed and not self._published:
                self._tell_lost()
        elif half.fate is Fate.UNCLEAR:
            self._known(f"{where}; what became of it is not known")
        elif half.fate is Fate.ROLLED_BACK:
            self._known(f"{where}, was rolled back; {_asked(half)}")
            if self._committed and not self._published:
                self._tell_lost()
        else:
            self._known(f"{where}, was committed; {_asked(half)}")

    def _answer(self) -> str:
        if self._facts.state is LogState.COMMITTED:
            return ", which answers commit"
        if self._facts.state is LogState.ROLLED_BACK:
            return ", which answers rollback"
        return ""

    def _tell_lost(self) -> None:
        """Say what follows when a broker dropped what was committed."""
        if self._copied:
            self._next("its copy is in the outbox, a relay publishes it")
        elif self._noted:
            return
        elif self._gaps:
            self._for_a_person("a broker that did not answer may have it: ask again when it does")
        else:
            self._for_a_person(
                "it was committed, and no consumer was given it: rmq-txn recover publishes it from its half "
                "message"
                if self._halves
                else "it was committed, and neither a broker nor the outbox has it: ask again in a minute, "
                "an index may lag; then do for its consumers by hand what it would have done"
            )

    def _tell_published(self, item: Published) -> None:
        place = (
            f"topic {item.topic}, queue {item.queue}, offset {item.offset} of broker {item.broker}, "
            f"{_after(item.after_seconds)}"
        )
        if item.way is Way.VERDICT:
            self._known(f"published by the verdict of its producer: {place}")
        elif item.way is Way.PLAIN:
            self._known(f"published again as a plain message, as the relay does: {place}")
        elif any(other.way is Way.VERDICT for other in self._published):
            self._known(
                f"published once more for the answer to check-back {item.check_backs}, the broker asked "
                f"about what was decided: {place}"
            )
        else:
            self._known(
                f"the verdict of its producer was lost; published for the answer to check-back "
                f"{item.check_backs}: {place}"
            )

    def _tell_readers(self, published: Sequence[Published]) -> None:
        done = {item.group for item in self._noted}
        read = {group for item in published for group in item.read_by}
        for group in sorted(read - done):
            self._known(f"group {group} has read past it, and the databases asked have no row of it")
            self._next(
                f"group {group}: if its inbox is in another database, ask with --consumer-url; else it has a "
                "dedup key of its own, gave the message back to the broker, or took it without our handlers"
            )
        waiting = {group: before for item in published for group, before in item.waiting}
        for group in sorted(set(waiting) - read - done):
            self._known(
                f"group {group} has not read it, {waiting[group]} messages of its queue come before it"
            )
            self._next(f"group {group} gets it next or later; is a consumer of it running?")
        if not read and not waiting:
            self._known(f"no consumer group reads topic {published[0].topic}")
            self._next("start its consumer: a new group begins where it is told to, see new_group_from")

    def _tell_nothing(self) -> None:
        if self._gaps:
            return
        self._said.missing.append(
            f"{self._name}: no broker has a trace of it, they keep messages for fileReservedTime, 72 hours "
            "by default"
        )
        if self._committed:
            self._tell_lost()

    def _known(self, text: str) -> None:
        self._said.known.append(f"{self._name}: {text}")

    def _next(self, text: str) -> None:
        self._said.next.append(f"{self._name}: {text}")

    def _for_a_person(self, text: str) -> None:
        self._next(text)
        self._said.needs_a_person = True


def _asked(half: HalfMessage) -> str:
    return f"{half.check_backs} check-back{'' if half.check_backs == 1 else 's'} asked"


def _after(seconds: float) -> str:
    return f"{seconds:.1f} s after the transaction began"
