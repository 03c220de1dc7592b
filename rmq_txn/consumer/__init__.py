"""
The consumer: a delivery, its inbox row and its effect in one transaction, and the ack after COMMIT.

`handling.py` tells the protocol in the order in which it happens.
"""

from rmq_txn.consumer.consumer import IdempotentConsumer

__all__ = ["IdempotentConsumer"]
