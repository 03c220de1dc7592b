"""
Money for points with Flask and Celery: the endpoint asks, a task takes the money, a consumer awards points.

    flask --app service run
    celery -A service:celery worker --concurrency 2
    rmq-txn consume service:consumer
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown
from flask import Flask, request

from rmq_txn import (
    Database,
    DatabaseUnavailableError,
    Delivery,
    FencedError,
    HalfMessageError,
    IdempotentConsumer,
    InDoubtError,
    RmqTxnError,
    RocketMQ,
    Transaction,
    TransactionProducer,
)

account = Database.mysql("mysql://account:secret@127.0.0.1:3306/account")
points = Database.mysql("mysql://points:secret@127.0.0.1:3306/points")
broker = RocketMQ("127.0.0.1:9876")
producer = TransactionProducer(group="account-service", broker=broker, database=account, topics=["transfer"])
consumer = IdempotentConsumer(group="points-service", broker=broker, database=points)

app = Flask(__name__)
celery = Celery("service", broker="redis://127.0.0.1:6379/0")
celery.conf.worker_proc_alive_timeout = 60  # a broker that is slow at start is no reason to kill a process
celery.conf.task_acks_late = celery.conf.task_reject_on_worker_lost = True  # a killed task runs again


@worker_process_init.connect
def start_producer(**_: Any) -> None:
    """Start it in each process of the pool. Without one the process ends, and Celery makes another."""
    try:
        producer.start()
    except RmqTxnError as error:
        raise SystemExit(f"no producer in this process: {error}") from error


@worker_process_shutdown.connect
def close_producer(**_: Any) -> None:
    """Wait for what runs, and say good-bye to the brokers."""
    producer.close()


# All of these are safe to repeat: nothing was committed, or the row of the transfer tells that it was.
@celery.task(
    autoretry_for=(HalfMessageError, FencedError, DatabaseUnavailableError, InDoubtError), retry_backoff=True
)
def take(transfer_id: str, user_id: str, amount: int) -> str:
    """Take the money and tell, once for each id: Celery may run a task twice."""
    with producer.transaction() as txn:
        if not txn.insert_new("INSERT INTO payment VALUES (%s, %s, %s)", (transfer_id, user_id, amount)):
            return "done before"
        debit = "UPDATE account SET balance = balance - %s WHERE user_id = %s AND balance >= %s"
        if txn.execute(debit, (amount, user_id, amount)) != 1:
            raise ValueError("too little money")
        txn.publish(
            "transfer", {"transfer_id": transfer_id, "user_id": user_id, "amount": amount}, key=transfer_id
        )
    return "done"


@app.put("/transfers/<transfer_id>")
def transfer(transfer_id: str) -> tuple[dict[str, str], int]:
    """Hand it to a task; the answer says only that."""
    order = request.get_json()
    take.delay(transfer_id, str(order["user_id"]), int(order["amount"]))
    return {"transfer_id": transfer_id, "status": "accepted"}, 202


@consumer.handles("transfer")
def award(txn: Transaction, delivery: Delivery) -> None:
    """Give a point for each whole 100 of a transfer."""
    event = delivery.json()
    txn.execute(
        "INSERT INTO points VALUES (%(user)s, %(more)s) ON DUPLICATE KEY UPDATE points = points + %(more)s",
        {"user": event["user_id"], "more": event["amount"] // 100},
    )
