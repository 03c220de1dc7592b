"""`ContainerStack`: a stack like the local one, whose servers keep data and ports when they are killed."""

from __future__ import annotations

import socket

import pymysql
import pytest

from devstack import ContainerStack, Stack, StackError
from devstack.stack import ServerHandle
from rmq_txn.database.pool import parse_url
from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.remoting.client import RemotingClient
from tests.kit.rows import rows
from tests.kit.wait import until


def test_it_is_a_stack(stack: ContainerStack) -> None:
    """The seam that tests use is what it offers, with handles for all servers."""
    assert isinstance(stack, Stack)
    for server in (stack.namesrv, stack.broker, stack.database):
        assert isinstance(server, ServerHandle)
        assert server.alive
        with pytest.raises(StackError, match=f"{server.name} runs already"):
            server.start()


def test_a_killed_broker_comes_back_with_its_topics(stack: ContainerStack, unique: str) -> None:
    """On the same port, as another process."""
    stack.create_topic(unique, queues=2)
    address, pid = stack.broker_address, stack.broker.pid
    stack.broker.kill()
    assert not stack.broker.alive
    with pytest.raises(StackError, match="broker is not running"):
        stack.broker.kill()
    stack.broker.start()
    assert (stack.broker_address, stack.broker.pid != pid) == (address, True)
    (queues,) = RemotingClient(stack.name_server).topic_route(unique).queues
    assert queues.write_queues == 2


def test_a_stopped_database_comes_back_with_its_rows(stack: ContainerStack, database_url: str) -> None:
    """Stopped cleanly, then killed while it is paused."""
    with (
        pymysql.connect(**parse_url(database_url), autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("INSERT INTO effect (id) VALUES ('kept')")
    stack.database.restart()
    stack.database.pause()
    stack.database.kill()
    stack.database.start()
    assert rows(database_url, "SELECT id FROM effect") == [("kept",)]


def test_an_account_reaches_its_own_database_only(
    stack: ContainerStack, database_url: str, unique: str
) -> None:
    """What a service does to its database can't touch another's."""
    other = stack.database_url(f"{unique}_b")
    assert parse_url(other)["password"] != parse_url(database_url)["password"]
    with pytest.raises(pymysql.err.OperationalError, match="denied"):
        rows(database_url, f"SELECT * FROM {unique}_b.effect")
    assert rows(other, "SELECT DATABASE()") == [(f"{unique}_b",)]


def test_a_paused_name_server_does_not_answer_until_it_is_resumed(stack: ContainerStack) -> None:
    """Connections stay, nobody answers."""
    client = RemotingClient(stack.name_server, timeout_seconds=1.0)
    stack.namesrv.pause()
    try:
        assert stack.namesrv.alive
        with pytest.raises(BrokerUnavailableError, match="did not answer"):
            client.cluster_info()
    finally:
        stack.namesrv.resume()
    until(lambda: client.cluster_info().brokers, "the name server answers")


def test_the_proxy_listens(stack: ContainerStack) -> None:
    """For gRPC clients."""
    host, port = stack.proxy_address.split(":")
    with socket.create_connection((host, int(port)), 5):
        pass


def test_nothing_is_published_beyond_loopback(stack: ContainerStack) -> None:
    """As docker-compose.yml does."""
    containers = [server._running() for server in (stack.namesrv, stack.broker, stack.database)]
    published = [
        binding for one in containers for bindings in one.ports.values() for binding in bindings or ()
    ]
    assert {binding["HostIp"] for binding in published} == {"127.0.0.1"}


def test_the_log_says_what_the_server_wrote(stack: ContainerStack) -> None:
    """Its output, and the files under their names."""
    text = stack.broker.log_tail()
    assert "boot success" in text
    assert "--- /home/rocketmq/logs/rocketmqlogs/broker.log" in text
