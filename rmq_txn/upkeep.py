"""The durations of the outbox, by the name they are documented under; used by `rmq_txn.producer.upkeep`."""

from rmq_txn.producer.upkeep import OutboxTimes, ProducerHealth

__all__ = ["OutboxTimes", "ProducerHealth"]
