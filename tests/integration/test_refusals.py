<<<<<<< HEAD
"""A broker that refuses: producer and consumer are told which of its settings does it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
=======
"""A server that answers and refuses to work: the outcome is told right, and no pool sticks to it."""

from __future__ import annotations

import threading
from collections.abc import Callable
>>>>>>> wt-b
from contextlib import ExitStack

import pytest

from devstack import LocalStack
<<<<<<< HEAD
from rmq_txn import BrokerUnavailableError, RocketMQ
from rmq_txn.identity import is_txn_id
from rmq_txn.message import SCOUT_GROUP, Message
from rmq_txn.transport import Check
from rmq_txn.transport.clients import NativeProducer
from rmq_txn.transport.diagnosis import explain
from rmq_txn.transport.remoting import RemotingClient
from rmq_txn.verdict import Answer, Verdict
from tests.kit.known import known_producer
from tests.kit.wait import until

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

UPDATE_TOPIC, UPDATE_BROKER_CONFIG, UPDATE_GROUP = 17, 25, 200
CLOSE_SECONDS = 10.0


@pytest.fixture
def administrator(stack: LocalStack) -> RemotingClient:
    """Return who may change the broker."""
    return RemotingClient(stack.broker_address)


@pytest.fixture
def set_up(administrator: RemotingClient) -> Iterator[Callable[..., None]]:
    """Return a function that changes the broker's configuration; it is as it was at the end."""
    before = administrator.broker_config()
    changed: dict[str, str] = {}

    def change(**lines: str) -> None:
        changed.update(lines)
        text = "\n".join(f"{name}={value}" for name, value in lines.items())
        administrator.tell(UPDATE_BROKER_CONFIG, {}, "to change its configuration", text.encode())

    yield change
    change(**{name: before[name] for name in changed})


def permit(administrator: RemotingClient, stack: LocalStack, topic: str, permission: int) -> None:
    """Set what may be done with a topic, and wait until the name server knows."""
    fields = {
        "topic": topic,
        "defaultTopic": "TBW102",
        "readQueueNums": "4",
        "writeQueueNums": "4",
        "perm": str(permission),
        "topicFilterType": "SINGLE_TAG",
        "topicSysFlag": "0",
        "order": "false",
    }
    administrator.tell(UPDATE_TOPIC, fields, "to change a topic")
    name_server = RemotingClient(stack.name_server)
    until(
        lambda: [queues.permission for queues in name_server.topic_route(topic).queues] == [permission],
        "the name server knows the permission",
    )


def test_a_broker_that_takes_no_transactions_says_so_at_start_and_at_a_send(
    stack: LocalStack, topic: str, set_up: Callable[..., None]
) -> None:
    """rejectTransactionMessage=true; the client says "No route info"."""
    broker = RocketMQ(stack.name_server)
    message = Message(topic, {"n": 1}).outbound(txn_id="0" * 32, position=0, owner="x")
    with ExitStack() as resources:
        producer = known_producer(
            lambda: broker.producer(f"g-{topic}", lambda _check: Verdict.UNKNOWN), topic, resources
        )
        set_up(rejectTransactionMessage="true")
        with pytest.raises(
            BrokerUnavailableError, match="rejectTransactionMessage=true in its configuration"
        ):
            producer.send_half(message, lambda _id: Verdict.ROLLBACK)
        late = broker.producer(f"h-{topic}", lambda _check: Verdict.UNKNOWN)
        with pytest.raises(
            BrokerUnavailableError, match="rejectTransactionMessage=true in its configuration"
        ):
            late.start([topic])
        late.close(CLOSE_SECONDS)


def test_a_topic_that_may_not_be_written_is_named(
    stack: LocalStack, topic: str, administrator: RemotingClient
) -> None:
    """With the command that mends it."""
    permit(administrator, stack, topic, 4)
    producer = RocketMQ(stack.name_server).producer(f"g-{topic}", lambda _check: Verdict.UNKNOWN)
    with pytest.raises(
        BrokerUnavailableError, match=f"may not be written .* updateTopicPerm -t {topic} -p 6"
    ):
        producer.start([topic])
    producer.close(CLOSE_SECONDS)


