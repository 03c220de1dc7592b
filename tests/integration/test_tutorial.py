"""
The tutorial as a reader goes through it: each file saved, each command typed, each output compared.

The reader has servers of their own, a folder that stands for the checkout, and two terminals. `./dev` of that
folder passes `stack` on to devstack and installs nothing; the port of the web server is a free one. Nothing
else of the document is changed.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from devstack import LocalStack, StackSettings
from tests.integration.test_docs import COMMANDS, PROMISE
from tests.kit.documents import (
    CHECKOUT,
    all_blocks,
    file_name,
    quoted_commands,
    text_of,
    without_comments,
)
from tests.kit.output import ELLIPSIS, Output
from tests.kit.terminal import Terminal
from tests.kit.wait import until

TUTORIALS = ("docs/tutorial.md", "docs/tutorial.zh-CN.md")
LANGUAGES = {"python", "sh", "text"}
# The first line of a block may say which terminal it is about, and that its program is to be stopped first.
MARK = re.compile(r"# (?:terminal|终端) (\d)(, after Ctrl-C|，按 Ctrl-C 之后)?\n")
# What is printed now and then, as the document tells: each but the last in one of 20 runs, on a busy machine.
NOW_AND_THEN = (
    "check-back answered",
    "duplicate skipped",
    "a send failed at once although the brokers answer, sending again",
    "elected as the relay of this database",
    "the outbox waits",
)
WAITS_FOR_ENTER = "press Enter"
WEB_PORT = "8000"
SECONDS = 180.0  # `./dev stack up` on a busy machine takes more than a minute


def where(block: str) -> tuple[int, bool, str]:
    """Return the terminal of a block, whether Ctrl-C comes first, and what it says beside that."""
    found = MARK.match(block)
    if found is None:
        return 1, False, block
    return int(found[1]), found[2] is not None, block[found.end() :]


class Reader:
    """Goes through a tutorial from top to bottom, in a folder that looks like a checkout."""

    def __init__(self, folder: Path, stack_folder: Path, resources: ExitStack) -> None:
        self.checkout = folder
        (folder / ".venv").symlink_to(sys.prefix)
        entrance = folder / "dev"
        devstack = shlex.join([sys.executable, "-m", "devstack"])
        entrance.write_text(
            f'#!/bin/sh\n[ "$1" = stack ] || exit 2\nshift\n'
            f'exec {devstack} "$@" --folder {shlex.quote(str(stack_folder))}\n'
        )
        entrance.chmod(0o755)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.web_port = str(free.getsockname()[1])
        self.output = Output(NOW_AND_THEN, overtaken=["consumer started"])
        self.terminals: dict[int, Terminal] = {}
        self.shown: dict[int, str] = {}
        for number in (1, 2):
            environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1"}
            self.terminals[number] = Terminal(folder, environment)
            resources.callback(self.terminals[number].close)
            self.shown[number] = ""

    def read(self, text: str) -> None:
        """Do what the blocks of a document say; nothing is printed that it does not show."""
        blocks = all_blocks(text)
        for number, (language, block) in enumerate(blocks):
            terminal, after_ctrl_c, said = where(block)
            if language == "python":
                program = block.replace(f":{WEB_PORT}/", f":{self.web_port}/")
                (self.checkout / "tutorial" / file_name(block)).write_text(program, encoding="utf-8")
            elif language == "text":
                self.compare(terminal, said.splitlines())
            else:
                self.finish(terminal, after_ctrl_c=after_ctrl_c)
                self.shown[terminal] = shown_by(terminal, blocks[number + 1 :])
                self.type(terminal, said.splitlines())
        for terminal in self.terminals:
            self.finish(terminal)

    def finish(self, number: int, *, after_ctrl_c: bool = False) -> None:
        """See the last command of a terminal end as the document shows it, or stop it."""
        terminal = self.terminals[number]
        if after_ctrl_c:
            assert terminal.busy, terminal.said
            terminal.press_ctrl_c()
            terminal.wait(SECONDS)
            terminal.take(len(terminal.said))
        else:
            self.check_status(number, terminal.wait(SECONDS))
            assert self.output.of_note(terminal.said) == [], "printed, and not in the document"
            terminal.take(len(terminal.said))

    def type(self, number: int, commands: list[str]) -> None:
        """Type commands, each one after the end of the one before; the last one may go on running."""
        terminal = self.terminals[number]
        for position, command in enumerate(commands):
            if position:
                self.check_status(number, terminal.wait(SECONDS))
            terminal.start(command.replace(f"--port {WEB_PORT}", f"--port {self.web_port}"))

    def check_status(self, number: int, status: int) -> None:
        """A command fails where the document shows that it does."""
        shown = self.shown[number]
        assert status == 0 or "Traceback" in shown or "Killed" in shown, self.terminals[number].said

    def compare(self, number: int, expected: list[str]) -> None:
        """Wait until a terminal has printed what the document shows; press Enter where it says so."""
        if any(WAITS_FOR_ENTER in line for line in expected):
            last = len(expected) - 1 - expected[::-1].index(ELLIPSIS)
            self.wait_said(number, expected[:last])
            self.terminals[number].press_enter()
            expected = expected[last:]
        self.wait_said(number, expected)

    def wait_said(self, number: int, expected: list[str]) -> None:
        """Wait for lines and take them."""
        terminal, shown = self.terminals[number], "\n".join(expected)

        def found() -> int | None:
            ended = not terminal.busy  # asked first: nothing comes after what is read then
            lines = self.output.match(expected, terminal.said)
            assert lines is not None or not ended, "something is missing"
            return lines

        try:
            terminal.take(until(found, "everything is printed", SECONDS) or 0)
        except AssertionError:
            print(f"the document shows:\n{shown}\nprinted was:\n" + "\n".join(terminal.said))
            raise


def shown_by(terminal: int, later: list[tuple[str, str]]) -> str:
    """Return all that a document shows of a command, from the blocks after it."""
    shown = []
    for language, block in later:
        number, _, said = where(block)
        if language == "sh" and number == terminal:
            break
        if language == "text" and number == terminal:
            shown.append(said)
    return "".join(shown)


@pytest.mark.servers
@pytest.mark.usefixtures("stack")  # only to be skipped with the others where no servers can be started
def test_the_tutorial_does_what_it_says(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """From `./dev stack up` to `./dev stack down`; the translation has the same blocks."""
    stack_folder = tmp_path_factory.mktemp("stack")
    with ExitStack() as resources:
        resources.callback(lambda: LocalStack(StackSettings.for_tests(stack_folder)).close())
        Reader(tmp_path, stack_folder, resources).read(text_of(TUTORIALS[0]))
    assert not (tmp_path / "tutorial").exists()


def test_both_tutorials_have_the_same_blocks() -> None:
    """Same files, commands and outputs in the same order; comments and terminal marks are translated."""

    def read_by_machines(name: str) -> list[tuple[object, ...]]:
        return [
            (language, without_comments(language, block))
            if language == "python"
            else (language, *where(block))
            for language, block in all_blocks(text_of(name))
        ]

    english, chinese = map(read_by_machines, TUTORIALS)
    assert english == chinese
    files = [
        [file_name(b) for kind, b in all_blocks(text_of(name)) if kind == "python"] for name in TUTORIALS
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("tutorial", TUTORIALS)
def test_nothing_in_the_tutorial_is_left_undone(tutorial: str) -> None:
    """Blocks are files, commands or outputs; each file is run or imported; quoted commands have a test."""
    text = text_of(tutorial)
    blocks = all_blocks(text)
    assert {language for language, _ in blocks} == {"python", "sh", "text"}
    commands = [
        line for language, block in blocks if language == "sh" for line in where(block)[2].splitlines()
    ]
    programs = {file_name(block): block for language, block in blocks if language == "python"}
    assert len(programs) == [language for language, _ in blocks].count("python"), "a file is written twice"
    for name in programs:
        module = name.removesuffix(".py")
        others = [other for file, other in programs.items() if file != name]
        used = f"python {name}" in commands or any(f"{module}:" in command for command in commands)
        assert used or any(f"from {module} import" in other for other in others), name
    for quoted in quoted_commands(text):
        assert quoted in COMMANDS or any(command.startswith(quoted) for command in commands), quoted


@pytest.mark.parametrize("tutorial", TUTORIALS)
def test_the_tutorial_has_the_promise_and_both_words(tutorial: str) -> None:
    """The reader can say afterwards what a half message and a check-back are."""
    text = text_of(tutorial)
    assert PROMISE in text
    assert all(f"`{line}`" in text for line in NOW_AND_THEN)
    assert {"half message", "半消息", "check-back", "事务回查"} <= set(
        re.findall(r"half message|半消息|check-back|事务回查", text)
    )


@pytest.mark.parametrize(("tutorial", "language"), [(TUTORIALS[0], 0), (TUTORIALS[1], 1)])
def test_the_tutorial_names_every_button_of_the_page(tutorial: str, language: int) -> None:
    """Whoever runs the containers finds the steps there under these titles."""
    page = text_of("demo_account_service/page/texts.js")
    buttons = re.search(r"^export const buttons = \[\n(.*?)^\];", page, re.MULTILINE | re.DOTALL)
    assert buttons
    titles = re.findall(r'^  \["\w+", \["(.*?)", "(.*?)"\], \[', buttons[1], re.MULTILINE)
    titles += re.findall(r'^  (?:send|mend): \["(.*?)", "(.*?)"\],$', page, re.MULTILINE)
    assert len(titles) == 9
    table = "".join(re.findall(r"^\|.*\|$", text_of(tutorial), re.MULTILINE))
    assert [title[language] for title in titles if title[language] not in table] == []
