"""What `package.module:name` on a command line may be, and what is said if it is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rmq_txn.cli.target import load_consumer
from rmq_txn.errors import BrokerUnavailableError, SettingsError

MODULE = """
from rmq_txn import Database, IdempotentConsumer, RocketMQ
from rmq_txn.lifecycle import State

def make():
    database = Database.mysql("mysql://u:p@127.0.0.1:3306/points")
    return IdempotentConsumer(group="points", broker=RocketMQ("127.0.0.1:9876"), database=database)

def wrong(number):
    return make()

consumer = make()
closed = make()
closed.close()
number = 7
"""


@pytest.fixture
def module(tmp_path: Path, unique: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a module into a folder that becomes the current one; return the module's name."""
    (tmp_path / f"{unique}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return unique


@pytest.mark.parametrize("name", ["consumer", "make"])
def test_a_consumer_and_a_function_that_returns_one_are_loaded(module: str, name: str) -> None:
    """The current directory is importable, whatever the command was started by."""
    assert load_consumer(f"{module}:{name}").group == "points"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nothing", "has no 'nothing'"),
        ("number", "is of type int, allowed is an IdempotentConsumer"),
        ("closed", "is closed after the import of its module"),
        ("wrong", "failed with TypeError: wrong() missing 1 required positional argument"),
        ("a b", "allowed is package.module:consumer"),
    ],
)
def test_a_name_that_is_no_new_consumer_is_a_settings_error(module: str, name: str, expected: str) -> None:
    """Each says what was got and what is allowed."""
    with pytest.raises(SettingsError) as raised:
        load_consumer(f"{module}:{name}")
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("points_service", "allowed is package.module:consumer"),
        ("points-service:consumer", "allowed is package.module:consumer"),
        (":consumer", "allowed is package.module:consumer"),
        ("no_such_module:consumer", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_target_that_names_no_module_is_a_settings_error(target: str, expected: str) -> None:
    """Before anything runs."""
    with pytest.raises(SettingsError) as raised:
        load_consumer(target)
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        ("KeyError('URL')", SettingsError, "failed with KeyError: 'URL'"),
        ("BrokerUnavailableError('away')", BrokerUnavailableError, "away"),
    ],
)
def test_what_the_import_raises_is_told_with_its_cause(
    module: str, error: str, expected: type[Exception], said: str
) -> None:
    """An error of this package keeps its kind: a server that is away is no wrong setting."""
    Path(f"{module}_2.py").write_text(f"from rmq_txn import BrokerUnavailableError\nraise {error}")
    with pytest.raises(expected) as raised:
        load_consumer(f"{module}_2:consumer")
    assert said in str(raised.value)


def test_loading_a_consumer_loads_no_native_library(module: str) -> None:
    """What only asks the broker, such as `rmq-txn offsets`, must not meet what kills the native client."""
    code = (
        "import sys; from rmq_txn.cli.target import load_consumer; "
        f"load_consumer('{module}:consumer'); sys.exit('rocketmq' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(root)}).returncode == 0
