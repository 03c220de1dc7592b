"""
Reliable message, eventual consistency over MySQL and RocketMQ transactional messages.

Effects inside your database happen once; delivery is at least once; order is not promised.
"""

from rmq_txn.consumer import IdempotentConsumer
from rmq_txn.database import Database
from rmq_txn.database.transaction import Transaction
from rmq_txn.errors import (
    BrokerUnavailableError,
    DatabaseUnavailableError,
    FencedError,
    HalfMessageError,
    InDoubtError,
    Reject,
    RmqTxnError,
    TransactionLostError,
)
from rmq_txn.message import Delivery, Message
from rmq_txn.producer import TransactionProducer
from rmq_txn.producer.receipt import Receipt
from rmq_txn.transport.native import RocketMQ

__all__ = [
    # a service
    "Database",
    "RocketMQ",
    "TransactionProducer",
    "IdempotentConsumer",
    # what it handles
    "Message",
    "Transaction",
    "Receipt",
    "Delivery",
    # outcomes and errors; the rest is in rmq_txn.errors
    "RmqTxnError",
    "HalfMessageError",
    "FencedError",
    "TransactionLostError",
    "InDoubtError",
    "DatabaseUnavailableError",
    "BrokerUnavailableError",
    "Reject",
]
