"""
What commands print. The only place that does: what comes from a message can be anything.

For people one line a fact. With `--json` one object a line: its `kind`, its fields, and the same words as
`text`. docs/cli.md lists the kinds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from rmq_txn.logs import lines, one_line

_as_json: ContextVar[bool] = ContextVar("rmq_txn.cli.as_json", default=False)


@contextmanager
def printed(*, as_json: bool) -> Iterator[None]:
    """Print for programs, or for people, while the block runs."""
    token = _as_json.set(as_json)
    try:
        yield
    finally:
        _as_json.reset(token)


def say(text: str, kind: str = "note", /, **fields: object) -> None:
    """
    Print one line, whatever is in it: a terminal shows control characters and does not obey them.

    Args:
        text: for people.
        kind: what it tells, for programs.
        fields: what the text says, for programs: strings, numbers, booleans, None. A `text` among them
            is what programs get in the place of the line.
    """
    if _as_json.get():
        # ASCII only: no control character, and no line break but the last one.
        print(json.dumps({"kind": kind, **fields, "text": fields.get("text", text)}))
    else:
        print(one_line(text))


def say_heading(text: str) -> None:
    """Print a line that names columns: programs have the names of the fields."""
    if not _as_json.get():
        print(one_line(text))


def say_record(kind: str, fields: Mapping[str, object], *, width: int) -> None:
    """Print one thing: a line a field, with its name before it, or one object."""
    if _as_json.get():
        named = {re.sub(r"\W+", "_", name).strip("_"): value for name, value in fields.items()}
        print(json.dumps({"kind": kind, **named}))
        return
    for name, value in fields.items():
        say_block(f"{name + ':':<{width}}", "" if value is None else str(value))


def say_block(title: str, text: str) -> None:
    """Print a text of perhaps several lines after its title; those after the first are indented."""
    print((title + lines(text).replace("\n", "\n" + " " * len(title))).rstrip())
