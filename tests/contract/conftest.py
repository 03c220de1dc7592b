"""Fixtures of the contract tier; the suite's assertions are rewritten like those of test modules."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

pytest.register_assert_rewrite("rmq_txn.testing.contract")

from devstack import LocalStack  # noqa: E402 - after the rewrite is registered
from rmq_txn.testing.contract import desk  # noqa: E402

__all__ = ["desk", "new_topic"]


@pytest.fixture(scope="session")
def new_topic(stack: LocalStack) -> Callable[[], str]:
    """Return a function that creates a topic and returns its name."""

    def create() -> str:
        name = f"t{uuid.uuid4().hex[:12]}"
        stack.create_topic(name)
        return name

    return create
