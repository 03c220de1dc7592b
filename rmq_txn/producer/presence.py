"""
What a producer says about itself in the database, and what it learns there about its group.

Each round one transaction writes the row of this producer, and does before what the answer to a
check-back needs: so it proves that answers are possible, and not only that the database can be read.
"""

from __future__ import annotations

from collections.abc import Collection

from rmq_txn.clock import DatabaseClock
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.producer import txlog
from rmq_txn.producer.outbox import Outbox
from rmq_txn.producer.siblings import ProducerRow, Siblings
from rmq_txn.producer.undisturbed_time import UndisturbedTime

_FORGET_SECONDS = 3600.0
"""Rows of processes that ended are deleted after this; long after each of their group has seen it."""


class Presence:
    """
    The row of one producer. For one thread at a time.

    Args:
        fresh_seconds: how old the row of a producer that is well may be.
    """

    def __init__(
        self,
        outbox: Outbox,
        group: str,
        undisturbed: UndisturbedTime,
        clock: DatabaseClock,
        *,
        fresh_seconds: float,
        check_budget_seconds: float,
    ) -> None:
        self._outbox = outbox
        self._group = group
        self._undisturbed = undisturbed
        self._clock = clock
        self._fresh_seconds = fresh_seconds
        self._siblings = Siblings(fresh_seconds, check_budget_seconds, undisturbed.now)
        self._instance = ""
        self.problems: tuple[str, ...] = ()

    def announce(self, instance: str) -> None:
        """
        Write the row of a client that is about to start, so that nobody finds it named without one.

        Args:
            instance: how its client id ends.

        Raises:
            DatabaseUnavailableError: the database can't be written; then check-backs can't be
                answered either.
        """
        self._instance = instance
        self._siblings.look(instance, self._write(closing=False), ())

    def look(self, clients: Collection[str] | None, asked_at: float) -> None:
        """
        Write down how this producer is, read how the others are, and draw the conclusions.

        Args:
            clients: the ids of all clients of the group that brokers named; None if they did not
                answer, then nothing is concluded.
            asked_at: `UndisturbedTime.now()` before they were asked.

        Raises:
            DatabaseUnavailableError: the database can't be written, or not read.
        """
        rows = self._write(closing=False)
        if clients is None:
            return
        found = self._siblings.look(self._instance, rows, clients)
        for event in found.events:
            self._undisturbed.disturb_by_group(event)
        self.problems = found.problems
        who = ", ".join(found.suspects)  # not the sentences: they name ages, and would be logged each second
        self._undisturbed.keep_disturbing_by_group(who and f"other clients of this group answer, too: {who}")
        # Who fell ill after that may still have a row that looks well.
        self._undisturbed.vouch(asked_at - self._fresh_seconds)
        for row in rows:
            gone = not any(client.endswith(row.instance) for client in clients)
            if row.age_seconds > _FORGET_SECONDS and gone:
                with self._outbox.session() as session:
                    session.execute(STATEMENTS["delete_producer"], (self._group, row.instance))

    def say_goodbye(self) -> None:
        """
        Say that this producer closes: who is not named by brokers any more is not missed then.

        The row stays for a while, so that the others see what it has to tell.

        Raises:
            DatabaseUnavailableError: the others will wonder.
        """
        if self._instance:
            self._write(closing=True)

    def _write(self, *, closing: bool) -> list[ProducerRow]:
        self._undisturbed.tick()  # a pause until now is told now
        disturbances = self._undisturbed.disturbances
        with self._outbox.session() as session:
            txlog.probe(session)
            key, state = (self._group, self._instance), (closing, disturbances)
            if not session.execute(STATEMENTS["note_producer"], state + key):
                session.execute(STATEMENTS["insert_producer"], key + state)
            session.execute(STATEMENTS["read_producers"], (self._group,))
            found = session.cursor.fetchall()
        for unix_seconds, *_ in found[:1]:
            self._clock.set(float(unix_seconds))
        return [
            ProducerRow(instance.decode("ascii", "replace"), float(age), bool(is_closing), count)
            for _, instance, age, is_closing, count in found
        ]
