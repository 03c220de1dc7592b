"""
Money for points on the event loop: `uvicorn service:app`, then `PUT /transfers/t-1`.

Endpoint and handler are async functions. What blocks, the driver and the broker's client, runs on threads
of producer and consumer; no driver for asyncio is needed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from rmq_txn import Database, Delivery, IdempotentConsumer, RocketMQ, TransactionProducer
from rmq_txn.aio import AsyncTransaction

account = Database.mysql("mysql://account:secret@127.0.0.1:3306/account")
points = Database.mysql("mysql://points:secret@127.0.0.1:3306/points")
broker = RocketMQ("127.0.0.1:9876")
producer = TransactionProducer(group="account-service", broker=broker, database=account, topics=["transfer"])
consumer = IdempotentConsumer(group="points-service", broker=broker, database=points)


@consumer.handles("transfer")
async def award(txn: AsyncTransaction, delivery: Delivery) -> None:
    """Give a point for each whole 100 of a transfer; here one could await an HTTP client as well."""
    event = delivery.json()
    await txn.execute(
        "INSERT INTO points VALUES (%(user)s, %(more)s) ON DUPLICATE KEY UPDATE points = points + %(more)s",
        {"user": event["user_id"], "more": event["amount"] // 100},
    )


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Start both helpers in each worker, after the fork."""
    async with producer, consumer:
        yield


app = FastAPI(lifespan=lifespan)


class Order(BaseModel):
    user_id: str
    amount: int = Field(gt=0)


@app.put("/transfers/{transfer_id}")
async def transfer(transfer_id: str, order: Order) -> dict[str, str]:
    """Take the money and tell, once for each id: a client may repeat what it got no answer to."""
    row = (transfer_id, order.user_id, order.amount)
    async with producer.atransaction() as txn:
        if not await txn.insert_new("INSERT INTO payment VALUES (%s, %s, %s)", row):
            return {"transfer_id": transfer_id, "status": "done before"}
        debit = "UPDATE account SET balance = balance - %s WHERE user_id = %s AND balance >= %s"
        if await txn.execute(debit, (order.amount, order.user_id, order.amount)) != 1:
            raise HTTPException(409, "too little money")
        txn.publish(
            "transfer",
            {"transfer_id": transfer_id, "user_id": order.user_id, "amount": order.amount},
            key=transfer_id,
        )
    return {"transfer_id": transfer_id, "status": "done"}
