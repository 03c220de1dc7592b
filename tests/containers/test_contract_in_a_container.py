"""The native transport keeps its promises on `RocketMQContainer`: delivery, check-back, redelivery."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from rmq_txn import RocketMQ
from rmq_txn.testing import RocketMQContainer
from tests.contract.conftest import desk  # noqa: F401 - a fixture
from tests.contract.test_native_transport import TestNativeTransport


@pytest.fixture(scope="module")
def transport(rocketmq: RocketMQContainer) -> RocketMQ:
    """Return the transport under test."""
    return RocketMQ(rocketmq.name_server)


@pytest.fixture(scope="module")
def new_topic(rocketmq: RocketMQContainer) -> Callable[[], str]:
    """Return a function that creates a topic and returns its name."""

    def create() -> str:
        name = f"t{uuid.uuid4().hex[:12]}"
        rocketmq.create_topic(name)
        return name

    return create


class TestContractInAContainer(TestNativeTransport):
    """Every promise, none left out."""


del TestNativeTransport  # it would be collected here as well
