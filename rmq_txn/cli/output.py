"""What commands print. The only place that does: what comes from a message can be anything."""

from __future__ import annotations

from rmq_txn.logs import lines, one_line


def say(text: str) -> None:
    """Print one line, whatever is in it: a terminal shows control characters and does not obey them."""
    print(one_line(text))


def say_block(title: str, text: str) -> None:
    """Print a text of perhaps several lines after its title; those after the first are indented."""
    print((title + lines(text).replace("\n", "\n" + " " * len(title))).rstrip())
