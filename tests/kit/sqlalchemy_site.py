"""What a service on SQLAlchemy has: a model of the table of tests, and sessions of an engine of its own."""

from __future__ import annotations

import importlib
import os

import sqlalchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rmq_txn.database.pool import parse_url

# The driver of the service's own engine: mysqlclient by hand, where it is installed.
DRIVER = importlib.import_module("MySQLdb" if os.environ.get("SQLALCHEMY_ON_MYSQLCLIENT") else "pymysql")


class Base(DeclarativeBase):
    pass


class Effect(Base):
    __tablename__ = "effect"
    n: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str]
    note: Mapped[str | None]


def engine_for(url: str) -> sqlalchemy.Engine:
    """Return an engine that keeps no connection, so that none is left open."""
    parameters = parse_url(url)
    return sqlalchemy.create_engine(
        f"mysql+{DRIVER.__name__.lower()}://",
        creator=lambda: DRIVER.connect(**parameters),
        poolclass=sqlalchemy.NullPool,
    )
