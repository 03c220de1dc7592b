"""
The promises of `rmq_txn.transport` as tests, for those who write a transport, or wrap one. Needs pytest.

    # conftest.py
    import pytest

    pytest.register_assert_rewrite("rmq_txn.testing.contract")

    # test_my_transport.py
    from rmq_txn.testing.contract import Features, TransportContract, desk  # desk is a fixture


    @pytest.fixture(scope="module")
    def transport():
        return MyTransport("127.0.0.1:9876")


    @pytest.fixture(scope="session")
    def new_topic():
        def create() -> str: ...  # make a topic that nobody else uses, return its name

        return create


    class TestMyTransport(TransportContract):
        features = Features()  # how long your broker takes

        def unreachable(self):
            return MyTransport("127.0.0.1:1")  # where nobody listens

A promise that your transport can't keep is not to be skipped: rmq_txn stands on each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from rmq_txn.testing.contract.deliveries import DeliveryContract
from rmq_txn.testing.contract.desk import Desk, Features, Script
from rmq_txn.testing.contract.life import LifeContract
from rmq_txn.testing.contract.messages import MessageContract
from rmq_txn.testing.contract.verdicts import VerdictContract
from rmq_txn.transport import Transport

__all__ = ["Desk", "Features", "Script", "TransportContract", "desk"]


class TransportContract(VerdictContract, MessageContract, DeliveryContract, LifeContract):
    """
    One test for each promise. Subclass it, name the subclass Test..., and set `features`.

    The fixture `desk` makes one started producer client and one consumer client of the fixture
    `transport`; messages carry their own scripts, so tests share them.
    """

    features = Features()


@pytest.fixture(scope="class")
def desk(
    request: pytest.FixtureRequest, transport: Transport, new_topic: Callable[[], str]
) -> Iterator[Desk]:
    """Return the desk that the tests of one suite share."""
    with Desk(transport, new_topic, request.cls.features) as made:
        yield made
