"""`rmq-txn parked`: the messages that consumers could not handle, in their database."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rmq_txn.cli import exit_codes
from rmq_txn.cli.arguments import add_by, add_json, add_url, opened, positive_integer, positive_number
from rmq_txn.cli.output import say, say_record
from rmq_txn.cli.target import METAVAR, load_consumer
from rmq_txn.errors import DatabaseUnavailableError, InvalidMessageError, RmqTxnError
from rmq_txn.logs import describe, one_line

if TYPE_CHECKING:
    from rmq_txn.consumer import IdempotentConsumer
    from rmq_txn.consumer.parking import Failure
    from rmq_txn.database import Database

_MOST_REPLAYED = 10_000

_REPLAY = """\
Handle parked messages now, through the same inbox and handler: a replay done twice has one effect.
The consumer is not started. One that fails again stays parked, with its failures counted on.
A message parked as over_age or lost needs --force: its effect may be in the database, look there first.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `parked` and its commands."""
    parked = commands.add_parser("parked", help="list, show, replay or drop messages that failed for good")
    actions = parked.add_subparsers(required=True, metavar="COMMAND")

    listing = actions.add_parser(
        "list",
        help="one line a message, oldest first; never a body",
        description="List parked messages, and those that fail and are delivered again (state failing).",
    )
    add_url(listing)
    listing.add_argument("--group", default="", help="of this consumer group only")
    listing.add_argument("--limit", type=positive_integer, default=100, help="at most so many (100)")
    add_json(listing)
    listing.set_defaults(run=_list)

    show = actions.add_parser("show", help="everything about one message, its body too")
    drop = actions.add_parser(
        "drop",
        help="forget one message: it will never be handled",
        description="Delete a parked message for good. Deliveries of it are skipped as before. Who did it "
        "and why is kept: `rmq-txn audit`.",
    )
    drop.add_argument("--reason", default="", metavar="TEXT", help="why, for the audit")
    add_by(drop)
    for parser, run in ((show, _show), (drop, _drop)):
        add_url(parser)
        parser.add_argument("--group", required=True, help="its consumer group")
        parser.add_argument("--key", required=True, help="its key, as `list` shows it")
        add_json(parser)
        parser.set_defaults(run=run)

    replay = actions.add_parser(
        "replay",
        help="handle parked messages now",
        description=_REPLAY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    replay.add_argument("target", metavar=METAVAR, help="the consumer, with its handlers and its database")
    which = replay.add_mutually_exclusive_group(required=True)
    which.add_argument("--key", help="this message")
    which.add_argument("--all", action="store_true", help="all that need no --force; with it, all")
    replay.add_argument("--force", action="store_true", help="also what may have had its effect already")
    add_rate(replay)
    add_json(replay)
    replay.set_defaults(run=_replay)


def add_rate(parser: argparse.ArgumentParser) -> None:
    """Add `--rate`."""
    parser.add_argument("--rate", type=positive_number, default=10.0, help="at most so many a second (10)")


@contextmanager
def loaded_consumer(target: str) -> Iterator[IdempotentConsumer]:
    """Load the user's consumer for one command, check its tables, and close it."""
    from rmq_txn import schema

    consumer = load_consumer(target)
    schema.check(consumer.database)
    try:
        yield consumer
    finally:
        consumer.close()


def replay_all(consumer: IdempotentConsumer, keys: Iterable[str], *, rate: float, force: bool) -> int:
    """Replay messages one after the other, say what became of each, and return the exit code."""
    replayed = failed = 0
    for number, key in enumerate(keys):
        if number:
            time.sleep(1 / rate)
        try:
            done = consumer.replay(key, force=force)
        except DatabaseUnavailableError:
            raise
        except InvalidMessageError as error:
            say(f"not replayed: {error}", "replay", key=key, done="not replayed", error=str(error))
            failed += 1
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is told, the next one follows
            told = describe(error)
            say(f"failed: {key}: {told}", "replay", key=key, done="failed", error=told)
            failed += 1
        else:
            what = "replayed" if done else "nothing to do"
            say(f"{what}: {key}", "replay", key=key, done=what, error=None)
            replayed += done
    say(f"{replayed} replayed, {failed} left parked", "replays", replayed=replayed, left=failed)
    return exit_codes.FAILED if failed else exit_codes.OK


