"""
The layers of the package, checked by reading the source: each package imports only lower tiers.
"""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rmq_txn"
DEMOS = ("demo_account_service", "demo_points_service", "demo_chassis")
LINE_LIMIT = 400

# The packages, and the modules of the root that stand above some of them: each imports lower tiers only.
TIERS: dict[str, int] = {
    "base": 0,  # the other modules of the root
    "rmq_txn.library": 1,
    "rmq_txn.remoting": 1,
    "rmq_txn.transport": 2,
    "rmq_txn.database": 2,  # a transport knows no database
    "rmq_txn.schema": 3,
    "rmq_txn.aio": 3,
    "rmq_txn.audit": 3,
    "rmq_txn.pruning": 3,
    "rmq_txn.producer": 4,
    "rmq_txn.consumer": 4,  # a service may have only one of them
    "rmq_txn.join": 5,
    "rmq_txn.operating": 5,
    "rmq_txn.upkeep": 5,
    "rmq_txn.telemetry": 5,
    "rmq_txn.testing": 5,
    "rmq_txn": 6,
    "rmq_txn.cli": 7,
    "rmq_txn.__main__": 8,
}

# Third-party packages that are wrapped, and the modules that wrap them.
WRAPPED = {
    "rocketmq": {"rmq_txn.transport.binding"},
    "dbutils": {"rmq_txn.database.pool"},
    # An extra, so imported only where it is used; elsewhere for its types alone.
    "testcontainers": {"rmq_txn.testing.engine", "rmq_txn.testing.container"},
    "docker": {"rmq_txn.testing.engine"},
    "pytest": {
        "rmq_txn.testing.contract",
        "rmq_txn.testing.contract.deliveries",
        "rmq_txn.testing.contract.life",
        "rmq_txn.testing.contract.messages",
        "rmq_txn.testing.contract.verdicts",
    },
    "sqlalchemy": {"rmq_txn.join.sqlalchemy"},
    "django": {"rmq_txn.join.django"},
    "opentelemetry": {"rmq_txn.telemetry", "rmq_txn.telemetry.gauges", "rmq_txn.telemetry.hooks"},
    # These talk through the driver; the tables may name its errors, see `DRIVER_ERRORS_ONLY`.
    "pymysql": {
        "rmq_txn.database.beginning",
        "rmq_txn.database.connection",
        "rmq_txn.database.matched_rows",
        "rmq_txn.database.pool",
        "rmq_txn.database.session",
        "rmq_txn.database.sideline",
        "rmq_txn.database.database",
        "rmq_txn.database.transaction",
        "rmq_txn.join.django",  # in the place of Django's driver
    },
}
DRIVER_ERRORS_ONLY = {
    "rmq_txn.schema",
    "rmq_txn.operating.database_checks",
    "rmq_txn.operating.resolution",
    "rmq_txn.producer.checkback",
}


def module_name(path: Path) -> str:
    """Return the dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(folder: Path) -> dict[str, str]:
    """Return the source of every module below `folder`, by its dotted name."""
    return {module_name(p): p.read_text(encoding="utf-8") for p in sorted(folder.rglob("*.py"))}


KNOWN = frozenset(sources(PACKAGE))


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
        prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        found.add(next(prefix for prefix in prefixes if prefix in KNOWN))
    return found


def room_of(module: str) -> str:
    """Return the row of `TIERS` that a module belongs to."""
    parts = module.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 1, -1))
    return next((prefix for prefix in prefixes if prefix in TIERS), module if module in TIERS else "base")


def used_of_driver(source: str) -> set[str]:
    """Return what is taken from `pymysql`: `cursors` for `pymysql.cursors.Cursor`."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pymysql"
    }


