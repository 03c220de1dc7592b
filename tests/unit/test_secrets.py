"""What must not stand in a log line, a traceback or an error report, where values are shown by `repr`."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest

import rmq_txn
from rmq_txn import Delivery, Message, RocketMQ
from rmq_txn.schema import Identity

SECRET = "hunter2-"
HIDDEN = re.compile(r"secret|password|access_key|token|body|encoded")
SHOWN = {
    "rmq_txn.remoting.wire.Credentials.access_key",  # a name; the key that proves it is the other one
}


@pytest.mark.parametrize(
    "value",
    [
        RocketMQ("127.0.0.1:9876", access_key=f"{SECRET}access", secret_key=f"{SECRET}secret"),
        Identity("a-database-id", f"{SECRET}sign".encode(), None),
        Message("topic", {"card": SECRET}),
        Message("topic", {"card": SECRET}).outbound(txn_id="0" * 32, position=0, owner="o"),
        Delivery("topic", SECRET.encode(), "id", None, None, 0, 0, {"card": SECRET}),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("show", [repr, str, "{!r}".format, lambda value: "%s" % (value,)])  # noqa: UP031
def test_a_value_does_not_show_its_secrets(value: object, show: Any) -> None:
    """Whatever way it gets into a text."""
    assert SECRET not in show(value)
    assert type(value).__name__ in show(value)


def _fields() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Return every field of every data class of the package, by its full name."""
    for module in pkgutil.walk_packages(rmq_txn.__path__, "rmq_txn."):
        if module.name == "rmq_txn.__main__":
            continue
        loaded = importlib.import_module(module.name)
        for found in vars(loaded).values():
            if isinstance(found, type) and dataclasses.is_dataclass(found):
                for item in dataclasses.fields(found):
                    yield f"{found.__module__}.{found.__qualname__}.{item.name}", item


def test_every_field_that_sounds_like_a_secret_is_hidden() -> None:
    """A new one, too; those that may be shown stand in this file with the reason."""
    shown = {name for name, item in _fields() if item.repr and HIDDEN.search(name.rpartition(".")[2])}
    assert {name for name in shown if name.startswith("rmq_txn.")} == SHOWN
