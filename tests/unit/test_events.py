"""docs/events.md has each line that the package logs, with its level and its logger, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import rmq_txn
from tests.kit.documents import text_of

PACKAGE = Path(rmq_txn.__file__).parent
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
# Functions that hand their first argument on to the log, by the level at which they do.
HANDED_ON = {"_say": "error", "_log_failure": "warning"}
NOT_A_SERVICE = "testing"


def literals(node: ast.expr, function: ast.AST) -> set[str]:
    """Return the texts that an expression can be; a name is what its function assigns to it."""
    if isinstance(node, ast.Constant):
        return {str(node.value)}
    if isinstance(node, ast.IfExp):
        return literals(node.body, function) | literals(node.orelse, function)
    assert isinstance(node, ast.Name), ast.unparse(node)
    assigned = [
        one.value
        for one in ast.walk(function)
        if isinstance(one, ast.Assign) and [ast.unparse(target) for target in one.targets] == [node.id]
    ]
    return set().union(*(literals(value, function) for value in assigned))


def events_of(path: Path) -> Iterator[tuple[str, str, str]]:
    """Return level, logger and event of each line that a module logs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    made = re.search(r'^log = get_logger\("([a-z.]+)"\)', path.read_text(encoding="utf-8"), re.MULTILINE)
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) or function.name in HANDED_ON:
            continue
        for call in ast.walk(function):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args):
                continue
            called = call.func.attr
            if ast.unparse(call.func.value) == "log" and called in LEVELS:
                level = "error" if called == "exception" else called
            elif called in HANDED_ON:
                level = HANDED_ON[called]
            else:
                continue
            assert made is not None, path
            for event in literals(call.args[0], function):
                yield level, f"rmq_txn.{made[1]}", event


def logged() -> set[tuple[str, str, str]]:
    """Return what a service's processes can log."""
    paths = [path for path in PACKAGE.rglob("*.py") if NOT_A_SERVICE not in path.relative_to(PACKAGE).parts]
    return {event for path in paths for event in events_of(path)}


def listed() -> list[tuple[str, str, str]]:
    """Return the rows of the page; a logger is the title of its table."""
    found, logger = [], ""
    for line in text_of("docs/events.md").splitlines():
        if line.startswith("## `"):
            logger = line.split("`")[1]
        elif (row := re.fullmatch(r"\| (\w+) \| (.+?) \| (.+) \|", line)) and row[1] in LEVELS:
            assert row[3].strip("- "), line
            found.append((row[1], logger, row[2]))
    return found


def test_the_page_has_each_event_once_and_no_other() -> None:
    assert sorted(listed()) == sorted(logged())


def test_the_events_are_found_in_the_source() -> None:
    """Guard of the other test: a constant, one of two, one of a variable, one that is handed on."""
    assert {
        ("info", "rmq_txn.producer", "transaction committed"),
        ("info", "rmq_txn.relay", "no longer the relay"),
        ("info", "rmq_txn.consumer", "duplicate skipped"),
        ("error", "rmq_txn.checkback", "check-back for a message not sent by rmq_txn, answered unknown"),
    } <= logged()
