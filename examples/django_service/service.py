"""
Money for points with Django under gunicorn: `PUT /transfers/t-1`, and a consumer of its own.

    gunicorn service:application
    rmq-txn consume service:consumer

What the view's ORM writes, its message and the log row are one COMMIT; so are the handler's writes and the
row that makes a second delivery harmless. In one file here; in a project each part has its usual place.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import pymysql
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import models
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.http import require_http_methods

from rmq_txn import Database, Delivery, IdempotentConsumer, RocketMQ, Transaction, TransactionProducer
from rmq_txn.join.django import joined, joins

ACCOUNT_URL = "mysql://account:secret@127.0.0.1:3306/account"
POINTS_URL = "mysql://points:secret@127.0.0.1:3306/points"


def django_database(url: str) -> dict[str, Any]:
    """Return what DATABASES wants to know."""
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.mysql",
        "HOST": parts.hostname,
        "PORT": parts.port,
        "USER": parts.username,
        "PASSWORD": parts.password,
        "NAME": parts.path[1:],
    }


pymysql.install_as_MySQLdb()  # not with mysqlclient
settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={"default": django_database(ACCOUNT_URL), "points": django_database(POINTS_URL)},
)
application = get_wsgi_application()


class Account(models.Model):
    user_id = models.CharField(max_length=64, primary_key=True)
    balance = models.BigIntegerField()

    class Meta:
        app_label = "service"
        db_table = "account"


class Payment(models.Model):
    transfer_id = models.CharField(max_length=64, primary_key=True)
    user_id = models.CharField(max_length=64)
    amount = models.BigIntegerField()

    class Meta:
        app_label = "service"
        db_table = "payment"


class Points(models.Model):
    user_id = models.CharField(max_length=64, primary_key=True)
    points = models.BigIntegerField()

    class Meta:
        app_label = "service"
        db_table = "points"


broker = RocketMQ("127.0.0.1:9876")
# Django's own isolation level: with another one a join is refused.
producer = TransactionProducer(
    group="account-service",
    broker=broker,
    database=Database.mysql(ACCOUNT_URL, isolation_level="read committed"),
    topics=["transfer"],
)
consumer = IdempotentConsumer(
    group="points-service",
    broker=broker,
    database=Database.mysql(POINTS_URL, isolation_level="read committed"),
    join=joins(using="points"),
)


@require_http_methods(["PUT"])
def transfer(request: HttpRequest, transfer_id: str) -> JsonResponse:
    """Take the money and tell, once for each id: a client may repeat what it got no answer to."""
    order = json.loads(request.body)
    user_id, amount = str(order["user_id"]), int(order["amount"])
    if amount <= 0:
        return JsonResponse({"detail": "the amount must be greater than 0"}, status=422)
    with producer.transaction(join=joined()) as txn:
        account = Account.objects.select_for_update().filter(user_id=user_id).first()  # one at a time each
        if Payment.objects.filter(transfer_id=transfer_id).exists():
            return JsonResponse({"transfer_id": transfer_id, "status": "done before"})
        if account is None or account.balance < amount:
            return JsonResponse({"detail": "too little money"}, status=409)
        account.balance -= amount
        account.save()
        Payment.objects.create(transfer_id=transfer_id, user_id=user_id, amount=amount)
        txn.publish(
            "transfer", {"transfer_id": transfer_id, "user_id": user_id, "amount": amount}, key=transfer_id
        )
    return JsonResponse({"transfer_id": transfer_id, "status": "done"})


urlpatterns = [path("transfers/<transfer_id>", transfer)]


@consumer.handles("transfer")
def award(_: Transaction, delivery: Delivery) -> None:
    """Give a point for each whole 100 of a transfer."""
    event = delivery.json()
    rows = Points.objects.using("points").select_for_update()
    row, _made = rows.get_or_create(user_id=event["user_id"], defaults={"points": 0})
    row.points += event["amount"] // 100
    row.save()
