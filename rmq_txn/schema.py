"""Our tables in a user's database: print them, apply them, check them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import pymysql

from rmq_txn.database import Database
from rmq_txn.errors import SchemaError
from rmq_txn.pool import DUPLICATE_KEY, error_code
from rmq_txn.session import Session
from rmq_txn.sql import SCHEMA, STATEMENTS, without_comments

VERSION = 2
_NO_SUCH_TABLE = 1146


@dataclass(frozen=True, slots=True)
class AppliedSchema:
    """What a database holds after `apply`."""

    version: int
    database_id: str
    created: bool
    """False: a database with our tables, perhaps of an older version."""
    upgraded: bool = False
    """True: it had an older version."""


def script() -> str:
    """Return the DDL as text, for people whose migrations are made by another tool."""
    return SCHEMA


def apply(database: Database) -> AppliedSchema:
    """
    Create the tables that are missing, give the database its identity, raise its version. Safe to repeat.

    An older version lacks only tables, so this is the upgrade, too. The version is never lowered.
    DDL commits by itself, so this is never part of a transaction; two runs at once are safe.

    Raises:
        SchemaError: the server refused a statement, for want of a privilege for instance; or the
            tables are of a newer version than this package.
        DatabaseUnavailableError: the database can't be asked.
    """
    run_script(database, SCHEMA)
    created = _insert_identity(database)
    # In a transaction of its own: the refused INSERT holds a lock on the row, and two processes
    # that both hold it and then update would deadlock.
    upgraded = not created and _raise_version(database)
    return AppliedSchema(VERSION, check(database), created, upgraded)


def _insert_identity(database: Database) -> bool:
    session = database.begin_check("schema")
    try:
        session.execute(STATEMENTS["insert_identity"], (VERSION, str(uuid.uuid4())))
        session.commit()
    except pymysql.err.IntegrityError as error:
        if error_code(error) != DUPLICATE_KEY:
            raise
        return False
    finally:
        session.rollback()
    return True


def _raise_version(database: Database) -> bool:
    session = database.begin_check("schema")
    try:
        raised = session.execute(STATEMENTS["raise_schema_version"], (VERSION, VERSION)) == 1
        session.commit()
    finally:
        session.rollback()
    return raised


def run_script(database: Database, script: str) -> None:
    """
    Run DDL, a service's own for instance: statements separated by `;`, comments by `-- `.

    No statement may contain either in quotes. Outside of any transaction: DDL commits by itself,
    which `Database.transaction` refuses.

    Raises:
        SchemaError: the server refused a statement; those before it are done.
        DatabaseUnavailableError: the database can't be asked.
    """
    session = database.begin_check("schema")
    try:
        for statement in filter(None, map(str.strip, without_comments(script).split(";"))):
            session.execute(statement)
    except pymysql.err.MySQLError as error:
        raise SchemaError(f"the tables could not be made: {error.args[-1]}") from error
    finally:
        session.rollback()


def check(database: Database) -> str:
    """
    Return the identity of the database.

    Raises:
        SchemaError: the tables are missing, or of another version.
        DatabaseUnavailableError: the database can't be asked.
    """
    session = database.begin_check("schema")
    try:
        version, database_id = _read_identity(session)
    finally:
        session.rollback()
    if version != VERSION:
        older = version < VERSION
        advice = "run: rmq-txn schema apply" if older else "install a newer rmq_txn"
        raise SchemaError(
            f"the tables of rmq_txn in this database have version {version}, "
            f"this package needs version {VERSION}; {advice}"
        )
    return database_id


def _read_identity(session: Session) -> tuple[int, str]:
    try:
        found = session.execute(STATEMENTS["read_identity"])
    except pymysql.err.ProgrammingError as error:
        if error_code(error) != _NO_SUCH_TABLE:
            raise
        found = 0
    row = session.cursor.fetchone() if found else None
    if row is None:
        raise SchemaError("the tables of rmq_txn are missing from this database; run: rmq-txn schema apply")
    return int(row[0]), row[1].decode("ascii")
