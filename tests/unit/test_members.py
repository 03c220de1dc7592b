"""Who of the members that a broker names is online; no server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.remoting import members
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.server import NO_PERMISSION, SYSTEM_ERROR, RemotingError

CLOSED = RemotingError(
    SYSTEM_ERROR,
    "invoke consumer <g> <a> Exception: org.apache.rocketmq.remoting.exception."
    "RemotingSendRequestException: send request to </127.0.0.1:5> failed",
)


def ids(named: list[str], answers: dict[str, Exception]) -> list[str]:
    """Ask a broker that names these clients, and that fails so when it is to ask one of them."""

    def consumer_subscriptions(_group: str, client_id: str) -> dict[str, str]:
        if client_id in answers:
            raise answers[client_id]
        return {}

    broker = SimpleNamespace(
        consumer_connections=lambda _group: tuple(SimpleNamespace(client_id=name) for name in named),
        consumer_subscriptions=consumer_subscriptions,
    )
    return [connection.client_id for connection in members.online(cast(RemotingClient, broker), "g")]


def test_a_member_whose_connection_is_closed_is_not_online() -> None:
    """The others are."""
    assert ids(["a", "b", "c"], {"b": CLOSED}) == ["a", "c"]


@pytest.mark.parametrize(
    "answer",
    [
        BrokerUnavailableError("no answer within 3 s"),
        RemotingError(NO_PERMISSION, "who asks may not"),
        RemotingError(SYSTEM_ERROR, "The Consumer <a> Version <V3_1_0> too low to finish"),
    ],
)
def test_a_member_that_does_not_answer_or_may_not_be_asked_is_online(answer: Exception) -> None:
    """A frozen one would go on with its offset."""
    assert ids(["a"], {"a": answer}) == ["a"]


def test_a_client_with_two_connections_is_online() -> None:
    """The broker asks through one of them, which may be the dead one."""
    assert ids(["a", "a"], {"a": CLOSED}) == ["a", "a"]


def test_so_many_members_are_not_all_asked() -> None:
    """Each one that is frozen costs the whole patience."""
    named = [str(number) for number in range(60)]
    assert ids(named, dict.fromkeys(named, CLOSED)) == named[50:]
