"""
The producer: half message, local transaction, verdict, and the check-back that finds it again.

`commitment.py` tells the protocol in the order in which it happens.
"""

from rmq_txn.producer.producer import TransactionProducer

__all__ = ["TransactionProducer"]
