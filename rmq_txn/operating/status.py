"""
How a database with our tables is: what waits, what failed, who runs, how fast it grows.

Every number is cheap in tables of any size, or says what it was counted over. It reads, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from rmq_txn.clock import shown
from rmq_txn.database import Database
from rmq_txn.database.sideline import Sideline
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.identity import made_at
from rmq_txn.producer.outbox import Outbox, OutboxCount
from rmq_txn.pruning import Growth, PrunedInbox, PrunedLog, growth, inbox_groups
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.members import online
from rmq_txn.remoting.offsets import places
from rmq_txn.remoting.server import RemotingError

NEWEST_ROWS = 100_000
"""Of the log, by which states are told: the log of a week may have a billion."""
FRESH_SECONDS = 60
"""A producer writes its row every ten seconds."""
_NEWEST_KEYS = 200
_OPEN, _COMMITTED, _ROLLED_BACK = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Line:
    """
    One thing that was counted.

    Attributes:
        of: what it is about: `outbox`, `log`, `parked`, `producers`, `growth`, `lag`.
        text: for people, with the next step if there is one.
        needs_a_person: it does not go away by itself.
        numbers: what the text says, for programs.
    """

    of: str
    text: str
    needs_a_person: bool = False
    numbers: Mapping[str, object] = field(default_factory=dict)


def of_database(database: Database, *, limit_seconds: float) -> Iterator[Line]:
    """
    Tell what the tables say.

    Args:
        limit_seconds: how old a row of the outbox is at most when all is well.

    Raises:
        DatabaseUnavailableError: it can't be asked.
    """
    with closing(Outbox(database)) as outbox:
        count = outbox.count()
    yield of_outbox(count, limit_seconds)
    with closing(database.sideline("status")) as sideline:
        newest = _rows(sideline, STATEMENTS["count_newest_log_rows"], NEWEST_ROWS)
        yield of_log({state: (rows, first.decode()) for state, rows, first in newest})
        yield from _of_parked(sideline)
        groups = _rows(sideline, STATEMENTS["count_producers"], FRESH_SECONDS, FRESH_SECONDS)
        nobody = count.rows > 0 and not any(fresh for _, fresh, *_ in groups)
        for group, fresh, closed, silent in groups:
            yield of_producers(group.decode(), int(fresh), int(closed), int(silent))
        if nobody:
            text = f"none runs, {count.rows} copies wait, and nobody answers check-backs: start one"
            yield Line("producers", text, True, {"running": 0})
        parts = [PrunedLog(0), *(PrunedInbox(group, 0) for group in inbox_groups(sideline))]
        yield from (of_growth(one) for one in growth(parts, sideline))


def of_outbox(count: OutboxCount, limit_seconds: float) -> Line:
    """Judge the outbox by its oldest row."""
    late = count.oldest_seconds > limit_seconds
    text = (
        f"{count.rows} copies, the oldest {count.oldest_seconds:.0f} s old, "
        f"normal is up to {limit_seconds:.0f} s"
    )
    if late:
        text += "; does a producer of this database run, and what does its log say?"
    numbers = {
        "rows": count.rows,
        "oldest_seconds": round(count.oldest_seconds),
        "limit_seconds": round(limit_seconds),
    }
    return Line("outbox", text, late, numbers)


def of_log(states: dict[int, tuple[int, str]]) -> Line:
    """Tell the outcomes of the newest transactions that published: state to number and lowest id."""
    number = {state: rows for state, (rows, _) in states.items()}
    total, still = sum(number.values()), number.get(_OPEN, 0)
    numbers: dict[str, object] = {
        "rows": total,
        "committed": number.get(_COMMITTED, 0),
        "rolled_back": number.get(_ROLLED_BACK, 0),
        "open": still,
    }
    if not total:
        return Line("log", "no transaction that published", False, numbers)
    since = shown(min(made_at(first) for _, first in states.values()))
    text = (
        f"of the newest {total} transactions, since {since}: {number.get(_COMMITTED, 0)} committed, "
        f"{number.get(_ROLLED_BACK, 0)} rolled back by a check-back, {still} open"
    )
    if still:
        text += f"; who is open was cut in two, as by DDL; the oldest: `rmq-txn explain {states[_OPEN][1]}`"
    return Line("log", text, still > 0, numbers)


def _of_parked(sideline: Sideline) -> Iterator[Line]:
    groups = [group for (group,) in _rows(sideline, STATEMENTS["list_parked_groups"])]
    for group in sorted(groups):
        found = _rows(sideline, STATEMENTS["count_parked_rows"], group)
        counts = {bool(parked): (rows, float(since)) for parked, rows, since in found}
        yield of_parked(group.decode("utf-8", "replace"), counts)
    if not groups:
        yield Line("parked", "no message is parked or fails", False, {"parked": 0, "failing": 0})


def of_parked(group: str, counts: dict[bool, tuple[int, float]]) -> Line:
    """Tell what a consumer group could not handle: whether parked, to number and first failure."""
    parked, failing = counts.get(True, (0, 0.0)), counts.get(False, (0, 0.0))
    text = f"group {group}: {parked[0]} parked, {failing[0]} failing and delivered again by the broker"
    if parked[0]:
        text += f"; the oldest failed first at {shown(parked[1])}: `rmq-txn parked list --group {group}`"
    return Line("parked", text, parked[0] > 0, {"group": group, "parked": parked[0], "failing": failing[0]})


def of_producers(group: str, fresh: int, closed: int, silent: int) -> Line:
    """Count the producers of a group, by their own word."""
    text = (
        f"group {group}: {fresh} run, {closed} said good-bye in the last hour, "
        f"{silent} silent for more than {FRESH_SECONDS} s"
    )
    numbers = {"group": group, "running": fresh, "closed": closed, "silent": silent}
    return Line("producers", text, False, numbers)


def of_growth(found: Growth) -> Line:
    """Forecast a table."""
    mebibytes = found.bytes_a_day / 2**20
    text = f"{found.table} gets {found.rows_a_day} rows a day, {mebibytes:.0f} MiB, by the last hour"
    numbers = {"table": found.table, "rows_a_day": found.rows_a_day, "bytes_a_day": found.bytes_a_day}
    return Line("growth", text, False, numbers)


def of_lag(cluster: ClusterSettings, database: Database) -> Iterator[Line]:
    """
    Tell how much waits for each consumer group with an inbox here, and whether it has members.

    Topics are those of the newest messages handled; of a group with dedup keys of its own none is known.
    What a broker does not tell is a line, too.
    """
    with closing(database.sideline("status")) as sideline:
        groups = {group: topics_of(keys) for group, keys in _newest_keys(sideline)}
    for group, topics in groups.items():
        try:
            waiting = sum(place.end - place.offset for place in places(cluster, group, topics))
            addresses = {master.address for topic in topics for master in cluster.masters(topic)}
            members = {one.client_id for address in addresses for one in online(cluster.ask(address), group)}
        except (BrokerUnavailableError, RemotingError) as error:
            yield Line("lag", f"group {group}: not told: {error}", True, {"group": group})
            continue
        yield lag(group, topics, waiting, len(members))


def lag(group: str, topics: Sequence[str], waiting: int, members: int) -> Line:
    """Judge a consumer group: what waits needs a member."""
    if not topics:
        text = f"group {group}: its topics are not known from its dedup keys"
        return Line("lag", text, False, {"group": group})
    alone = waiting > 0 and members == 0
    text = f"group {group}: {waiting} messages of {', '.join(topics)} wait, {members} members are online"
    if alone:
        text += "; start a consumer of it"
    return Line("lag", text, alone, {"group": group, "waiting": waiting, "members": members})


def topics_of(keys: Sequence[str]) -> tuple[str, ...]:
    """Return the topics that dedup keys of ours name; a long one is only a digest there, and is left out."""
    found = set()
    for key in keys:
        first, *rest = key.split("/")
        if len(rest) == 2 and "." in first:  # see `identity.dedup_key`
            found.add(rest[0])
    return tuple(sorted(topic for topic in found if not topic.startswith("sha256:")))


def _newest_keys(sideline: Sideline) -> Iterator[tuple[str, list[str]]]:
    for group in inbox_groups(sideline):
        found = _rows(sideline, STATEMENTS["list_newest_inbox_keys"], group, _NEWEST_KEYS)
        yield group, [key.decode("utf-8", "replace") for (key,) in found]


def _rows(sideline: Sideline, statement: str, *values: object) -> list[tuple[Any, ...]]:
    with sideline.session() as session:
        session.execute(statement, values)
        return list(session.cursor.fetchall())
