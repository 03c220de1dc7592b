"""`rmq-txn prune`: delete rows of the log and the inbox that nobody can ask for any more."""

from __future__ import annotations

import argparse
from contextlib import closing
from typing import TYPE_CHECKING

from rmq_txn.cli import exit_codes
from rmq_txn.cli.arguments import URL_VARIABLE, add_json, add_url, opened
from rmq_txn.cli.output import say
from rmq_txn.errors import SettingsError
from rmq_txn.quantities import retention_seconds

if TYPE_CHECKING:
    from rmq_txn.database.sideline import Sideline
    from rmq_txn.pruning import Pruned

_UNITS = {"d": 1.0, "h": 1 / 24}

_EPILOG = f"""\
Producers and consumers do this by themselves, each minute; by hand it is for a database in which
none runs, or to catch up after `prune=False`. What is open, has a copy in the outbox, or belongs to
a parked message stays. Small batches, without a rest between them.

Example:
  {URL_VARIABLE}=mysql://user:password@host:3306/name rmq-txn prune --older-than 7d --dry-run
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `prune`."""
    prune = commands.add_parser(
        "prune",
        help="delete old rows of log and inbox, or say how many there are and how fast they come",
        description="Delete rows of rmq_txn_log and rmq_txn_inbox that are older than the retention.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_url(prune)
    prune.add_argument(
        "--older-than",
        default="7d",
        metavar="AGE",
        help="in days or hours, such as 7d or 100h; at least 77h, and not less than the services keep (7d)",
    )
    prune.add_argument("--group", help="the inbox of this consumer group only, and not the log")
    prune.add_argument("--dry-run", action="store_true", help="delete nothing: count, and forecast a day")
    add_json(prune)
    prune.set_defaults(run=_prune)


def _prune(arguments: argparse.Namespace) -> int:
    seconds = retention_seconds("--older-than", _days(arguments.older_than))
    from rmq_txn import schema

    with opened(arguments) as database:
        identity = schema.check(database)
        with closing(database.sideline("pruning")) as sideline:
            parts = _parts(sideline, arguments.group, seconds)
            if arguments.dry_run:
                return _forecast(parts, sideline)
            return _delete(parts, sideline, identity.database_id)


def _parts(sideline: Sideline, group: str | None, seconds: float) -> list[Pruned]:
    from rmq_txn import pruning

    if group is not None:
        return [pruning.PrunedInbox(group, seconds)]
    groups = pruning.inbox_groups(sideline)
    return [pruning.PrunedLog(seconds), *(pruning.PrunedInbox(name, seconds) for name in groups)]


def _delete(parts: list[Pruned], sideline: Sideline, database_id: str) -> int:
    from rmq_txn import pruning

    for part in parts:
        if sideline.elect(part.lock(database_id)):
            rows = sum(pruning.batches(part, sideline))
            say(f"{part}: {rows} rows deleted", "pruned", part=str(part), rows=rows)
        else:
            text = f"{part}: a producer or consumer prunes it at this moment, nothing done"
            say(text, "pruned", part=str(part), rows=0)
    return exit_codes.OK


def _forecast(parts: list[Pruned], sideline: Sideline) -> int:
    from rmq_txn import pruning

    for part in parts:
        rows = part.count(sideline, pruning.cutoff(part, sideline))
        say(f"{part}: {rows} rows would be deleted", "prunable", part=str(part), rows=rows)
    for growth in pruning.growth(parts, sideline):
        mebibytes = growth.bytes_a_day / 2**20
        say(
            f"{growth.table} grows by {growth.rows_a_day} rows a day, {mebibytes:.0f} MiB, by the last hour",
            "growth",
            table=growth.table,
            rows_a_day=growth.rows_a_day,
            bytes_a_day=growth.bytes_a_day,
        )
    return exit_codes.OK


def _days(text: str) -> float:
    """Read an age such as `7d` or `100h`."""
    try:
        return float(text[:-1]) * _UNITS[text[-1:]]
    except (ValueError, KeyError):
        raise SettingsError(
            f"--older-than is {text!r}, allowed is a number with d or h, such as 7d or 100h"
        ) from None
