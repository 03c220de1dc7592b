"""
The layers of the package, checked by reading the source: each module imports only lower tiers.

A new module is added to `TIERS` by whoever writes it; that is where it is argued about.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rmq_txn"
DEMOS = ("demo_account_service", "demo_points_service", "demo_chassis")
LINE_LIMIT = 400

# The integer is its tier; decimals order the modules of one tier.
TIERS: dict[str, float] = {
    "rmq_txn.errors": 0,
    "rmq_txn.verdict": 0,
    "rmq_txn.identity": 1,
    "rmq_txn.logs": 1,
    "rmq_txn.clock": 1,
    "rmq_txn.lifecycle": 1,
    "rmq_txn.deferred": 1.1,  # describes errors as the log lines do
    "rmq_txn.message": 1.1,  # checks names against the properties of identity
    "rmq_txn.sql": 2,
    "rmq_txn.connection": 2,
    "rmq_txn.pool": 2.05,  # lends the connections
    "rmq_txn.session": 2.1,
    "rmq_txn.transaction": 2.2,
    "rmq_txn.database": 2.3,  # makes the transactions
    "rmq_txn.transport": 2,
    "rmq_txn.transport.wrapped": 2.1,
    "rmq_txn.transport.index_settings": 1,
    "rmq_txn.transport.archive": 1,
    "rmq_txn.transport.package_index": 1.1,
    "rmq_txn.transport.library": 2,
    "rmq_txn.transport.wire": 2.1,
    "rmq_txn.transport.answers": 2.15,
    "rmq_txn.transport.remoting": 2.2,
    "rmq_txn.transport.offsets": 2.45,
    "rmq_txn.transport.stored": 2.15,
    "rmq_txn.transport.standing": 2.45,
    "rmq_txn.transport.deadletters": 2.45,
    "rmq_txn.transport.inflight": 2,
    "rmq_txn.transport.settings": 2.4,
    "rmq_txn.transport.signals": 2,
    "rmq_txn.transport.native_log": 2,
    "rmq_txn.transport.binding": 2.1,
    "rmq_txn.transport.refusals": 2.42,
    "rmq_txn.transport.diagnosis": 2.46,  # stores as plain does
    "rmq_txn.transport.plain": 2.45,
    "rmq_txn.transport.client": 2.5,
    "rmq_txn.transport.clients": 2.6,
    "rmq_txn.undisturbed": 2,
    "rmq_txn.siblings": 2,
    "rmq_txn.schema": 3,
    "rmq_txn.txlog": 3,
    "rmq_txn.inbox": 3,
    "rmq_txn.parking": 3,
    "rmq_txn.outbox": 3,
    "rmq_txn.presence": 3.1,  # writes through the outbox's connection
    "rmq_txn.transport.native": 3,
    "rmq_txn.relay": 4,
    "rmq_txn.receipt": 4,
    "rmq_txn.checkback": 4,
    "rmq_txn.commitment": 4.1,  # asks the oracle of checkback after a lost COMMIT answer
    "rmq_txn.publisher": 4,
    "rmq_txn.routes": 3,
    "rmq_txn.aging": 3.1,
    "rmq_txn.consumer_health": 1,
    "rmq_txn.handling": 4.1,  # of a publisher it knows the seam
    "rmq_txn.upkeep": 4.1,
    "rmq_txn.producer": 5,
    "rmq_txn.consumer": 5,
    "rmq_txn.testing.broker": 3,
    "rmq_txn.testing.image": 3,
    "rmq_txn.testing.engine": 3,
    "rmq_txn.testing.container": 3.1,
    "rmq_txn.testing": 3.2,
    "rmq_txn.cli.exit_codes": 6,
    "rmq_txn.cli.output": 6,
    "rmq_txn.cli.native": 6.1,
    "rmq_txn.cli.arguments": 6.05,
    "rmq_txn.cli.schema": 6.1,
    "rmq_txn.supervisor": 5,
    "rmq_txn.cli.parked": 6.15,
    "rmq_txn.cli.dlq": 6.17,
    "rmq_txn.cli.target": 6.1,
    "rmq_txn.cli.offsets": 6.15,
    "rmq_txn.cli.worker": 6.15,
    "rmq_txn.cli.consume": 6.16,
    "rmq_txn.cli.outbox": 6.1,
    "rmq_txn.cli": 6.2,
    "rmq_txn.__main__": 6.3,
    "rmq_txn": 6,
}

# Third-party packages that are wrapped, and the modules that wrap them.
WRAPPED = {
    "rocketmq": {"rmq_txn.transport.binding"},
    "dbutils": {"rmq_txn.pool"},
    # An extra, so imported only where it is used; elsewhere for its types alone.
    "testcontainers": {"rmq_txn.testing.engine", "rmq_txn.testing.container"},
    "docker": {"rmq_txn.testing.engine"},
    # These talk through the driver; the tables may name its errors, see `DRIVER_ERRORS_ONLY`.
    "pymysql": {
        "rmq_txn.connection",
        "rmq_txn.pool",
        "rmq_txn.session",
        "rmq_txn.database",
        "rmq_txn.transaction",
    },
}
DRIVER_ERRORS_ONLY = {
    "rmq_txn.schema",
    "rmq_txn.txlog",
    "rmq_txn.inbox",
    "rmq_txn.parking",
    "rmq_txn.outbox",
    "rmq_txn.checkback",
}
DATABASE_SIDE = {
    "rmq_txn.sql",
    "rmq_txn.connection",
    "rmq_txn.pool",
    "rmq_txn.session",
    "rmq_txn.database",
    "rmq_txn.transaction",
    "rmq_txn.schema",
    "rmq_txn.txlog",
    "rmq_txn.inbox",
    "rmq_txn.parking",
    "rmq_txn.outbox",
    "rmq_txn.checkback",
}


def module_name(path: Path) -> str:
    """Return the dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(folder: Path) -> dict[str, str]:
    """Return the source of every module below `folder`, by its dotted name."""
    return {module_name(p): p.read_text(encoding="utf-8") for p in sorted(folder.rglob("*.py"))}


