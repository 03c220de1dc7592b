"""
For the tests of your own service: a real RocketMQ in a container.

    from rmq_txn.testing import RocketMQContainer

    with RocketMQContainer() as rocketmq:
        rocketmq.create_topic("transfer")
        broker = RocketMQ(rocketmq.name_server)

Needs a container engine and `pip install 'rmq-txn[testing]'`. See docs/testing.md.
"""

from __future__ import annotations

from rmq_txn.testing.container import RocketMQContainer
from rmq_txn.testing.engine import ContainerError

__all__ = ["ContainerError", "RocketMQContainer"]