def test_a_message_larger_than_the_broker_takes_is_told_with_both_sizes(
    stack: LocalStack, topic: str, set_up: Callable[..., None]
) -> None:
    """Its limit may be lower than the default, which is all that we know beforehand."""
    set_up(maxMessageSize="1000")
    message = Message(topic, {"text": "x" * 2000}).outbound(txn_id="0" * 32, position=0, owner="x")
    cause = explain(RocketMQ(stack.name_server), message, "No route info")
    assert "2011 bytes of body" in cause.text
    assert "maxMessageSize is 1000" in cause.text
    assert not cause.brokers_answer


@pytest.mark.parametrize("what", ["topic", "group"])
def test_a_consumer_that_may_not_read_is_told_at_start(
    stack: LocalStack, topic: str, administrator: RemotingClient, what: str
) -> None:
    """The client would start, and wait for ever without a word (docs/hazards.md, E8)."""
    group = f"c-{topic}"
    if what == "topic":
        permit(administrator, stack, topic, 2)
        said = f"lets nobody read topic '{topic}'"
    else:
        off = json.dumps({"groupName": group, "consumeEnable": False}).encode()
        administrator.tell(UPDATE_GROUP, {}, "to switch a group off", off)
        said = f"does not let group '{group}' consume topic '{topic}'"
    consumer = RocketMQ(stack.name_server).consumer(group, {topic: ["*"]}, 1, lambda _delivery: Answer.ACK)
    with pytest.raises(BrokerUnavailableError, match=said):
        consumer.start()
    consumer.close(0.0, CLOSE_SECONDS)


def test_the_port_of_a_broker_given_as_name_server_is_named(stack: LocalStack, topic: str) -> None:
    """By both kinds of client, before the native one asks it for a minute."""
    broker = RocketMQ(stack.broker_address)
    producer = broker.producer(f"g-{topic}", lambda _check: Verdict.UNKNOWN)
    consumer = broker.consumer(f"c-{topic}", {topic: ["*"]}, 1, lambda _delivery: Answer.ACK)
    for start in (lambda: producer.start([topic]), consumer.start):
        with pytest.raises(BrokerUnavailableError, match=f"{stack.broker_address} is no name server"):
            start()


def test_what_a_diagnosis_sends_is_rolled_back_at_once(stack: LocalStack, topic: str) -> None:
    """Of the scouts' group the broker asks about what was left open, and about no probe."""
    asked: list[str] = []
    left: list[str] = []

    def check(question: Check) -> Verdict:
        asked.append(question.message_id)
        return Verdict.ROLLBACK

    def leave(message_id: str) -> Verdict:
        left.append(message_id)
        return Verdict.UNKNOWN

    broker = RocketMQ(stack.name_server)
    message = Message(topic, {"n": 1}, key="k").outbound(txn_id="0" * 32, position=0, owner="x")
    first = NativeProducer(broker, f"g-{topic}", check)
    scout = NativeProducer(broker, SCOUT_GROUP, check, instance=first._instance)
    try:
        first._start_alone()
        first.send_half(message, lambda _id: Verdict.ROLLBACK)
        scout._start_alone()
        assert scout.is_registered(topic)
        for _ in range(3):
            assert explain(broker, message, "No route info").brokers_answer
        scout.send_half(message, leave)
        until(lambda: set(left) <= set(asked), "it is asked about what was left open", 60)
    finally:
        scout.close(CLOSE_SECONDS)
        first.close(CLOSE_SECONDS)
    assert [message_id for message_id in asked if is_txn_id(message_id)] == []  # the ids of probes
=======
from rmq_txn import Database, DatabaseUnavailableError, Message
from rmq_txn.errors import TransactionLostError
from rmq_txn.session import Session
from tests.kit.administrator import administer, read_only
from tests.kit.desk import Desk
from tests.kit.rows import rows
from tests.kit.statements import COMMIT, hooked

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

WRITE = "INSERT INTO effect (id) VALUES ('written')"
REFUSED = r"refuses to work now: .*read-only.* \(error 1290\)"


def effects(url: str) -> list[str]:
    """Return what is durable, read past the SDK."""
    return [row[0] for row in rows(url, "SELECT id FROM effect")]