def imported_names(module: str, source: str, *, is_package: bool = False) -> set[str]:
    """
    Return the dotted name of everything a module imports, anywhere in it.

    `from a import b` counts as `a.b`; relative imports and `import_module("a.b")` are resolved.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            target = node.args[0]
            if called in {"import_module", "__import__"} and isinstance(target, ast.Constant):
                names.add(str(target.value))
    return names


def imported_modules(names: set[str]) -> set[str]:
    """Return the modules of this package among imported names: the longest known prefix of each."""
    found: set[str] = set()
    for name in names:
        if name.split(".")[0] != "rmq_txn":
            continue
        parts = name.split(".")
        known = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        found.add(next(candidate for candidate in known if candidate in TIERS))
    return found


def used_of_driver(source: str) -> set[str]:
    """Return what is taken from `pymysql`: `err` for `pymysql.err.IntegrityError`."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pymysql"
    }


def faults(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Return what is wrong with one module, as sentences."""
    found: list[str] = []
    if module not in TIERS:
        return [f"{module} is not in TIERS: add it, with its tier"]
    names = imported_names(module, source, is_package=is_package)
    modules = imported_modules(names)
    for other in sorted(modules):
        if TIERS[other] >= TIERS[module]:
            found.append(
                f"{module} (tier {TIERS[module]}) imports {other} (tier {TIERS[other]}), which is not lower"
            )
        if module.startswith("rmq_txn.transport") and other in DATABASE_SIDE:
            found.append(f"{module} imports {other}: a transport knows no database")
    for name in sorted(names):
        package = name.split(".")[0]
        if package == "pymysql" and module in DRIVER_ERRORS_ONLY:
            taken = used_of_driver(source) if name == "pymysql" else {name.split(".")[1]}
            if taken - {"err"}:
                found.append(f"{module} uses {sorted(taken)} of pymysql, only err is allowed here")
        elif package in WRAPPED and module not in WRAPPED[package]:
            found.append(f"{module} imports {name}: only {sorted(WRAPPED[package])} may")
    lines = source.count("\n")
    if lines > LINE_LIMIT:
        found.append(f"{module} has {lines} lines, the limit is {LINE_LIMIT}: split it")
    return found


def public_names() -> set[str]:
    """Return `rmq_txn.__all__` as written in the source."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return set(names)
    raise AssertionError("rmq_txn has no __all__")


# Beside the names of the root: errors nobody needs often, our tables, a processor for log lines.
PUBLIC_MODULES = ("rmq_txn.errors", "rmq_txn.schema", "rmq_txn.logs")
# The demos watch, and break, a transport that they wrap: one module of their chassis sees the seam.
SEAM = ("rmq_txn.transport", "rmq_txn.transport.wrapped", "rmq_txn.verdict", "rmq_txn.message")


def demo_faults(module: str, source: str, public: set[str]) -> list[str]:
    """Return what a demo service imports from this package that is not public."""
    modules = (*PUBLIC_MODULES, *SEAM) if module == "demo_chassis.watching" else PUBLIC_MODULES
    return [
        f"{module} imports {name}, which is not public"
        for name in sorted(imported_names(module, source))
        if name.split(".")[0] == "rmq_txn"
        and name not in ("rmq_txn", *modules)
        and name.rpartition(".")[0] not in modules
        and name.removeprefix("rmq_txn.") not in public
    ]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_a_module_imports_only_what_is_below_it(path: Path) -> None:
    """Tier, wrapped packages, length, and that the module is known at all."""
    source = path.read_text(encoding="utf-8")
    assert faults(module_name(path), source, is_package=path.name == "__init__.py") == []


def test_the_package_is_found() -> None:
    """An empty folder must not pass."""
    assert {"rmq_txn", "rmq_txn.errors", "rmq_txn.cli"} <= set(sources(PACKAGE))


def test_producer_and_consumer_do_not_know_each_other() -> None:
    """They share a tier; a service may have only one of them."""
    assert TIERS["rmq_txn.producer"] == TIERS["rmq_txn.consumer"]
    assert faults("rmq_txn.producer", "from rmq_txn import consumer")
    assert faults("rmq_txn.consumer", "from rmq_txn.producer import TransactionProducer")


@pytest.mark.parametrize("demo", DEMOS)
def test_a_demo_uses_public_names_only(demo: str) -> None:
    """The demos prove that the public names suffice."""
    found = [
        fault
        for module, source in sources(ROOT / demo).items()
        for fault in demo_faults(module, source, public_names())
    ]
    assert found == []


def test_at_most_16_names_are_public() -> None:
    """The whole interface fits on one screen."""
    assert len(public_names()) <= 16


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("rmq_txn.errors", "import rmq_txn.message", "which is not lower"),
        ("rmq_txn.errors", "def f():\n    from rmq_txn import message", "which is not lower"),
        ("rmq_txn.verdict", "from .errors import RmqTxnError", "which is not lower"),
        ("rmq_txn.message", "from rmq_txn import Database", "imports rmq_txn (tier 6)"),
        ("rmq_txn.txlog", "import importlib\nimportlib.import_module('rmq_txn.producer')", "tier 5"),
        ("rmq_txn.cli.native", "from ..producer import x\nfrom . import schema", "cli.schema"),
        ("rmq_txn.transport.native", "from rmq_txn import sql", "a transport knows no database"),
        ("rmq_txn.transport.native", "import pymysql", "only ["),
        ("rmq_txn.transport.library", "import rocketmq.ffi", "only ["),
        ("rmq_txn.database", "from dbutils.pooled_db import PooledDB", "only ["),
        ("rmq_txn.producer", "import pymysql", "only ["),
        ("rmq_txn.inbox", "import pymysql\npymysql.connect()", "only err is allowed here"),
        ("rmq_txn.inbox", "from pymysql import connect", "only err is allowed here"),
        ("rmq_txn.utils", "", "is not in TIERS"),
        ("rmq_txn.errors", "\n" * 401, "has 401 lines"),
    ],
)
def test_the_checker_finds_a_fault(module: str, source: str, expected: str) -> None:
    """Each rule can fail: fabricated sources that break it."""
    assert expected in " ".join(faults(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rmq_txn.message", "from rmq_txn.errors import RmqTxnError\nimport json"),
        ("rmq_txn.transport.binding", "from rocketmq import ffi"),
        ("rmq_txn.inbox", "import pymysql\npymysql.err.IntegrityError"),
        ("rmq_txn.errors", "\n" * 400),
    ],
)
def test_the_checker_accepts_what_is_allowed(module: str, source: str) -> None:
    """The rules are no wider than meant."""
    assert faults(module, source) == []


def test_relative_imports_in_a_package_are_resolved() -> None:
    """`from . import x` means another package in `__init__.py` than in a module beside it."""
    assert imported_names("rmq_txn.cli", "from . import native", is_package=True) == {"rmq_txn.cli.native"}
    assert imported_names("rmq_txn.cli.native", "from ..errors import E") == {"rmq_txn.errors.E"}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("from rmq_txn import Message\nfrom rmq_txn.errors import SchemaError\nimport rmq_txn", 0),
        ("from rmq_txn.database import Database", 1),
        ("from rmq_txn import sql, Message", 1),
        ("import rmq_txn.pool", 1),
    ],
)
def test_the_demo_checker_finds_a_private_import(source: str, count: int) -> None:
    """Fabricated demos, good and bad."""
    assert len(demo_faults("demo", source, {"Message", "Database"})) == count
