"""`rmq-txn offsets`: where a consumer's group stands, and a way past a message that kills it."""

from __future__ import annotations

import argparse

from rmq_txn.cli import exit_codes, target
from rmq_txn.cli.arguments import add_json
from rmq_txn.cli.output import say, say_heading
from rmq_txn.consumer import IdempotentConsumer
from rmq_txn.errors import RmqTxnError, SettingsError
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.offsets import LOOK_AHEAD, Standing, skip, standings
from rmq_txn.remoting.stored_message import StoredMessage

_SKIP_EPILOG = """\
The message is shown first. Unhandled messages before it are given back to the broker, which delivers them
again. No consumer of the group may be online: it would overwrite the offset.

Example:
  rmq-txn offsets skip points_service:consumer --topic transfer --queue 2 --offset 17
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `offsets` and its two commands."""
    offsets = commands.add_parser("offsets", help="where a consumer group stands; skip a message")
    actions = offsets.add_subparsers(required=True, metavar="COMMAND")

    show = actions.add_parser(
        "show",
        help="show each queue, and the message that kills the native client",
        description="Show where the consumer's group stands in each queue, and which message the native "
        f"client can't decode, within {LOOK_AHEAD} messages. The consumer is not started.",
    )
    show.add_argument("target", metavar=target.METAVAR, help="the consumer, or a function that returns it")
    add_json(show)
    show.set_defaults(run=_show)

    past = actions.add_parser(
        "skip",
        help="move the group past a message that kills the native client",
        epilog=_SKIP_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    past.add_argument("target", metavar=target.METAVAR, help="the consumer, or a function that returns it")
    past.add_argument("--topic", required=True)
    past.add_argument("--queue", required=True, type=int, metavar="ID")
    past.add_argument("--offset", required=True, type=int, help="of the message, as `offsets show` says it")
    past.add_argument("--broker", metavar="NAME", help="needed only if several brokers have the topic")
    add_json(past)
    past.set_defaults(run=_skip)


def _show(arguments: argparse.Namespace) -> int:
    consumer = target.load_consumer(arguments.target)
    cluster = _cluster(consumer)
    found = list(standings(cluster, consumer.group, consumer.topics))
    for standing in found:
        say(
            f"{_where(standing)}: group {consumer.group} at offset {standing.offset}, "
            f"{standing.end - standing.offset} to come",
            "offset",
            **_place(standing),
            group=consumer.group,
            offset=standing.offset,
            to_come=standing.end - standing.offset,
        )
    culprits = [(standing, culprit) for standing in found if (culprit := standing.culprit) is not None]
    for standing, culprit in culprits:
        command = _command(arguments.target, standing, culprit)
        words = f"{_words(standing, culprit)}; to skip it:"
        say(words, "culprit", **_place(standing), offset=culprit.offset, command=command)
        say_heading(f"  {command}")
    if not culprits:
        say(f"no message that the native client can't decode in the next {LOOK_AHEAD} of each queue")
        for standing in found:
            if standing.ahead:
                say(f"next in {_where(standing)}: offset {standing.ahead[0].offset}, {standing.ahead[0]}")
    return exit_codes.OK


def _skip(arguments: argparse.Namespace) -> int:
    consumer = target.load_consumer(arguments.target)
    cluster = _cluster(consumer)
    queue = [
        standing
        for standing in standings(cluster, consumer.group, [arguments.topic])
        if (standing.topic, standing.queue) == (arguments.topic, arguments.queue)
        and arguments.broker in (None, standing.broker)
    ]
    if len(queue) != 1:
        many = ", ".join(standing.broker for standing in queue)
        raise SettingsError(
            f"several brokers have this queue, name one with --broker: {many}"
            if queue
            else f"group {consumer.group!r} does not stand in queue {arguments.queue} of {arguments.topic!r}"
        )
    (standing,) = queue
    culprit = standing.culprit
    if culprit is None or culprit.offset != arguments.offset:
        seen = "no such message" if culprit is None else f"the first such message at offset {culprit.offset}"
        raise SettingsError(
            f"offset {arguments.offset} is not what stops the group: it stands at {standing.offset} of "
            f"{_where(standing)}, with {seen} ahead; run `rmq-txn offsets show {arguments.target}`"
        )
    say(_words(standing, culprit))
    given_back = skip(cluster, consumer.group, standing)
    say(
        f"skipped: group {consumer.group} is at offset {culprit.offset + 1} of {_where(standing)}; "
        f"messages before it that were given back for redelivery: {given_back}",
        "skip",
        **_place(standing),
        group=consumer.group,
        offset=culprit.offset + 1,
        given_back=given_back,
    )
    return exit_codes.OK


def _cluster(consumer: IdempotentConsumer) -> ClusterSettings:
    if not isinstance(consumer.broker, ClusterSettings):
        kind = type(consumer.broker).__name__
        raise RmqTxnError(f"the consumer's broker is a {kind}: only a RocketMQ can be asked for offsets")
    return consumer.broker


def _place(standing: Standing) -> dict[str, object]:
    return {"topic": standing.topic, "broker": standing.broker, "queue": standing.queue}


def _where(standing: Standing) -> str:
    return f"topic {standing.topic}, broker {standing.broker}, queue {standing.queue}"


def _words(standing: Standing, culprit: StoredMessage) -> str:
    return (
        f"the message at offset {culprit.offset} of {_where(standing)} kills the native client: "
        f"{culprit.undecodable} ({culprit})"
    )


def _command(target_: str, standing: Standing, culprit: StoredMessage) -> str:
    return (
        f"rmq-txn offsets skip {target_} --topic {standing.topic} --broker {standing.broker} "
        f"--queue {standing.queue} --offset {culprit.offset}"
    )
