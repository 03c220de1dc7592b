"""`rmq-txn doctor`: is this installation sound? Library, database, brokers, groups, in sentences."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from rmq_txn.cli import exit_codes
from rmq_txn.cli.arguments import (
    NAME_SERVER_VARIABLE,
    URL_VARIABLE,
    add_json,
    add_name_server,
    add_url,
    cluster,
    opened,
    positive_integer,
)
from rmq_txn.cli.output import say
from rmq_txn.library import installer

if TYPE_CHECKING:
    from rmq_txn.operating.finding import Finding

_EPILOG = f"""\
It reads, and changes nothing. With --send it stores one half message in each broker of the topics
and rolls it back; only so the brokers' clocks can be compared.

Exit {exit_codes.OK}: nothing failed; there may be warnings, which --strict turns into a failure too.
Exit {exit_codes.FAILED}: something failed. What was skipped never fails.

Example, for a job of CI or Kubernetes:
  {URL_VARIABLE}=mysql://user:password@host:3306/name {NAME_SERVER_VARIABLE}=rocketmq:9876 \\
  rmq-txn doctor --topic transfer --producer-group account-service --send --json
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor`."""
    doctor = commands.add_parser(
        "doctor",
        help="check library, database, brokers and groups; fail when something is wrong",
        description="Check what a service stands on, and say what to do about what is wrong.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_url(doctor)
    add_name_server(doctor)
    doctor.add_argument(
        "--topic", action="append", default=[], metavar="NAME", help="may be given several times"
    )
    doctor.add_argument("--producer-group", metavar="NAME", help="of a service with this database")
    doctor.add_argument("--consumer-group", metavar="NAME")
    doctor.add_argument(
        "--connections",
        type=positive_integer,
        metavar="NUMBER",
        help="that the service may hold: processes times (pool_size + 4); compared with the server's limit",
    )
    doctor.add_argument("--send", action="store_true", help="try a half message in each broker of the topics")
    doctor.add_argument("--strict", action="store_true", help="warnings fail, too")
    add_json(doctor)
    doctor.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from rmq_txn.operating.finding import State

    bad = {State.FAILED, State.WARNING} if arguments.strict else {State.FAILED}
    states = set()
    for finding in _findings(arguments):  # each at once: a server that is away takes its time
        states.add(finding.state)
        advice = f"; {finding.advice}" if finding.advice else ""
        line = f"{finding.state.value:<8} {finding.check}: {finding.text}{advice}"
        say(
            line,
            "finding",
            check=finding.check,
            state=finding.state.value,
            text=finding.text,
            advice=finding.advice,
        )
    return exit_codes.FAILED if states & bad else exit_codes.OK


def _findings(arguments: argparse.Namespace) -> Iterator[Finding]:
    from rmq_txn.operating import broker_checks, database_checks

    topics = list(dict.fromkeys(arguments.topic))
    mq = cluster(arguments)
    yield _library()
    with opened(arguments) as database:
        yield from database_checks.of_database(database, connections=arguments.connections)
        yield from broker_checks.of_name_server(mq)
        yield from chain.from_iterable(broker_checks.of_topic(mq, topic) for topic in topics)
        yield from broker_checks.of_brokers(mq, topics)
        if arguments.producer_group:
            yield from broker_checks.of_producer_group(mq, database, arguments.producer_group, topics)
        if arguments.consumer_group:
            yield from broker_checks.of_consumer_group(mq, arguments.consumer_group, topics)
        if arguments.send:
            yield from chain.from_iterable(broker_checks.of_half_message(mq, topic) for topic in topics)


def _library() -> Finding:
    from rmq_txn.operating.finding import failed, ok

    found = installer.status()
    problem = installer.usable_problem(found)
    if problem is not None:
        return failed("library", problem, "rmq-txn native install")
    where = found.path if found.sha256 else found.system_library
    return ok("library", f"{where}, build {found.version or 'unknown'}, sha256 {found.sha256 or 'unknown'}")
