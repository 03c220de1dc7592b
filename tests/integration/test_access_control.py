"""A broker that enforces access control (ACL of RocketMQ 5)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from devstack import LocalStack, StackSettings
from rmq_txn import (
    BrokerUnavailableError,
    Database,
    IdempotentConsumer,
    Message,
    RocketMQ,
    TransactionProducer,
)
from tests.conftest import CHECKOUT, prepared_url
from tests.kit.transports import RecordChecks, Wrapped, never_answers
from tests.kit.wait import until

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

USER, SECRET, TOPIC = "rocketmq", "12345678", "guarded"


@pytest.fixture(scope="module")
def guarded(stack: LocalStack) -> Iterator[LocalStack]:
    """Start a second cluster whose broker knows one user."""
    user = {"username": USER, "password": SECRET}
    inner = {"accessKey": USER, "secretKey": SECRET}
    folder = CHECKOUT / ".devstack" / f"{stack.settings.folder.name}-acl"
    settings = StackSettings.for_tests(
        folder,
        broker_properties={
            "authenticationEnabled": "true",
            "authenticationProvider": "org.apache.rocketmq.auth.authentication.provider"
            ".DefaultAuthenticationProvider",
            "authenticationMetadataProvider": "org.apache.rocketmq.auth.authentication.provider"
            ".LocalAuthenticationMetadataProvider",
            "initAuthenticationUser": json.dumps(user),
            "innerClientAuthenticationCredentials": json.dumps(inner),
        },
        credentials=(USER, SECRET),
    )
    cluster = LocalStack(settings)
    cluster.start()
    try:
        cluster.create_topic(TOPIC)
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def guarded_database(guarded: LocalStack, unique: str) -> Iterator[Database]:
    """Return a database of this test's own in the second cluster."""
    database = Database.mysql(prepared_url(guarded, unique))
    yield database
    database.close()


def test_send_check_back_and_consume_work_with_the_right_secret(
    guarded: LocalStack, guarded_database: Database, unique: str
) -> None:
    """A message whose verdict was lost is asked about and delivered."""
    broker = RocketMQ(guarded.name_server, access_key=USER, secret_key=SECRET)
    checks = RecordChecks()
    received: list[str] = []
    consumer = IdempotentConsumer(group=f"c-{unique}", broker=broker, database=guarded_database)
    consumer.handles(TOPIC)(lambda _txn, delivery: received.append(delivery.json()["id"]))
    producer = TransactionProducer(
        group=f"g-{unique}",
        broker=Wrapped(broker, around_execute=never_answers, around_check=checks),
        database=guarded_database,
        topics=[TOPIC],
    )
    with producer, consumer:
        receipt = producer.send_in_transaction(Message(TOPIC, {"id": "secured"}), lambda _txn: None)
        until(lambda: "secured" in received, "the delivery", 40)
    assert checks.verdicts(receipt.txn_id)


@pytest.mark.parametrize("secret", ["wrong-secret", None], ids=["wrong", "missing"])
def test_a_wrong_or_missing_secret_is_an_error_at_the_start_of_a_producer(
    guarded: LocalStack, guarded_database: Database, unique: str, secret: str | None
) -> None:
    """Said in words that name the credentials, not "No route info"; the secret is not repeated."""
    broker = RocketMQ(guarded.name_server, access_key=secret and USER, secret_key=secret)
    producer = TransactionProducer(
        group=f"g-{unique}", broker=broker, database=guarded_database, topics=[TOPIC]
    )
    with pytest.raises(BrokerUnavailableError, match="access_key and secret_key") as caught:
        producer.start()
    assert str(secret) not in str(caught.value)


@pytest.mark.parametrize("secret", ["wrong-secret", None], ids=["wrong", "missing"])
def test_a_wrong_or_missing_secret_is_an_error_at_the_start_of_a_consumer(
    guarded: LocalStack, guarded_database: Database, unique: str, secret: str | None
) -> None:
    """The native client would start, and never receive anything."""
    broker = RocketMQ(guarded.name_server, access_key=secret and USER, secret_key=secret)
    consumer = IdempotentConsumer(group=f"c-{unique}", broker=broker, database=guarded_database)
    consumer.handles(TOPIC)(lambda _txn, _delivery: None)
    with pytest.raises(BrokerUnavailableError, match="access_key and secret_key") as caught:
        consumer.start()
    assert str(secret) not in str(caught.value)