def faults(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Return what is wrong with one module, as sentences."""
    found: list[str] = []
    names = imported_names(module, source, is_package=is_package)
    room = room_of(module)
    for other in sorted(imported_modules(names)):
        there = room_of(other)
        if there != room and TIERS[there] >= TIERS[room]:
            found.append(
                f"{module} (tier {TIERS[room]}) imports {other} (tier {TIERS[there]}), which is not lower"
            )
    if "err" in used_of_driver(source):
        # pymysql.install_as_MySQLdb() and Django's backend put another module of that name there.
        found.append(
            f"{module} uses pymysql.err, where other classes may be; take pymysql.IntegrityError ..."
        )
    for name in sorted(names):
        package = name.split(".")[0]
        if package == "pymysql" and module in DRIVER_ERRORS_ONLY:
            taken = used_of_driver(source) if name == "pymysql" else {name.split(".")[1]}
            if any(not one.endswith("Error") for one in taken):
                found.append(f"{module} uses {sorted(taken)} of pymysql, only errors are allowed here")
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


# Beside the names of the root: errors nobody needs often, our tables, a processor for log lines, metrics.
PUBLIC_MODULES = ("rmq_txn.errors", "rmq_txn.schema", "rmq_txn.logs", "rmq_txn.telemetry")
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


def test_every_package_has_a_tier() -> None:
    """A new package, or a module of the root, is argued about in `TIERS`."""
    packages = {f"rmq_txn.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")}
    assert packages <= set(TIERS)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Also inside a package: `graphlib` names the circle that it finds."""
    graph = {
        module: imported_modules(imported_names(module, source, is_package=is_package))
        for module, source in sources(PACKAGE).items()
        for is_package in [(PACKAGE.parent / module.replace(".", "/") / "__init__.py").is_file()]
    }
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(("one", "other"), [("producer", "consumer"), ("transport", "database")])
def test_two_packages_do_not_know_each_other(one: str, other: str) -> None:
    """They share a tier."""
    assert TIERS[f"rmq_txn.{one}"] == TIERS[f"rmq_txn.{other}"]
    assert faults(f"rmq_txn.{one}", f"from rmq_txn import {other}")
    assert faults(f"rmq_txn.{other}.x", f"from rmq_txn.{one} import x")


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
        ("rmq_txn.errors", "import rmq_txn.schema", "which is not lower"),
        ("rmq_txn.errors", "def f():\n    from rmq_txn import schema", "which is not lower"),
        ("rmq_txn.verdict", "from .producer import TransactionProducer", "which is not lower"),
        ("rmq_txn.message", "from rmq_txn import Database", "imports rmq_txn (tier 6)"),
        ("rmq_txn.database.x", "import importlib\nimportlib.import_module('rmq_txn.producer')", "tier 4"),
        ("rmq_txn.testing.x", "from ..cli import native", "cli.native"),
        ("rmq_txn.transport.native", "from rmq_txn.database import sql", "which is not lower"),
        ("rmq_txn.transport.native", "import pymysql", "only ["),
        ("rmq_txn.library.installer", "import rocketmq.ffi", "only ["),
        ("rmq_txn.database.database", "from dbutils.pooled_db import PooledDB", "only ["),
        ("rmq_txn.producer.producer", "import pymysql", "only ["),
        ("rmq_txn.producer.checkback", "import pymysql\npymysql.connect()", "only errors are allowed here"),
        ("rmq_txn.database.pool", "import pymysql\npymysql.err.MySQLError", "where other classes may be"),
        ("rmq_txn.consumer.inbox", "import pymysql", "only ["),
        ("rmq_txn.producer.checkback", "from pymysql import connect", "only errors are allowed here"),
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
        ("rmq_txn.producer.checkback", "import pymysql\npymysql.IntegrityError"),
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
        ("import rmq_txn.database.pool", 1),
    ],
)
def test_the_demo_checker_finds_a_private_import(source: str, count: int) -> None:
    """Fabricated demos, good and bad."""
    assert len(demo_faults("demo", source, {"Message", "Database"})) == count
