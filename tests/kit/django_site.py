"""A Django in the process of the tests: settings, models of the tables of tests, databases under aliases."""

# ruff: noqa: E402 - Django wants its settings before its models

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import django
import pymysql
from django.conf import settings

if not os.environ.get("DJANGO_ON_MYSQLCLIENT"):  # by hand, with mysqlclient installed
    pymysql.install_as_MySQLdb()
settings.configure(DATABASES={}, USE_TZ=True, SECRET_KEY="of a test", ALLOWED_HOSTS=["*"])
django.setup()

import django.db.backends.mysql.base
from django.db import connections, models

from rmq_txn.database.pool import parse_url

# Django's backend imports MySQLdb.err, another copy, and puts it in this place. Other tests of this process
# have theirs back; those of Django have what a service has (docs/hazards.md, H14).
errors_of_a_service, pymysql.err = pymysql.err, sys.modules["pymysql.err"]


class Effect(models.Model):
    n = models.AutoField(primary_key=True)
    id = models.CharField(max_length=64)
    note = models.CharField(max_length=64, null=True)

    class Meta:
        app_label = "tests"
        managed = False
        db_table = "effect"


class Kinds(models.Model):
    at = models.TimeField()
    moment = models.DateTimeField()
    day = models.DateField()
    amount = models.DecimalField(max_digits=10, decimal_places=2)
    span = models.DurationField()
    flag = models.BooleanField(null=True)
    body = models.BinaryField()
    document = models.JSONField()
    reference = models.UUIDField()
    share = models.FloatField()

    class Meta:
        app_label = "tests"
        managed = False


def database_settings(url: str, **others: Any) -> dict[str, Any]:
    """Return what DATABASES says of a database, complete."""
    parameters = parse_url(url)
    return {
        "ENGINE": "django.db.backends.mysql",
        "NAME": parameters["database"],
        "USER": parameters["user"],
        "PASSWORD": parameters["password"],
        "HOST": parameters["host"],
        "PORT": str(parameters["port"]),
        "OPTIONS": {},
        "ATOMIC_REQUESTS": False,
        "AUTOCOMMIT": True,
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": False,
        "TIME_ZONE": None,
        "TEST": {"CHARSET": None, "COLLATION": None, "MIGRATE": True, "MIRROR": None, "NAME": None},
    } | others


@contextmanager
def aliases() -> Iterator[Callable[..., Any]]:
    """Return a function that gives Django a database under an alias, for the block."""
    made: list[str] = []

    def give(name: str, url: str, **others: Any) -> Any:
        connections.settings[name] = database_settings(url, **others)
        with suppress(AttributeError):  # of settings before
            del connections[name]
        made.append(name)
        return connections[name]

    try:
        yield give
    finally:
        for name in made:
            connections[name].close()
            del connections[name]
            del connections.settings[name]
