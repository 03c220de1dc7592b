"""
Checks of name servers, brokers, topics and groups.

They read. Only `of_half_message` stores something, and rolls it back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from rmq_txn.database import Database
from rmq_txn.database.sql import STATEMENTS
from rmq_txn.errors import BrokerUnavailableError, DatabaseUnavailableError
from rmq_txn.identity import new_txn_id
from rmq_txn.message import SCOUT_GROUP, Outbound
from rmq_txn.operating.database_checks import of_clock
from rmq_txn.operating.finding import Finding, failed, ok, skipped, warning
from rmq_txn.remoting.answers import ClientConnection, Master
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.cluster import ClusterSettings
from rmq_txn.remoting.members import GroupMembers, online
from rmq_txn.remoting.offsets import places
from rmq_txn.remoting.refusals import sentence, unwritable
from rmq_txn.remoting.server import RemotingError

_AWAY = (BrokerUnavailableError, RemotingError)
_FRESH_SECONDS = 60.0
"""A producer that is well writes its row each few seconds."""
_MOST_KEPT_HOURS = 7 * 24 - 5
"""Log and inbox are kept for 7 days; a message that the broker keeps longer may come after that."""
_MANY_REDELIVERIES = 16


def of_name_server(cluster: ClusterSettings) -> Iterator[Finding]:
    """Ask who its brokers are."""
    try:
        brokers = cluster.ask(cluster.name_servers).cluster_info().brokers
    except _AWAY as error:
        yield failed("name server", str(error), "start it, or mend --name-server or the network")
        return
    if not brokers:
        yield failed("name server", "answers, and knows no broker", "start a broker with this name server")
        return
    yield ok("name server", f"answers, and knows {len(brokers)} broker(s): {', '.join(sorted(brokers))}")
    for name, broker in sorted(brokers.items()):
        if broker.master_address is None:
            yield failed(f"broker {name}", "has no master now", "wait for it, or start it")


def of_topic(cluster: ClusterSettings, topic: str) -> Iterator[Finding]:
    """Look at the route of a topic, and whether it may be written and read."""
    check = f"topic {topic}"
    try:
        route = cluster.route(topic)
    except _AWAY as error:
        yield failed(
            check, str(error), f"create it: mqadmin updateTopic -t {topic} -a +message.type=TRANSACTION"
        )
        return
    masters = {master.broker_name: master.address for master in route.masters()}
    problems = []
    for queues in route.queues:
        address = masters.get(queues.broker_name)
        if address is None:
            continue
        if not queues.writable:
            problems.append(unwritable(cluster, address, topic, queues))
        if not queues.readable:
            problems.append(f"topic {topic!r} may not be read on broker {address}")
    if problems:
        yield failed(check, "; ".join(problems), "give it permission 6 and queues for both")
    else:
        number = sum(queues.write_queues for queues in route.queues)
        yield ok(check, f"{number} queue(s) for writing on {', '.join(sorted(masters)) or 'no master'}")
    for master in route.masters():
        yield _message_type(cluster, master, topic)


def _message_type(cluster: ClusterSettings, master: Master, topic: str) -> Finding:
    check = f"type of topic {topic}"
    try:
        kind = cluster.ask(master.address).topic_message_type(topic)
    except _AWAY as error:
        return skipped(check, f"broker {master.broker_name} does not say it: {error}")
    if kind == "TRANSACTION":
        return ok(check, f"TRANSACTION on {master.broker_name}")
    return ok(check, f"{kind} on {master.broker_name}; only clients of gRPC are bound by it")


def of_brokers(cluster: ClusterSettings, topics: Sequence[str]) -> Iterator[Finding]:
    """Put the settings of the masters of some topics into sentences."""
    masters: dict[str, str] = {}
    for topic in topics:
        try:
            masters |= {master.address: master.broker_name for master in cluster.masters(topic)}
        except _AWAY:
            continue  # told by `of_topic`
    for address, name in sorted(masters.items()):
        try:
            config = cluster.ask(address).broker_config()
        except _AWAY as error:
            yield skipped(
                f"settings of {name}",
                f"they can't be read: {error}",
                "only administrators may, with access control",
            )
            continue
        yield from of_broker_settings(name, config)


def of_broker_settings(
    name: str, config: Mapping[str, str], check_budget_seconds: float = 600.0
) -> Iterator[Finding]:
    """
    Judge the configuration of one broker.

    Args:
        check_budget_seconds: as given to the producers.
    """
    first = _number(config, "transactionTimeOut", 6_000) / 1000
    interval = _number(config, "transactionCheckInterval", 30_000) / 1000
    most = int(_number(config, "transactionCheckMax", 15))
    budget = first + interval * most
    text = (
        f"a lost verdict is asked for {first:g} to {first + interval:g} s after it was sent; without any "
        f"producer of the group a message waits {budget / 60:.1f} min ({most} questions), then it is in the "
        "outbox only"
    )
    if budget > check_budget_seconds:
        yield warning(
            f"check-back of {name}",
            f"{text}; that is longer than check_budget_seconds ({check_budget_seconds:g})",
            f"check_budget_seconds={budget + 60:.0f} for the producers",
        )
    else:
        yield ok(f"check-back of {name}", text)
    if config.get("rejectTransactionMessage") == "true":
        yield failed(
            f"settings of {name}",
            "rejectTransactionMessage=true: no half message is taken",
            "set it to false",
        )
    if config.get("brokerPermission", "6") != "6":
        permission = config["brokerPermission"]
        yield failed(f"settings of {name}", f"brokerPermission={permission}", "set it to 6: read and write")
    kept = _number(config, "fileReservedTime", 72)
    if kept > _MOST_KEPT_HOURS:
        yield warning(
            f"retention of {name}",
            f"fileReservedTime is {kept:g} h: a message may come after log and inbox forgot it (7 days)",
            "log_retention_days and inbox_retention_days longer than that",
        )
    if config.get("autoCreateTopicEnable") == "true":
        yield warning(
            f"settings of {name}",
            "autoCreateTopicEnable=true: a wrong name makes a topic",
            "false in production",
        )
    flush, role = config.get("flushDiskType", ""), config.get("brokerRole", "")
    if flush == "ASYNC_FLUSH" and role == "ASYNC_MASTER":
        yield warning(
            f"durability of {name}",
            "flushDiskType=ASYNC_FLUSH and brokerRole=ASYNC_MASTER: what it acknowledged in the last moments "
            "is lost with its machine",
            "SYNC_FLUSH, or a replica that confirms; messages of the last eleven minutes are in the outbox",
        )


def _number(config: Mapping[str, str], name: str, default: float) -> float:
    try:
        return float(config[name])
    except (KeyError, ValueError):
        return default


def _clients(
    cluster: ClusterSettings,
    topics: Sequence[str],
    ask: Callable[[RemotingClient], Sequence[ClientConnection]],
) -> set[str]:
    """Ask each master of some topics once for its clients of a group; return their ids."""
    addresses = {master.address for topic in topics for master in cluster.masters(topic)}
    return {client.client_id for address in addresses for client in ask(cluster.ask(address))}


def of_producer_group(
    cluster: ClusterSettings, database: Database, group: str, topics: Sequence[str]
) -> Iterator[Finding]:
    """Compare the clients that brokers would ask with the producers that this database knows."""
    check = f"producer group {group}"
    try:
        clients = _clients(cluster, topics, lambda broker: broker.producer_connections(group))
        with database.check_session("doctor") as session:
            session.execute(STATEMENTS["read_producers"], (group,))
            ages = {instance.decode(): float(age) for _, instance, age, *_ in session.cursor.fetchall()}
    except _AWAY as error:
        yield skipped(check, f"its clients can't be asked for: {error}")
        return
    except DatabaseUnavailableError as error:
        yield skipped(check, str(error))
        return
    if not clients:
        yield warning(check, "no client is registered: nobody answers check-backs", "start a producer of it")
        return
    strangers, silent = [], []
    for client in sorted(clients):
        age = next((age for instance, age in ages.items() if client.endswith(instance)), None)
        if age is None:
            strangers.append(client)
        elif age > _FRESH_SECONDS:
            silent.append(f"{client} ({age:.0f} s)")
    if strangers:
        yield failed(
            check,
            f"{', '.join(strangers)}: registered, and unknown to this database; such a client answers for "
            "transactions that it can't look up",
            "a group of its own for each pair of service and database",
        )
    if silent:
        yield failed(
            check, f"last wrote to the database: {', '.join(silent)}", "look at that process, or end it"
        )
    if not strangers and not silent:
        yield ok(check, f"{len(clients)} producer(s), each with a fresh row in this database")


def of_consumer_group(cluster: ClusterSettings, group: str, topics: Sequence[str]) -> Iterator[Finding]:
    """Look at who consumes, what the members leave out, and how much waits."""
    check = f"consumer group {group}"
    try:
        members = _clients(cluster, topics, lambda broker: online(broker, group))
        filters = GroupMembers(cluster, group, "no client of ours").filters(topics)
        waiting = sum(place.end - place.offset for place in places(cluster, group, tuple(topics)))
    except _AWAY as error:
        yield skipped(check, f"its members can't be asked for: {error}")
        return
    for item in filters:
        yield failed(
            check,
            f"member {item.member} ({item.language}) wants only {item.expression!r} of topic {item.topic!r}; "
            "what else comes to its queues is lost to the whole group",
            "let it subscribe to '*', or give it a group of its own",
        )
    if not members:
        yield warning(check, f"no member is online; {waiting} messages wait", "start a consumer of it")
    elif not filters:
        yield ok(check, f"{len(members)} member(s), {waiting} messages wait")


def of_half_message(
    cluster: ClusterSettings, topic: str, *, now: Callable[[], float] = time.time
) -> Iterator[Finding]:
    """Have each broker of a topic store a half message, compare its clock, and roll the message back."""
    probe = Outbound(topic, b"rmq_txn doctor, rolled back", key=None, tag=None, properties={})
    try:
        masters = cluster.masters(topic)
    except _AWAY:
        return  # told by `of_topic`
    for master in masters:
        check = f"half message on {master.broker_name}"
        client = cluster.ask(master.address)
        try:
            stored_at = client.store(SCOUT_GROUP, probe, new_txn_id(), half=True)
            told = now()
            stored = client.stored_message(stored_at.commit_log_offset)
            client.roll_back(SCOUT_GROUP, topic, stored_at)
        except RemotingError as error:
            yield failed(check, sentence(cluster, master.address, probe, error), "as said")
        except BrokerUnavailableError as error:
            yield failed(check, str(error), "start it, or mend the network")
        else:
            yield ok(check, "stored, and rolled back")
            yield of_clock(f"broker {master.broker_name}", stored.stored_milliseconds / 1000 - told)
