"""
How old a message is, whether the inbox can still know it, and which clock is wrong.

Inbox rows are stamped and pruned by the database's clock, so that is the one that counts; a message is as old
as the broker says. The producer's and this machine's clocks decide nothing (docs/decisions/0040).
"""

from __future__ import annotations

import math
import threading
import time

from rmq_txn.clock import DatabaseClock, boot_seconds, shown
from rmq_txn.consumer.health import HealthNotes
from rmq_txn.database import Database
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.identity import PROPERTY_STAMP, made_at
from rmq_txn.logs import get_logger
from rmq_txn.message import Delivery

log = get_logger("consumer")

_READ_EACH_SECONDS = 600.0
_CLOCK_OFF_SECONDS = 300.0
_PRODUCER_BEHIND_SECONDS = 86_400.0
"""A smaller difference may be a verdict that came late."""


def age_seconds(delivery: Delivery, now: float) -> float:
    """
    Seconds since the broker can first have delivered a message; its inbox row is no older.

    The id of a transaction tells by the database's clock when it began (docs/decisions/0031). Other messages
    are as old as the broker's clock says, which stamped this delivery. Of the clock of a producer of an older
    version only a difference counts, how long after its transaction the message was sent: that is long for
    what its relay publishes again. A transport that does not know when it was stored leaves only that clock.
    """
    if delivery.txn_id is not None and PROPERTY_STAMP in delivery.properties:
        return now - made_at(delivery.txn_id)
    sent = delivery.born_milliseconds / 1000
    began = sent if delivery.txn_id is None else made_at(delivery.txn_id)
    if delivery.stored_milliseconds > 0:
        waited = max(0.0, sent - began) if sent > 0 else 0.0
        return now - delivery.stored_milliseconds / 1000 + waited
    return now - began if began > 0 else 0.0


class Aging:
    """
    Tells which messages the inbox may have forgotten. Thread-safe.

    Args:
        health: told of clocks that are wrong.
        retention_seconds: for how long the inbox remembers.
    """

    def __init__(self, database: Database, health: HealthNotes, retention_seconds: float) -> None:
        self._database = database
        self._clock = DatabaseClock()
        self._read_at = -math.inf
        self._reading = threading.Lock()
        self._health = health
        self._retention_seconds = retention_seconds

    def is_over_age(self, delivery: Delivery) -> bool:
        """
        Whether the inbox row of a message may have been pruned; say which clocks are wrong.

        Raises:
            DatabaseUnavailableError: it has to be asked for the time, and can't be.
        """
        now = self._now()
        self._look_at_clocks(delivery, now)
        return age_seconds(delivery, now) > self._retention_seconds

    def tell(self, delivery: Delivery, key: str) -> None:
        """Say that a message was parked for its age, and by which clocks."""
        now = self._now()
        log.error(
            "parked untried: it is older than the inbox remembers, so it may have been handled before; look "
            "at the data, then `rmq-txn parked replay --force`, or mend the clock that is wrong",
            key=key,
            age_days=round(age_seconds(delivery, now) / 86_400, 2),
            inbox_retention_days=round(self._retention_seconds / 86_400, 2),
            stored_by_the_brokers_clock=shown(delivery.stored_milliseconds / 1000),
            sent_by_the_producers_clock=shown(delivery.born_milliseconds / 1000),
            now_by_the_databases_clock=shown(now),
            now_by_this_machines_clock=shown(time.time()),
        )

    def _now(self) -> float:
        with self._reading:
            if boot_seconds() - self._read_at > _READ_EACH_SECONDS:
                with self._database.check_session("clock") as session:
                    session.execute(STATEMENTS["read_clock"])
                    ((told,),) = session.cursor.fetchall()
                self._clock.set(float(told))
                self._read_at = boot_seconds()
            return self._clock.now()

    def _look_at_clocks(self, delivery: Delivery, now: float) -> None:
        here = time.time() - now
        if abs(here) > _CLOCK_OFF_SECONDS:
            self._tell_clock("this machine's clock", "the database's", here)
        stored, sent = delivery.stored_milliseconds / 1000, delivery.born_milliseconds / 1000
        if stored <= 0 or delivery.redeliveries:
            return
        if stored - now > _CLOCK_OFF_SECONDS:
            self._tell_clock("the clock of a broker", "the database's", stored - now)
        if delivery.txn_id is None or sent <= 0:
            return  # other clients may delay a message for days
        if not -_PRODUCER_BEHIND_SECONDS <= sent - stored <= _CLOCK_OFF_SECONDS:
            whose = f"the clock of a producer of topic {delivery.topic!r:.160}"
            self._tell_clock(whose, "the broker's", sent - stored)

    def _tell_clock(self, whose: str, other: str, off_seconds: float) -> None:
        side = "ahead of" if off_seconds > 0 else "behind"
        problem = (
            f"{whose} is {abs(off_seconds):.0f} s {side} {other}; set it right, ages of messages and rows "
            "can't be judged by it"
        )
        if self._health.clock(whose, problem):
            log.error("a clock is wrong", problem=problem, now_by_this_machines_clock=shown(time.time()))
