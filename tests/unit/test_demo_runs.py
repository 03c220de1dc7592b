"""A demo that follows earlier ones in its folder: it waits for what can still come, or begins anew."""

from __future__ import annotations

import json
import os
from collections.abc import Set
from pathlib import Path
from typing import cast

import pytest

from devstack import LocalStack, StackError, StackSettings, demo
from devstack.demo import SEEDS, DemoError, Narrator, Tutorial
from devstack.guard import boot_id, start_ticks
from devstack.ledger import Books, Entry, Ledger, Transfer
from devstack.local import forget_data
from devstack.services import DemoService

BALANCES = dict(SEEDS)


class ShownBooks:
    """A ledger whose books are given, one reading after the other; the last one stays."""

    def __init__(self, *books: Books) -> None:
        self._books = list(books)

    def read(self) -> Books:
        """Return the next books."""
        return self._books.pop(0) if len(self._books) > 1 else self._books[0]


def books(*, parked: Set[str] = frozenset(), missing: Set[str] = frozenset()) -> Books:
    """Return books: one transfer with its points, those that are parked, those that only lack points."""
    transfers = {name: Transfer("alice", 2500, f"txn-{name}") for name in {"paid", *parked, *missing}}
    return Books(
        BALANCES, transfers, {"paid": Entry("alice", 25, "txn-paid")}, {"alice": 25}, parked=frozenset(parked)
    )


class NoService:
    """In the place of a service that no step of these tests asks."""

    name, log_path = "a service", Path("log")

    def log_tail(self, _lines: int) -> str:
        """Return nothing."""
        return ""


def tutorial(*shown: Books) -> Tutorial:
    """Return a tutorial that reads these books."""
    service = cast(DemoService, NoService())
    return Tutorial(Narrator(), service, service, cast(Ledger, ShownBooks(*shown)))


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run give up at once."""
    monkeypatch.setattr(demo, "poll_until", lambda condition, _seconds: condition())


def test_a_run_does_not_wait_for_what_earlier_runs_parked(
    short_wait: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says which transfers those are and what to do, and its own books are complete without them."""
    run = tutorial(books(parked={"poisoned"}))
    run._settle_earlier_runs()
    run._count()
    said = capsys.readouterr().out
    assert "poisoned" in said
    assert "--fresh begins anew" in said
    assert "1 == 1, nothing missing, nothing extra, nothing twice" in said


def test_a_parked_transfer_that_was_mended_while_the_demo_ran_counts_again(
    short_wait: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A button of the page does that."""
    mended = books()
    mended.transfers["poisoned"] = Transfer("alice", 100, "txn")
    mended.entries["poisoned"] = Entry("alice", 1, "txn")
    mended.points["alice"] = 26
    before = books(parked={"poisoned"})
    run = tutorial(before, before, mended)
    run._settle_earlier_runs()
    run._count()
    assert "2 == 2, nothing missing" in capsys.readouterr().out


def test_a_run_waits_for_what_can_still_come(short_wait: None) -> None:
    """A transfer without points that nobody parked may be lost: that is no success."""
    with pytest.raises(DemoError, match="points of earlier runs in vain"):
        tutorial(books(missing={"lost"}))._settle_earlier_runs()


def test_what_this_run_parked_is_missing_in_its_books(short_wait: None) -> None:
    """Only what lay there before is set aside."""
    run = tutorial(books(), books(), books(parked={"mine"}))
    run._settle_earlier_runs()
    with pytest.raises(DemoError, match="points for each transfer in vain"):
        run._count()


def test_beginning_anew_removes_what_earlier_stacks_left(tmp_path: Path) -> None:
    """Data, logs and ports; a folder that no stack lived in is left alone, whatever lies there."""
    settings = StackSettings(folder=tmp_path / "demo")
    settings.folder.mkdir()
    (settings.folder / "precious").touch()
    forget_data(settings)
    assert (settings.folder / "precious").exists()
    LocalStack(settings).remember_ports()
    forget_data(settings)
    assert not settings.folder.exists()


def test_beginning_anew_leaves_servers_that_run_alone(tmp_path: Path) -> None:
    """Another demo of the same folder: an error, and nothing is removed."""
    pid = os.getpid()
    record = {"pid": pid, "ticks": start_ticks(pid), "boot_id": boot_id(), "owner": None, "exit_code": None}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "database.json").write_text(json.dumps({"name": "database", **record}))
    stack = LocalStack(StackSettings(folder=tmp_path))
    stack.remember_ports()
    here = Path.cwd()
    os.chdir(tmp_path)  # a server works in the folder of its stack
    try:
        with pytest.raises(StackError, match=r"database .* runs already"):
            forget_data(stack.settings)
    finally:
        os.chdir(here)
    assert (tmp_path / "run" / "database.json").exists()
