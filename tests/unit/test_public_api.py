"""The public names: few, importable, explained, typed, and usable without the native library."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import rmq_txn
from rmq_txn.errors import RmqTxnError
from rmq_txn.library import installer

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = Path(rmq_txn.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_at_most_16_names_are_public_and_all_can_be_imported() -> None:
    """The whole interface fits on one screen; `import *` gives exactly these."""
    assert len(set(rmq_txn.__all__)) == len(rmq_txn.__all__) <= 16
    imported: dict[str, object] = {}
    exec("from rmq_txn import *", imported)
    assert set(imported) - {"__builtins__"} == set(rmq_txn.__all__)


def test_every_public_name_is_a_class_that_calls_itself_by_it() -> None:
    """What a traceback or a repr shows can be imported under that name."""
    for name in rmq_txn.__all__:
        value = getattr(rmq_txn, name)
        assert inspect.isclass(value)
        assert value.__name__ == name


def test_every_error_of_the_package_has_one_root() -> None:
    """One `except RmqTxnError` catches what this package raises on purpose."""
    errors = importlib.import_module("rmq_txn.errors")
    own = [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    ]
    assert len(own) > 10
    assert all(issubclass(error, RmqTxnError) for error in own)
    assert all(issubclass(error, Exception) for error in own)


def every_error(root: type[RmqTxnError]) -> list[type[RmqTxnError]]:
    """Return `root` and all that was derived from it, in any module of the package."""
    return [root] + [found for child in root.__subclasses__() for found in every_error(child)]


def test_every_error_can_be_pickled() -> None:
    """A pool of `multiprocessing` hangs for ever on an error that can't be made again."""
    for source in SOURCES:
        if "cli" not in source.parts and source.stem != "__main__":
            name = ".".join(source.relative_to(PACKAGE.parent).with_suffix("").parts)
            with suppress(ImportError):  # of an extra that is not installed
                importlib.import_module(name.removesuffix(".__init__"))
    for kind in set(every_error(RmqTxnError)):
        if not kind.__module__.startswith("rmq_txn"):
            continue
        code = getattr(kind.__init__, "__code__", None)  # None: the one of built-in exceptions
        positional = code.co_argcount - 1 if code else 1
        named = code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount] if code else ()
        error = kind(*["what happened"] * positional, **dict.fromkeys(named, "t1"))
        error.note = "kept"  # type: ignore[attr-defined]
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))
        assert copy.copy(error).args == error.args


def test_each_error_is_named_in_the_tree_at_the_head_of_its_module() -> None:
    """The tree is what people read first."""
    errors = importlib.import_module("rmq_txn.errors")
    own = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert errors.__doc__ is not None
    assert {name for name in own if name not in errors.__doc__} == set()


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Yield every public module, class, function and method of a source without a docstring."""
    if ast.get_docstring(tree) is None:
        yield "module"
    pending: list[tuple[str, ast.stmt]] = [("", node) for node in tree.body]
    while pending:
        prefix, node = pending.pop()
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if node.name.startswith("_") or "overload" in map(ast.unparse, node.decorator_list):
            continue
        if ast.get_docstring(node) is None:
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            pending += [(f"{prefix}{node.name}.", child) for child in node.body]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_everything_public_is_explained(path: Path) -> None:
    """Each module, class, method, property and function that does not begin with an underscore."""
    assert list(undocumented(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_the_docstring_checker_finds_what_is_missing() -> None:
    """A fabricated source, good and bad parts."""
    source = textwrap.dedent('''
        def bare(): pass
        def _private(): pass
        class Told:
            """Told."""
            @property
            def value(self): pass
            def told(self):
                """Told."""
            def __init__(self): pass
    ''')
    assert sorted(undocumented(ast.parse(source))) == ["Told.value", "bare", "module"]


def test_the_package_says_that_it_is_typed() -> None:
    """Without this file type checkers ignore every annotation."""
    assert (PACKAGE / "py.typed").is_file()


@pytest.fixture
def without_library(tmp_path: Path) -> dict[str, str]:
    """Return an environment whose `rocketmq` package is a copy that lacks the native library."""
    found = installer.status().path
    assert found is not None, "rocketmq-client-python is not installed"
    assert (found.parent / "ffi.py").is_file()
    shutil.copytree(
        found.parent, tmp_path / "rocketmq", ignore=shutil.ignore_patterns("*.so*", "*.dylib", "__pycache__")
    )
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(CHECKOUT)])}


def run(program: str, environment: dict[str, str], folder: Path) -> str:
    """Run a program in a fresh interpreter and return what it printed."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_without_the_native_library_the_package_imports_and_the_first_use_says_what_to_run(
    without_library: dict[str, str], tmp_path: Path
) -> None:
    """A web process imports its code before anybody ran the installer; the error is one command."""
    said = run(
        """
        import rmq_txn
        from rmq_txn.errors import NativeLibraryError
        from rmq_txn.library import installer
        import ctypes.util
        assert ctypes.util.find_library("rocketmq") is None, "a system library is installed here"
        broker = rmq_txn.RocketMQ("127.0.0.1:1")
        for client in (
            broker.producer("g", print),
            broker.consumer("c", {"transfer": ["*"]}, 1, print),
        ):
            try:
                client.start()
            except NativeLibraryError as error:
                print(error)
        """,
        without_library,
        tmp_path,
    )
    expected = f"{tmp_path / 'rocketmq' / installer.FILE_NAME} is missing: run `rmq-txn native install`"
    assert said.splitlines() == [expected, expected]


def test_importing_the_package_loads_no_vendor_client_and_starts_nothing(
    without_library: dict[str, str], tmp_path: Path
) -> None:
    """Importing is safe before a fork, and fast."""
    said = run(
        """
        import sys, threading
        import rmq_txn
        print(sorted(name for name in sys.modules if name.split(".")[0] in ("rocketmq", "grpc")))
        print(threading.active_count())
        """,
        without_library,
        tmp_path,
    )
    assert said.split() == ["[]", "1"]
