"""The SQL files: named, explained, parsed as written, and every statement in use."""

from __future__ import annotations

import ast
import re
from importlib import resources
from pathlib import Path

import pytest

import rmq_txn
from rmq_txn import schema
from rmq_txn.database import sql
from rmq_txn.database.sql import SCHEMA, STATEMENTS, without_comments

PACKAGE = Path(rmq_txn.__file__).parent
TABLES = {
    "rmq_txn_identity",
    "rmq_txn_log",
    "rmq_txn_outbox",
    "rmq_txn_producers",
    "rmq_txn_inbox",
    "rmq_txn_parked",
    "rmq_txn_audit",
}
RAW = resources.files(sql).joinpath("statements.sql").read_text(encoding="utf-8")


def names_used() -> dict[str, set[str]]:
    """Return which modules use `STATEMENTS["name"]`, read from their source."""
    used: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("STATEMENTS"):
                assert isinstance(node.slice, ast.Constant), f"{path.name} builds a statement's name"
                used.setdefault(str(node.slice.value), set()).add(path.name)
    return used


def schema_statements() -> list[str]:
    """Return the DDL as `schema.apply` splits it."""
    return list(filter(None, map(str.strip, without_comments(SCHEMA).split(";"))))


def test_every_statement_is_used_and_every_used_one_exists() -> None:
    """A statement nobody sends is not reviewed; a missing one fails at run time."""
    assert set(names_used()) == set(STATEMENTS)


def test_names_are_unique() -> None:
    """The later of two would silently win."""
    names = re.findall(r"^-- name: (.*)$", RAW, re.MULTILINE)
    assert sorted(names) == sorted(STATEMENTS)
    assert len(set(names)) == len(names) == RAW.count("-- name:") - 1  # one in the head, which explains it


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_a_statement_is_one_line_of_sql_and_nothing_else(name: str) -> None:
    """No comment left in it, nothing after a semicolon, no empty body."""
    statement = STATEMENTS[name]
    assert statement == " ".join(statement.split())
    verbs = (
        "SELECT|INSERT INTO|UPDATE|DELETE FROM|SET SESSION|SAVEPOINT|RELEASE SAVEPOINT|"
        "ROLLBACK TO SAVEPOINT|KILL CONNECTION|SHOW GLOBAL STATUS|SHOW GLOBAL VARIABLES"
    )
    assert re.match(rf"({verbs}) ", statement)
    for forbidden in ("--", ";", "IGNORE", "/*", "{", "ON DUPLICATE", "REPLACE"):
        assert forbidden not in statement
    assert set(re.findall(r"%.", statement)) <= {"%s"}
    assert set(re.findall(r"\brmq_txn_\w+", statement)) <= TABLES | {"rmq_txn_tripwire"}


def test_every_statement_that_can_fail_in_a_special_way_says_why_it_is_there() -> None:
    """All but the two trivial ones carry a reason."""
    blocks = re.split(r"^-- name: (\w+)$", RAW, flags=re.MULTILINE)
    explained = {
        name
        for name, body in zip(blocks[1::2], blocks[2::2], strict=True)
        if re.search(r"^-- \S", body, re.M)
    }
    assert set(STATEMENTS) - explained == {"insert_identity"}


def test_tripwire_statements_name_the_same_savepoint() -> None:
    """Release of another name would always fail, or never."""
    assert STATEMENTS["set_tripwire"] == "SAVEPOINT rmq_txn_tripwire"
    assert STATEMENTS["release_tripwire"] == "RELEASE SAVEPOINT rmq_txn_tripwire"


def test_the_row_of_a_fence_is_read_with_a_shared_lock() -> None:
    """A plain read on an old snapshot misses it; FOR UPDATE lets two checkers deadlock."""
    assert STATEMENTS["read_log_row"].endswith("LOCK IN SHARE MODE")
    assert "FOR UPDATE" not in RAW.replace("Not FOR UPDATE", "")


def test_the_schema_splits_into_one_statement_a_table() -> None:
    """A semicolon or an unclosed quote in a comment would tear one apart."""
    statements = schema_statements()
    assert len(statements) == len(TABLES)
    created = set()
    for statement in statements:
        match = re.fullmatch(
            r"CREATE TABLE IF NOT EXISTS (\w+) \(\n.*\n\) ENGINE = InnoDB", statement, re.DOTALL
        )
        assert match is not None, statement
        assert statement.count("(") == statement.count(")")
        created.add(match[1])
    assert created == TABLES


@pytest.mark.parametrize("text", [SCHEMA, RAW], ids=["schema", "statements"])
def test_no_comment_holds_a_semicolon(text: str) -> None:
    """Other tools split the printed schema without knowing comments."""
    comments = re.findall(r"--\s(.*)$", text, re.MULTILINE)
    assert comments
    assert [comment for comment in comments if ";" in comment] == []


def test_every_key_of_the_schema_is_binary() -> None:
    """Collations would equate Order-A with order-a, and k with `k `."""
    ddl = without_comments(SCHEMA)
    assert not re.search(r"\bVARCHAR|\bCHAR\(|\bTEXT|COLLATE", ddl)
    assert "AUTO_INCREMENT" not in ddl


def test_the_printed_schema_is_the_file() -> None:
    """`rmq-txn schema print` and `apply` can't differ."""
    assert schema.script() == (PACKAGE / "database" / "sql" / "schema.sql").read_text(encoding="utf-8")


def test_all_files_lie_in_the_package() -> None:
    """Read as package data, as an installed wheel has them."""
    found = {entry.name for entry in resources.files(sql).iterdir() if entry.name.endswith(".sql")}
    assert found == {"schema.sql", "statements.sql", "upgrades.sql"}


def test_comments_are_dropped_to_the_end_of_their_line_only() -> None:
    """Two dashes need a space behind them to be a comment."""
    assert without_comments("a -- b\nc--d\n-- e\nf") == "a \nc--d\n\nf"
