"""Fixtures of the contract tier; the suite's assertions are rewritten like those of test modules."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

pytest.register_assert_rewrite("tests.contract.suite", "tests.contract.desk")

from devstack import LocalStack  # noqa: E402 - after the rewrite is registered
from rmq_txn.transport import Transport  # noqa: E402
from tests.contract.desk import Desk  # noqa: E402


@pytest.fixture(scope="session")
def new_topic(stack: LocalStack) -> Callable[[], str]:
    """Return a function that creates a topic and returns its name."""

    def create() -> str:
        name = f"t{uuid.uuid4().hex[:12]}"
        stack.create_topic(name)
        return name

    return create


@pytest.fixture(scope="class")
def desk(
    request: pytest.FixtureRequest,
    transport: Transport,
    new_topic: Callable[[], str],
) -> Iterator[Desk]:
    """Return the desk that the tests of one suite share."""
    with Desk(transport, new_topic, request.cls.features) as desk:
        yield desk
