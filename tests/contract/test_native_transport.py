"""The native transport keeps the promises of `rmq_txn.transport`, on real servers."""

from __future__ import annotations

import socket

import pytest

from devstack import LocalStack
from rmq_txn import RocketMQ
from rmq_txn.testing.contract import Features, TransportContract

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def transport(stack: LocalStack) -> RocketMQ:
    """Return the transport under test."""
    return RocketMQ(stack.name_server)


class TestNativeTransport(TransportContract):
    """Every promise, none left out."""

    features = Features()

    def unreachable(self) -> RocketMQ:
        """Return a transport to a port nobody listens on."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            return RocketMQ(f"127.0.0.1:{listener.getsockname()[1]}")
