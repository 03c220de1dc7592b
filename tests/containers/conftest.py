"""Fixtures of the tests that start containers themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("tests.contract.suite", "tests.contract.desk")

from devstack import ContainerStack  # noqa: E402 - after the rewrite is registered
from rmq_txn.testing import RocketMQContainer  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def engine_answers(stack: ContainerStack) -> None:
    """Without an engine these tests are skipped, or fail, as all others on servers."""


@pytest.fixture(scope="module")
def rocketmq() -> Iterator[RocketMQContainer]:
    """Start RocketMQ in a container for the tests of one module."""
    with RocketMQContainer() as container:
        yield container
