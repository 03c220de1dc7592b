"""`rmq-txn dlq`: the messages of a consumer group that the broker itself buried."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rmq_txn.cli import exit_codes
from rmq_txn.cli.arguments import add_json, positive_integer
from rmq_txn.cli.output import say
from rmq_txn.cli.parked import add_rate, loaded_consumer, replay_all
from rmq_txn.cli.target import METAVAR
from rmq_txn.errors import BrokerUnavailableError, DatabaseUnavailableError, SettingsError
from rmq_txn.logs import describe

if TYPE_CHECKING:
    from rmq_txn.consumer import IdempotentConsumer
    from rmq_txn.remoting.cluster import ClusterSettings

_REPLAY = """\
Take the dead letters of the consumer's group into rmq_txn_parked, then handle them as `parked replay`
does. A letter is marked as read on the broker after it is parked; one that was handled or parked before
is only marked. Interrupt it anywhere: what is parked waits in `parked list`, the rest is still in %DLQ%.
One that can't be parked stays in %DLQ% and holds up none; those behind it in its queue are met again.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `dlq` and its commands."""
    dlq = commands.add_parser("dlq", help="list or replay messages that the broker buried")
    actions = dlq.add_subparsers(required=True, metavar="COMMAND")
    listing = actions.add_parser("list", help="one line a dead letter that was not taken yet; never a body")
    listing.add_argument("--limit", type=positive_integer, default=100, help="at most so many (100)")
    add_json(listing)
    listing.set_defaults(run=_list)
    replay = actions.add_parser(
        "replay",
        help="take them into rmq_txn_parked and handle them",
        description=_REPLAY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_rate(replay)
    add_json(replay)
    replay.set_defaults(run=_replay)
    for parser in (listing, replay):
        parser.add_argument("target", metavar=METAVAR, help="the consumer, with its group and its broker")


def _list(arguments: argparse.Namespace) -> int:
    from rmq_txn.remoting import dead_letters

    with loaded_consumer(arguments.target) as consumer:
        shown = 0
        for letter in dead_letters.unread(_cluster(consumer), consumer.group):
            if shown == arguments.limit:
                say(f"the first {shown} are shown, --limit shows more")
                break
            message = letter.message  # not its delivery: no body is read, whatever it would become
            say(
                f"{letter.topic}  {message.message_id}  {message.redeliveries} redeliveries",
                "dead letter",
                topic=letter.topic,
                message_id=message.message_id,
                redeliveries=message.redeliveries,
            )
            shown += 1
        if not shown:
            say(f"no dead letters wait in {dead_letters.topic_of(consumer.group)}")
    return exit_codes.OK


def _replay(arguments: argparse.Namespace) -> int:
    from rmq_txn.remoting import dead_letters

    with loaded_consumer(arguments.target) as consumer:
        cluster = _cluster(consumer)
        keys: list[str] = []
        left: set[tuple[str, int]] = set()
        for letter in dead_letters.unread(cluster, consumer.group):
            place = letter.broker, letter.queue
            try:
                key = consumer.park(letter.delivery)
            except (DatabaseUnavailableError, BrokerUnavailableError):
                raise
            except Exception as error:  # noqa: BLE001 - told; those behind it must not wait for it
                told, id_ = describe(error), letter.message.message_id
                say(f"left in %DLQ%: {id_}: {told}", "dead letter", message_id=id_, error=told)
                left.add(place)
                continue
            if place not in left:  # reading up to here would take the one that is left along
                dead_letters.mark_read(cluster, consumer.group, letter)
            if key is None:
                say(f"handled or parked before: {letter.message.message_id}")
            else:
                keys.append(key)
        code = replay_all(consumer, keys, rate=arguments.rate, force=False)
        return exit_codes.FAILED if left else code


def _cluster(consumer: IdempotentConsumer) -> ClusterSettings:
    from rmq_txn.remoting.cluster import ClusterSettings

    if not isinstance(consumer.broker, ClusterSettings):
        raise SettingsError(
            f"the consumer's broker is of type {type(consumer.broker).__name__}, a RocketMQ is needed to "
            "read its dead letters"
        )
    return consumer.broker