@pytest.mark.parametrize("how", ["execute", "cursor"])
def test_a_server_that_refuses_writes_is_unavailable_and_nothing_was_committed(
    stack: LocalStack, database: Database, database_url: str, how: str
) -> None:
    """Not a raw driver error, by a lent cursor neither; reads go on."""

    def block() -> None:
        with database.transaction() as txn:
            (txn.execute if how == "execute" else txn.cursor().execute)(WRITE)

    with read_only(stack):
        with pytest.raises(DatabaseUnavailableError, match=REFUSED):
            block()
        with database.transaction(read_only=True) as txn:
            assert txn.execute("SELECT id FROM effect") == 0
    block()
    assert effects(database_url) == ["written"]


@pytest.mark.parametrize("form", ["A", "B"])
@pytest.mark.parametrize("when", ["before the statement", "before COMMIT"])
def test_a_producer_on_a_refusing_server_is_told_that_nothing_was_committed(
    stack: LocalStack, desk: Desk, form: str, when: str
) -> None:
    """At COMMIT too: the server's refusal is an answer, nothing is in doubt and nothing is looked up."""
    producer = desk.producer
    resources = ExitStack()

    def refuse(_session: Session, sql: str) -> None:
        if (sql == COMMIT) if when == "before COMMIT" else (sql == WRITE):
            resources.enter_context(read_only(stack))

    def publish() -> None:
        if form == "B":
            producer.send_in_transaction(Message(desk.topic, {"id": form}), lambda txn: txn.execute(WRITE))
        else:
            with producer.transaction() as txn:
                txn.execute(WRITE)
                txn.publish(desk.topic, {"id": form})

    with hooked(before=refuse), resources, pytest.raises(DatabaseUnavailableError, match=REFUSED):
        publish()
    assert desk.effects() == []
    publish()
    assert desk.effects() == ["written"]


def test_reachable_means_that_a_row_can_be_written(
    stack: LocalStack, database: Database, database_url: str
) -> None:
    """Else who waits for a refusing server would be told at once that the wait is over."""
    with read_only(stack):
        assert not database.is_reachable()
        give_up = threading.Event()
        waiting = threading.Thread(target=database.wait_until_reachable, args=(give_up, 0.1))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(10)
    assert not waiting.is_alive()
    assert database.is_reachable()
    assert rows(database_url, "SELECT * FROM rmq_txn_log") == []


def test_no_idle_connection_to_a_demoted_server_is_lent_again(
    stack: LocalStack, database_url: str, open_database: Callable[..., Database]
) -> None:
    """The first refusal condemns all that were made before, those of check-backs included."""
    database = open_database(database_url, pool_size=3)

    def connections() -> set[int]:
        with ExitStack() as opened:
            sessions = [database.begin(str(n)) for n in range(3)] + [database.begin_check("c")]
            for session in sessions:
                opened.callback(session.rollback)
            return {session.connection_id for session in sessions}

    before = connections()
    assert connections() == before
    with read_only(stack), pytest.raises(DatabaseUnavailableError), database.transaction() as txn:
        txn.execute(WRITE)
    assert not connections() & before


def test_a_server_that_is_read_only_by_default_is_told_from_a_transaction_that_business_code_made_so(
    stack: LocalStack, database_url: str, open_database: Callable[..., Database]
) -> None:
    """Error 1792 has both causes; only the first is the server's."""
    known = {name for name, _ in administer(stack, "SHOW VARIABLES LIKE '%_read_only'")}
    name = "transaction_read_only" if "transaction_read_only" in known else "tx_read_only"
    administer(stack, f"SET GLOBAL {name} = 1")
    try:
        database = open_database(database_url)
        with pytest.raises(DatabaseUnavailableError, match="1792"), database.transaction() as txn:
            txn.execute(WRITE)
    finally:
        administer(stack, f"SET GLOBAL {name} = 0")
    database = open_database(database_url)

    def read_only_by_itself() -> None:
        with database.transaction() as txn:
            txn.execute("START TRANSACTION READ ONLY")
            txn.execute(WRITE)

    with pytest.raises(TransactionLostError):
        read_only_by_itself()
>>>>>>> wt-b
