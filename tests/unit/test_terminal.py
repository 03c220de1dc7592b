"""The test kit of documents that are typed in line by line: it must see what differs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.output import Output
from tests.kit.terminal import Terminal
from tests.kit.wait import until

SECONDS = 20.0
ONE, TWO = "0" * 31 + "1", "0" * 31 + "2"
HERE, THERE = "a" * 32, "b" * 32


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """Return a terminal in a folder of its own."""
    opened = Terminal(tmp_path, os.environ)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("expected", "said", "taken"),
    [
        (["a", "b"], ["a", "b", "c"], 2),
        (["a", "b"], ["a"], None),
        (["a", "…", "b"], ["a", "c"], None),
        (["…", "a", "b"], ["x", "y", "a", "b", "c"], 4),
        (["a", "…"], ["a", "b", "c"], 3),
        (["a …"], ["a b"], 1),
        (["pid 1 at 127.0.0.1:1"], ["pid 4711 at 127.0.0.1:8001"], 1),
        (["took seconds=0.1"], ["took seconds=12.5"], 1),
        (["said x=1 y=2"], ["said y=2 x=1"], 1),
        ([f"{ONE} and {ONE}"], [f"{HERE} and {HERE}"], 1),
        ([f"{ONE} and {TWO}"], [f"{HERE} and {THERE}"], 1),
    ],
)
def test_an_output_is_compared_line_by_line(expected: list[str], said: list[str], taken: int | None) -> None:
    """How many lines that takes; None as long as some are missing."""
    assert Output().match(expected, said) == taken


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        (["a", "b"], ["x", "a", "b"]),
        (["…", "a", "b"], ["a", "c", "b"]),
        (["a"], ["a b"]),
        (["a …"], ["ab"]),
        (["1 of 2"], ["1 of 3"]),
        (["said x=1 y=2"], ["said y=1 x=2"]),
        (["said x=1"], ["said x=1 y=2"]),
        ([f"id {ONE}"], ["id 1"]),
        ([f"{ONE} and {ONE}"], [f"{HERE} and {THERE}"]),
    ],
)
def test_another_output_is_an_error_at_once(expected: list[str], said: list[str]) -> None:
    """What is not variable must be the same; both lines are shown."""
    with pytest.raises(AssertionError, match=r"expected is .*, said was "):
        Output().match(expected, said)


def test_an_id_stays_the_same_id_through_a_document() -> None:
    """A transaction that is shown again later must be that transaction."""
    output = Output()
    assert output.match([f"is {ONE}"], [f"is {HERE}"]) == 1
    with pytest.raises(AssertionError, match="said was"):
        output.match([f"was {ONE}"], [f"was {THERE}"])
    assert output.match(["…", f"was {ONE}"], [f"was {THERE}", f"was {HERE}"]) == 2


def test_what_is_printed_now_and_then_is_passed_over_and_still_found_where_it_is_expected() -> None:
    """Lines that begin so, wherever they are."""
    output = Output(["now and then"])
    assert output.match(["a", "b"], ["now and then x", "a", "now and then", "b"]) == 4
    assert output.match([f"now and then {ONE}"], [f"now and then {HERE}"]) == 1
    assert output.match([f"now and then {ONE}"], [f"now and then {THERE}"]) is None
    assert output.of_note(["now and then x", "a"]) == ["a"]


def test_what_is_printed_now_and_then_and_shown_may_come_earlier_than_it_is_shown() -> None:
    """But it must come, and counts once."""
    expected = ["a", "now and then", "now and then", "b"]
    assert Output(["now and then"]).match(expected, ["now and then", "a", "now and then", "b"]) == 4
    with pytest.raises(AssertionError, match="expected is 'now and then'"):
        Output(["now and then"]).match(expected, ["now and then", "a", "b"])


def test_a_comparison_that_fails_binds_nothing() -> None:
    """It is asked again and again while a program prints."""
    output = Output()
    assert output.match([f"is {ONE}", "end"], [f"is {HERE}"]) is None
    assert output.match([f"is {ONE}", "end"], [f"is {THERE}", "end"]) == 2


def test_a_terminal_remembers_folder_and_environment_and_tells_status_and_both_streams(
    terminal: Terminal, tmp_path: Path
) -> None:
    """As the reader's own: `cd` and `export` last until it is closed."""
    for command in ("mkdir inside", "cd inside", "export WORD=hello"):
        terminal.start(command)
        assert terminal.wait(SECONDS) == 0
    terminal.start("pwd; echo $WORD; ls nowhere 2>/dev/null || echo error >&2; (exit 3)")
    assert terminal.wait(SECONDS) == 3
    assert terminal.said == [str(tmp_path / "inside"), "hello", "error"]
    terminal.take(2)
    assert terminal.said == ["error"]


def test_enter_and_ctrl_c_reach_the_running_program_and_leave_the_shell(terminal: Terminal) -> None:
    """One waits for a line, the other one for nothing."""
    terminal.start("read -r line; echo \"read '$line'\"")
    assert terminal.busy
    terminal.press_enter()
    assert terminal.wait(SECONDS) == 0
    terminal.start("sh -c 'echo started; exec sleep 600'")
    until(lambda: "started" in terminal.said, "it runs", SECONDS)
    terminal.press_ctrl_c()
    assert terminal.wait(SECONDS) != 0
    terminal.start("echo alive")
    assert terminal.wait(SECONDS) == 0
    assert [line for line in terminal.said if line] == ["read ''", "started", "alive"]


def test_a_killed_program_and_the_end_of_the_shell_are_told(terminal: Terminal) -> None:
    """In the words that a person would see."""
    terminal.start("sh -c 'kill -KILL $$'")
    assert terminal.wait(SECONDS) == 128 + 9
    assert terminal.said == ["Killed"]
    terminal.start("exit 4")
    assert terminal.wait(SECONDS) == 4


def test_a_line_that_may_be_overtaken_is_found_after_what_a_document_shows_behind_it() -> None:
    """And must be said all the same; the others keep their order."""
    output = Output(overtaken=["started"])
    assert output.match(["started", "a", "b"], ["a", "started", "b"]) == 3
    assert output.match(["started", "a"], ["a"]) is None
    with pytest.raises(AssertionError, match="expected is 'a'"):
        output.match(["started", "a", "b"], ["started", "b", "a"])
