"""
Money for points with FastAPI and SQLAlchemy: `uvicorn service:app`, then `PUT /transfers/t-1`.

The endpoint's session, its message and the log row are one COMMIT; so are the handler's session and the
row that makes a second delivery harmless.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from rmq_txn import Database, Delivery, IdempotentConsumer, RocketMQ, Transaction, TransactionProducer
from rmq_txn.join.sqlalchemy import joined, joins

ACCOUNT_URL = "mysql://account:secret@127.0.0.1:3306/account"
POINTS_URL = "mysql://points:secret@127.0.0.1:3306/points"


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    user_id: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int]


class Payment(Base):
    __tablename__ = "payment"
    transfer_id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    amount: Mapped[int]


class Points(Base):
    __tablename__ = "points"
    user_id: Mapped[str] = mapped_column(primary_key=True)
    points: Mapped[int]


AccountSession = sessionmaker(create_engine(ACCOUNT_URL.replace("mysql:", "mysql+pymysql:")))
PointsSession = sessionmaker(create_engine(POINTS_URL.replace("mysql:", "mysql+pymysql:")))

broker = RocketMQ("127.0.0.1:9876")
producer = TransactionProducer(
    group="account-service", broker=broker, database=Database.mysql(ACCOUNT_URL), topics=["transfer"]
)
consumer = IdempotentConsumer(
    group="points-service", broker=broker, database=Database.mysql(POINTS_URL), join=joins(PointsSession)
)


@consumer.handles("transfer")
def award(txn: Transaction, delivery: Delivery) -> None:
    """Give a point for each whole 100 of a transfer."""
    event = delivery.json()
    session: Session = txn.session
    points = session.get(Points, event["user_id"], with_for_update=True)
    if points is None:
        points = Points(user_id=event["user_id"], points=0)
        session.add(points)
    points.points += event["amount"] // 100


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
def transfer(transfer_id: str, order: Order) -> dict[str, str]:
    """Take the money and tell, once for each id: a client may repeat what it got no answer to."""
    with AccountSession() as session, producer.transaction(join=joined(session)) as txn:
        account = session.get(Account, order.user_id, with_for_update=True)  # one at a time for each user
        if session.get(Payment, transfer_id) is not None:
            return {"transfer_id": transfer_id, "status": "done before"}
        if account is None or account.balance < order.amount:
            raise HTTPException(409, "too little money")
        account.balance -= order.amount
        session.add(Payment(transfer_id=transfer_id, user_id=order.user_id, amount=order.amount))
        txn.publish(
            "transfer",
            {"transfer_id": transfer_id, "user_id": order.user_id, "amount": order.amount},
            key=transfer_id,
        )
    return {"transfer_id": transfer_id, "status": "done"}
