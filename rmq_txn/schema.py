"""Our tables in a user's database: print them, apply them, check them."""

from __future__ import annotations

import re
import secrets
import uuid
from dataclasses import dataclass, field

import pymysql

from rmq_txn.database import Database
from rmq_txn.database.pool import error_code
from rmq_txn.database.sql import SCHEMA, STATEMENTS, UPGRADES, without_comments
from rmq_txn.errors import SchemaError
from rmq_txn.logs import get_logger
from rmq_txn.message import MAX_BODY_BYTES

log = get_logger("schema")

VERSION = 4
COMPATIBLE_FROM = 4
"""
The oldest version whose packages can go on with tables of this one: raised by a change that does more than
add. So a process of before can be started again, and a deployment rolled back, after `schema apply`.
"""
# The largest message, sent as hex digits, with its properties.
PACKET_BYTES = 2 * MAX_BODY_BYTES + 1024 * 1024
_NO_SUCH_TABLE = 1146
_EXISTS_ALREADY = frozenset({1060, 1061})
"""A column, an index."""
_SECRET_BYTES = 32
_APPLY = "run: rmq-txn schema apply"
_NEWER_PACKAGE = "install a newer rmq_txn"


@dataclass(frozen=True, slots=True)
class Identity:
    """
    Which database this is.

    Attributes:
        database_id: a UUID, part of the owner stamp of our half messages.
        secret: only who can read this database knows it; what is signed with it came from here.
        upgraded_at: Unix seconds by the database's clock when version 3 replaced an older one; None
            if the tables were made new. Rows and half messages of the older version may be about
            for a while after it.
        version: of the tables; newer than `VERSION` if a newer package says that this one may use them.
    """

    database_id: str
    secret: bytes = field(repr=False)
    upgraded_at: float | None
    version: int = VERSION


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

    Also the upgrade of an older version, which the version in the database decides; it is never
    lowered. DDL commits by itself, so this is never part of a transaction; several runs at once are
    safe. A column that is changed rewrites its table: give `Database.mysql` a
    `statement_timeout_seconds` for which that is short enough.

    Raises:
        SchemaError: the server refused a statement, for want of a privilege for instance; or the
            tables are too new for this package.
        DatabaseUnavailableError: the database can't be asked.
    """
    run_script(database, SCHEMA)
    _upgrade(database)
    created = _insert_identity(database)
    # In a transaction of its own: the refused INSERT holds a lock on the row, and two processes
    # that both hold it and then update would deadlock.
    upgraded = not created and _raise_version(database)
    identity = check(database)
    return AppliedSchema(identity.version, identity.database_id, created, upgraded)


def _upgrade(database: Database) -> None:
    """Change the tables that an older version made; those that were missing are as they should be."""
    try:
        found, _ = _read_version(database)
    except SchemaError:
        return  # no identity yet, so all tables were made just now
    for version, script in UPGRADES.items():
        if found < version:
            run_script(database, script)


def _insert_identity(database: Database) -> bool:
    with database.check_session("schema") as session:
        row = (VERSION, str(uuid.uuid4()), _new_secret(), COMPATIBLE_FROM)
        created = session.insert_new(STATEMENTS["insert_identity"], row)
        if created:
            session.commit()
    return created


def _raise_version(database: Database) -> bool:
    with database.check_session("schema") as session:
        row = (_new_secret(), VERSION, COMPATIBLE_FROM, VERSION)
        raised = session.execute(STATEMENTS["raise_schema_version"], row) == 1
        session.commit()
    return raised


def _new_secret() -> bytes:
    return secrets.token_bytes(_SECRET_BYTES)


def run_script(database: Database, script: str) -> None:
    """
    Run DDL, a service's own for instance: statements separated by `;`, comments by `-- `.

    No statement may contain either in quotes. Outside of any transaction: DDL commits by itself,
    which `Database.transaction` refuses.

    Raises:
        SchemaError: the server refused a statement; those before it are done.
        DatabaseUnavailableError: the database can't be asked.
    """
    # Not of the check-backs' pool: its answers must come within 3 s, and a table may be rewritten.
    session = database.begin("schema")
    try:
        for statement in filter(None, map(str.strip, without_comments(script).split(";"))):
            try:
                session.execute(statement)
            except pymysql.OperationalError as error:
                if error_code(error) not in _EXISTS_ALREADY:
                    raise
                # Another process, or a run that was interrupted, added it before.
    except pymysql.MySQLError as error:
        raise SchemaError(f"the tables could not be made: {error.args[-1]}") from error
    finally:
        session.rollback()


def check(database: Database) -> Identity:
    """
    Return the identity of the database; log what in it will be no good.

    Raises:
        SchemaError: the tables are missing, older, or so new that this package can't use them.
        DatabaseUnavailableError: the database can't be asked.
    """
    version, database_id = _read_version(database)
    if not _is_usable(database, version):
        raise SchemaError(
            f"the tables of rmq_txn in this database have version {version}, "
            f"this package needs version {VERSION}; {_APPLY if version < VERSION else _NEWER_PACKAGE}"
        )
    with database.check_session("schema") as session:
        session.execute(STATEMENTS["read_identity"])
        ((secret, upgraded_at),) = session.cursor.fetchall()
        session.execute(STATEMENTS["list_tables_without_transactions"])
        if names := [f"{name} ({engine})" for name, engine in session.cursor.fetchall()]:
            log.warning(
                "these tables know no transactions: what is written there stays when the rest is rolled "
                "back; ALTER TABLE ... ENGINE = InnoDB",
                tables=", ".join(names),
            )
        packet_bytes = session.connection.packet_bytes
        if packet_bytes < PACKET_BYTES:
            log.warning(
                "max_allowed_packet of the server is small: a message with a body of more than about half of "
                "it will be refused; set it to 16 MiB",
                max_allowed_packet=packet_bytes,
            )
    return Identity(database_id, secret, None if upgraded_at is None else float(upgraded_at), version)


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """
    How the tables of a database are.

    Attributes:
        version: of the tables; None if there are none.
        usable: this package can work with that version.
        missing: columns and indexes that are not there, see `missing`; empty if there are no tables.
    """

    version: int | None
    usable: bool
    missing: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """What is to be done; empty if they are as needed."""
        if self.version is None or self.version < VERSION:
            return _APPLY
        if self.missing:
            return f"they lack {', '.join(self.missing)}: compare with `rmq-txn schema print`"
        return "" if self.usable else _NEWER_PACKAGE


def status(database: Database) -> SchemaStatus:
    """
    Say how the tables are; that they are missing is an answer, not an error.

    Raises:
        DatabaseUnavailableError: the database can't be asked.
    """
    try:
        version, _ = _read_version(database)
    except SchemaError:
        return SchemaStatus(None, usable=False)
    return SchemaStatus(version, _is_usable(database, version), tuple(missing(database)))


def missing(database: Database) -> list[str]:
    """
    Return the columns and indexes of our tables that are not there, as `table.name`; none is right.

    `check` looks at the version alone: who makes the tables with a tool of his own may have left
    something out, and an index that is missing makes things slow, not wrong. Types are not compared.

    Raises:
        DatabaseUnavailableError: the database can't be asked.
    """
    wanted = _columns_and_indexes(SCHEMA)
    tables = sorted({table for table, _ in wanted})
    with database.check_session("schema") as session:
        session.execute(STATEMENTS["list_columns_and_indexes"], (tables, tables))
        found = {(_text(table), _text(name)) for table, name in session.cursor.fetchall()}
    return [f"{table}.{name}" for table, name in wanted if (table, name) not in found]


def _columns_and_indexes(script: str) -> list[tuple[str, str]]:
    """Read the names of columns and indexes out of our DDL, where each has a line of its own."""
    found = []
    for table, body in re.findall(
        r"CREATE TABLE IF NOT EXISTS (\w+) \((.*?)\n\) ENGINE", without_comments(script), re.DOTALL
    ):
        for line in filter(None, map(str.strip, body.split("\n"))):
            first, second, *_ = line.replace("`", "").split()
            found.append((table, {"PRIMARY": "PRIMARY", "KEY": second}.get(first, first)))
    return found


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _is_usable(database: Database, version: int) -> bool:
    if version <= VERSION:
        return version == VERSION
    with database.check_session("schema") as session:
        session.execute(STATEMENTS["read_compatible_from"])
        ((oldest,),) = session.cursor.fetchall()
    return oldest is not None and int(oldest) <= VERSION


def _read_version(database: Database) -> tuple[int, str]:
    with database.check_session("schema") as session:
        try:
            found = session.execute(STATEMENTS["read_schema_version"])
            row = session.cursor.fetchone() if found else None
        except pymysql.ProgrammingError as error:
            if error_code(error) != _NO_SUCH_TABLE:
                raise
            row = None
    if row is None:
        raise SchemaError(f"the tables of rmq_txn are missing from this database; {_APPLY}")
    return int(row[0]), row[1].decode("ascii")
