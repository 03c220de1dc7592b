"""docs/operating.md: the privileges suffice, and its manifest is one."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable

import pymysql
import pytest
import yaml

from demo_account_service.settings import Settings
from devstack import LocalStack
from rmq_txn import Database, Delivery, IdempotentConsumer, Reject, RocketMQ, Transaction, TransactionProducer
from rmq_txn.cli import build_parser, exit_codes, main
from tests.kit.administrator import administer
from tests.kit.documents import blocks, quoted_commands, text_of
from tests.kit.rows import rows
from tests.kit.wait import until

PAGES = ["docs/operating.md", "docs/operating.zh-CN.md"]


@pytest.fixture
def restricted_url(stack: LocalStack, database_url: str) -> str:
    """Return the URL for an account that has the privileges of the page, and those on its own table."""
    name = database_url.rpartition("/")[2]
    account, password = f"'{name}_app'@'127.0.0.1'", secrets.token_hex(8)
    administer(stack, f"CREATE USER {account} IDENTIFIED BY '{password}'")
    (script,) = blocks(text_of(PAGES[0]), "sql")
    for statement in filter(None, map(str.strip, script.split(";"))):
        administer(stack, statement.replace("'app'@'%'", account).replace("account.", f"{name}."))
    administer(stack, f"GRANT SELECT, INSERT ON {name}.effect TO {account}")
    return f"mysql://{name}_app:{password}@{database_url.rpartition('@')[2]}"


@pytest.mark.servers
@pytest.mark.local_stack
def test_the_privileges_suffice_for_all_that_a_service_does(
    restricted_url: str,
    database_url: str,
    broker: RocketMQ,
    topic: str,
    open_database: Callable[..., Database],
) -> None:
    """Both forms, check-back, handling, parking, replay, pruning, health; and DDL is refused."""
    database = open_database(restricted_url)
    producer = TransactionProducer(group=f"g-{topic}", broker=broker, database=database, topics=[topic])
    consumer = IdempotentConsumer(group=f"c-{topic}", broker=broker, database=database)
    refusing = [True]

    @consumer.handles(topic)
    def award(txn: Transaction, delivery: Delivery) -> None:
        if delivery.json()["id"] == "bad" and refusing:
            raise Reject("not this one")
        txn.execute("INSERT INTO effect (id) VALUES (%s)", (delivery.json()["id"],))

    def effects() -> set[str]:
        return {row[0] for row in rows(database_url, "SELECT id FROM effect")}

    def keys() -> list[str]:
        return [row[0].decode() for row in rows(database_url, "SELECT dedup_key FROM rmq_txn_parked")]

    with producer, consumer:
        for id_ in ("good", "bad"):
            with producer.transaction() as txn:
                txn.publish(topic, {"id": id_})
        until(lambda: effects() == {"good"} and keys(), "one handled, one parked")
        refusing.clear()
        assert consumer.replay(keys()[0])
        assert effects() == {"good", "bad"}
        until(lambda: producer.health().registered, "a look at brokers and tables")
        assert producer.health().problems == ()
        until(lambda: consumer.health().registered and not consumer.health().problems, "a look after it")
    for command in (["schema", "check"], ["prune", "--older-than", "7d"], ["outbox", "status"]):
        assert main([*command, "--database-url", restricted_url]) == exit_codes.OK
    with pytest.raises(pymysql.err.OperationalError, match="denied"):
        rows(restricted_url, "CREATE TABLE mine (id INT)")


@pytest.mark.parametrize("page", PAGES)
def test_each_command_of_the_page_is_one(page: str) -> None:
    """With arguments it must parse; the name alone must be one that has help."""
    commands = [words for words in quoted_commands(text_of(page)) if words.startswith("rmq-txn ")]
    assert len(commands) > 5
    for command in commands:
        words = shlex.split(command)[1:]
        if len(words) <= 2:
            with pytest.raises(SystemExit) as ended:
                build_parser().parse_args([*words, "--help"])
            assert ended.value.code == 0, command
        else:
            build_parser().parse_args(words)


def test_both_pages_have_the_same_commands_and_a_manifest_that_is_one() -> None:
    english, chinese = map(text_of, PAGES)
    for language in ("sql", "yaml"):
        assert blocks(english, language) == blocks(chinese, language)
    manifests = [yaml.safe_load(text) for text in blocks(english, "yaml")]
    for made in manifests:
        pod = made["spec"]["template"]
        assert made["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    consumer, service = ([*made["spec"]["template"]["spec"]["containers"]] for made in manifests)
    environment = {item["name"]: item.get("value", "mysql://u:p@h/d") for item in service[0]["env"]}
    settings = Settings.from_environment(environment)  # it knows each of them, and needs no more
    assert settings.port == service[0]["ports"][0]["containerPort"]
    pod = manifests[0]["spec"]["template"]
    (container,) = consumer
    stop = int(container["command"][container["command"].index("--stop-seconds") + 1])
    assert stop < pod["spec"]["terminationGracePeriodSeconds"]
