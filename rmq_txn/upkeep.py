"""The durations of the outbox, by the name they are documented under; used by `rmq_txn.producer.upkeep`."""

from rmq_txn.producer.health import ProducerHealth
from rmq_txn.producer.upkeep import OutboxTimes

__all__ = ["OutboxTimes", "ProducerHealth"]
