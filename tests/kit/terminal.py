"""A terminal as a reader of a document has it: commands go in, output comes out, Enter and Ctrl-C work."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

from tests.kit.wait import until

_DONE = "-- this command has ended with "
_KILLED = re.compile(r"bash: line \d+: +\d+ (Killed) .*")
"""What bash says of a killed program when nobody sits before it; to a person it says "Killed"."""


class Terminal:
    """One shell with its environment and folder, one command after the other. For one thread."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._said: list[str] = []
        self._taken = 0
        self._statuses: list[int] = []
        self._sent = 0
        self._shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that Ctrl-C reaches the shell and what it runs, nobody else
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._type("trap : INT")  # as an interactive shell: Ctrl-C ends the program, not the shell

    @property
    def busy(self) -> bool:
        """Whether a command runs."""
        return len(self._statuses) < self._sent and self._shell.poll() is None

    @property
    def said(self) -> list[str]:
        """The lines that were printed and not taken yet."""
        return self._said[self._taken :]

    def take(self, lines: int) -> None:
        """Forget some of the lines that were printed."""
        self._taken += lines

    def start(self, command: str) -> None:
        """Start a command."""
        self._sent += 1
        self._type(f"{command}; echo '{_DONE}'$?")

    def wait(self, seconds: float) -> int:
        """Wait until no command runs and return the exit status of the last one."""
        until(lambda: not self.busy, "the command ends", seconds)
        if len(self._statuses) < self._sent:
            return self._shell.wait()  # that command was `exit`
        return self._statuses[-1] if self._statuses else 0

    def press_enter(self) -> None:
        """Send an empty line to the running program."""
        self._type("")

    def press_ctrl_c(self) -> None:
        """Interrupt the running program."""
        os.killpg(self._shell.pid, signal.SIGINT)

    def close(self) -> None:
        """End the shell and what it runs."""
        if self._shell.poll() is None:
            os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.wait()
        self._listener.join()
        for stream in (self._shell.stdin, self._shell.stdout):
            assert stream is not None
            stream.close()

    def _type(self, line: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(line + "\n")
        self._shell.stdin.flush()

    def _listen(self) -> None:
        assert self._shell.stdout is not None
        for line in self._shell.stdout:
            text = _KILLED.sub(r"\1", line.rstrip("\n"))
            if text.startswith(_DONE):
                self._statuses.append(int(text.removeprefix(_DONE)))
            else:
                self._said.append(text)