def _replay(arguments: argparse.Namespace) -> int:
    from rmq_txn.consumer import parking

    with loaded_consumer(arguments.target) as consumer:
        with consumer.database.transaction(read_only=True) as txn:
            found = parking.failures(txn, consumer.group, _MOST_REPLAYED)
            if arguments.key is not None:
                keys = [_key(found, arguments.key)]
            else:
                keys = [failure.key for failure in found if failure.state is not parking.ParkedState.FAILING]
        return replay_all(consumer, keys, rate=arguments.rate, force=arguments.force)


def _list(arguments: argparse.Namespace) -> int:
    from rmq_txn.consumer import parking

    with _checked_database(arguments) as database, database.transaction(read_only=True) as txn:
        found = parking.failures(txn, arguments.group, arguments.limit)
    for failure in found:
        since = failure.first_failed_at.strftime("%Y-%m-%dT%H:%M:%SZ")
        error = one_line(failure.error)[:120]
        say(
            f"{failure.state.name.lower():<9} {failure.attempts:>3} failures since {since}  {failure.group}  "
            f"{failure.topic}  {failure.key}  {error}",
            "parked",
            state=failure.state.name.lower(),
            failures=failure.attempts,
            since=since,
            group=failure.group,
            topic=failure.topic,
            key=failure.key,
            error=failure.error,
        )
    if len(found) == arguments.limit:
        say(f"the first {len(found)} are shown, --limit shows more")
    elif not found:
        say("nothing is parked")
    return exit_codes.OK


def _show(arguments: argparse.Namespace) -> int:
    from rmq_txn.consumer import parking

    with _checked_database(arguments) as database, database.transaction(read_only=True) as txn:
        found = parking.failures(txn, arguments.group, _MOST_REPLAYED)
        parked = parking.read(txn, arguments.group, _key(found, arguments.key))
    if parked is None:
        raise RmqTxnError(f"no message of group {arguments.group!r} is parked under key {arguments.key!r}")
    failure, delivery = parked.failure, parked.delivery
    fields: dict[str, object] = {
        "state": failure.state.name.lower(),
        "failures": failure.attempts,
        "first": failure.first_failed_at.isoformat(),
        "last": failure.last_failed_at.isoformat(),
        "error": failure.error,
        "topic": delivery.topic,
        "tag": delivery.tag,
        "key": delivery.key,
        "message id": delivery.message_id,
        "properties": json.dumps(dict(delivery.properties), ensure_ascii=False),
    }
    try:
        fields["body"] = delivery.body.decode()
    except UnicodeDecodeError:
        fields["body (hex)"] = delivery.body.hex()
    say_record("parked", fields, width=12)
    return exit_codes.OK


def _drop(arguments: argparse.Namespace) -> int:
    from rmq_txn import audit
    from rmq_txn.consumer import parking

    with _checked_database(arguments) as database, database.transaction() as txn:
        found = parking.failures(txn, arguments.group, _MOST_REPLAYED)
        key = _key(found, arguments.key)
        if not parking.unpark(txn, arguments.group, key):
            raise RmqTxnError(
                f"no message of group {arguments.group!r} is parked under key {arguments.key!r}"
            )
        was = "; ".join(_shown(failure) for failure in found if failure.key == key)
        audit.write(
            txn,
            audit.Action.DROPPED,
            key,
            group=arguments.group,
            by=arguments.by or audit.operator(),
            note=f"{arguments.reason or 'no reason given'}; it was {was}",
        )
    say(f"dropped: {arguments.key}", "drop", key=arguments.key)
    return exit_codes.OK


def _shown(failure: Failure) -> str:
    return (
        f"{failure.state.name.lower()} after {failure.attempts} failures, message {failure.message_id} of "
        f"topic {failure.topic}: {failure.error}"
    )


def _key(found: Sequence[Failure], shown: str) -> str:
    """
    Return the key that a person means: as it is, or as `list` shows one that no terminal may get.

    A key is up to whoever sends to the topic; what was copied from the list has escapes in it.
    """
    keys = [failure.key for failure in found]
    if shown in keys:
        return shown
    return next((key for key in keys if one_line(key) == shown), shown)


@contextmanager
def _checked_database(arguments: argparse.Namespace) -> Iterator[Database]:
    from rmq_txn import schema

    with opened(arguments) as database:
        schema.check(database)
        yield database
