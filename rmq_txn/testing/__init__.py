"""
For the tests of your own service: a broker in this process, a database, a real RocketMQ in a container.

    from rmq_txn.testing import MemoryBroker

    broker = MemoryBroker(topics=["transfer"])

`RocketMQContainer` needs a container engine and `pip install 'rmq-txn[testing]'`; the rest does not. What is
promised of any transport is `rmq_txn.testing.contract`, which needs pytest. See docs/testing.md.
"""

from __future__ import annotations

from rmq_txn.testing.container import RocketMQContainer
from rmq_txn.testing.crashes import Crash, CrashPoints
from rmq_txn.testing.engine import ContainerError
from rmq_txn.testing.memory.broker import MemoryBroker, NotConsumedError, NotSettledError
from rmq_txn.testing.private_database import PrivateDatabase
from rmq_txn.testing.server_software import ServerError

__all__ = [
    "ContainerError",
    "Crash",
    "CrashPoints",
    "MemoryBroker",
    "NotConsumedError",
    "NotSettledError",
    "PrivateDatabase",
    "RocketMQContainer",
    "ServerError",
]
