"""Servers that die, freeze or vanish at the worst moment of a transaction; the lab's load is in tests/e2e."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from devstack import LocalStack
from rmq_txn import DatabaseUnavailableError, FencedError, HalfMessageError, InDoubtError, RocketMQ
from rmq_txn.identity import PROPERTY_POSITION
from rmq_txn.message import Outbound
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.plain_messages import PlainSender
from tests.integration.test_transactions import Form, Rig, form_a, form_b
from tests.kit.proxy import Line, proxied, through
from tests.kit.rows import rows
from tests.kit.statements import hooked
from tests.kit.wait import until

pytestmark = pytest.mark.servers

OUTCOME_SECONDS = 15.0
# The bound is a sum of timeouts; this is for a machine on which a thread may wait for its turn.
BUSY_MACHINE_SECONDS = 10.0
PAUSE_SECONDS = 8.0


@pytest.fixture
def rig(stack: LocalStack, database_url: str, topic: str) -> Iterator[Rig]:
    """Return a rig; everything it opened is closed, last first."""
    rig = Rig(stack, database_url, topic)
    with rig.resources:
        yield rig


def is_commit(data: bytes) -> bool:
    """Tell whether a client sends COMMIT."""
    return data[4:] == b"\x03COMMIT"


@pytest.mark.parametrize(
    ("form", "took_effect"), [(form_a, True), (form_b, False)], ids=["after-commit", "before-commit"]
)
def test_a_database_killed_at_commit_has_the_outcome_that_is_told(
    rig: Rig, stack: LocalStack, form: Form, took_effect: bool
) -> None:
    """Killed between COMMIT and its answer, or just before; then it comes back."""
    with proxied(rig.url) as proxy:
        producer = rig.producer(rig.open(through(rig.url, proxy)))
        rig.consume()

        def kill_at_commit(line: Line, data: bytes) -> None:
            if not is_commit(data):
                return
            proxy.on_request = lambda _line, _data: None
            line.silence(to_client=True, to_server=True)
            if took_effect:
                line.server.sendall(data)
                until(lambda: rig.effects() == {"killed"}, "the commit took effect")
            stack.database.kill()
            line.cut()
            stack.database.start()

        proxy.on_request = kill_at_commit
        told: bool | None
        try:
            form(producer, rig.topic, "killed")
            told = True
        except DatabaseUnavailableError:
            told = False
        except InDoubtError:
            told = None
        stack.database.wait_ready()
        assert rig.effects() == ({"killed"} if took_effect else set())
        assert told in (took_effect, None)
        form(producer, rig.topic, "after")
    expected = {"killed", "after"} if took_effect else {"after"}
    rig.wait_received(*expected)
    assert {d.json()["id"] for d in rig.received} == expected


def test_a_black_hole_at_commit_has_an_outcome_soon_and_leaves_no_transaction_open(rig: Rig) -> None:
    """Every line to the database swallows everything from COMMIT on; nobody is told of a closed line."""
    connections: list[int] = []
    with proxied(rig.url) as proxy:
        producer = rig.producer(rig.open(through(rig.url, proxy), local_timeout_seconds=8))
        rig.consume()
        began = 0.0

        def swallow(_line: Line, data: bytes) -> None:
            nonlocal began
            if is_commit(data):
                began = time.monotonic()
                proxy.silence(to_client=True, to_server=True)

        proxy.on_request = swallow
        with (
            hooked(before=lambda session, _sql: connections.append(session.connection_id)),
            pytest.raises(InDoubtError),
        ):
            form_a(producer, rig.topic, "swallowed")
        assert time.monotonic() - began < OUTCOME_SECONDS + BUSY_MACHINE_SECONDS
        proxy.on_request = lambda _line, _data: None
        # Still a black hole: the server ends the transaction by itself.
        sql = "SELECT id FROM information_schema.processlist WHERE id = %s"
        until(lambda: not rows(rig.url, sql, (connections[0],)), "the server ended the connection", 60)
        assert rig.effects() == set()
        proxy.heal()
        form_a(producer, rig.topic, "later")
        rig.wait_received("later")
    assert [d.json()["id"] for d in rig.received] == ["later"]


def test_three_messages_and_a_broker_that_freezes_between_them_are_all_or_none(
    rig: Rig, stack: LocalStack
) -> None:
    """The broker is paused for 8 s after the first of three half messages, in both forms at once."""
    armed = threading.Event()
    both_stored = threading.Barrier(2)

    def freeze(message: Outbound) -> None:
        # Position 2 is sent first: half messages are nested.
        if not armed.is_set() or message.properties[PROPERTY_POSITION] != "1":
            return
        if both_stored.wait(30) == 0:
            stack.broker.pause()
            threading.Timer(PAUSE_SECONDS, stack.broker.resume).start()

    producer = rig.producer(on_send=freeze)
    rig.consume()
    armed.set()

    def committed(form: Form) -> bool:
        try:
            form(producer, rig.topic, form.__name__, messages=3)
        except (HalfMessageError, FencedError):
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        outcomes = dict(zip(("form_a", "form_b"), pool.map(committed, (form_a, form_b)), strict=True))
    armed.clear()
    told = {name for name, outcome in outcomes.items() if outcome}
    assert rig.effects() == told
    form_a(producer, rig.topic, "later", messages=3)
    expected = {(name, n) for name in (*told, "later") for n in range(3)}

    def received() -> set[tuple[str, int]]:
        return {(d.json()["id"], d.json()["n"]) for d in rig.received}

    try:
        until(lambda: received() >= expected, "all arrive", 120)
    except AssertionError as error:
        raise AssertionError(f"{error}; missing are {expected - received()}, of {outcomes}") from None
    assert received() == expected


def test_transactions_go_on_while_the_name_server_is_away(rig: Rig, stack: LocalStack) -> None:
    """Clients know their broker by then; nothing but a new client needs the name server."""
    producer = rig.producer()
    rig.consume()
    form_a(producer, rig.topic, "before")
    rig.wait_received("before")
    stack.namesrv.kill()
    try:
        form_a(producer, rig.topic, "a-meanwhile")
        form_b(producer, rig.topic, "b-meanwhile")
        rig.wait_received("a-meanwhile", "b-meanwhile")
    finally:
        stack.namesrv.start()
        stack.broker.wait_ready()  # the name server knows it again
    form_b(producer, rig.topic, "after")
    rig.wait_received("after")
    assert rig.effects() == {"before", "a-meanwhile", "b-meanwhile", "after"}


def test_a_broker_that_was_killed_takes_the_next_message_of_a_relay_at_once(
    stack: LocalStack, topic: str
) -> None:
    """The connection that the relay kept is to the process before."""
    message = Outbound(topic, b"copy", None, None, {})
    with closing(PlainSender(RocketMQ(stack.name_server), "relay")) as sender:
        sender.send(message, "A" * 32)
        stack.broker.kill()
        stack.broker.start()
        stack.broker.wait_ready()
        sender.send(message, "B" * 32)
    broker = RemotingClient(stack.broker_address)
    stored = sum(broker.max_offset(topic, queue) for queue in range(4))
    assert stored == 2
