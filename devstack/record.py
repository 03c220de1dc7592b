"""The pid file of a server: which process it names, and whether that still is our server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from devstack.errors import StackError
from devstack.guard import boot_id, start_ticks


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A pid with its start time, which together name one process until the machine reboots."""

    pid: int
    ticks: int

    @property
    def alive(self) -> bool:
        """Tell whether this very process runs (a zombie doesn't)."""
        return start_ticks(self.pid) == self.ticks


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """
    What a guard wrote about its server.

    Attributes:
        process: the server, None when it ended before it could be looked at.
        owner: the process with which the server ends, None for a stack that outlives its starter.
        exit_code: set once the server ended: the exit status, or minus the signal.
    """

    path: Path
    process: ProcessId | None
    owner: ProcessId | None
    boot_id: str
    exit_code: int | None

    @classmethod
    def read(cls, path: Path) -> ServerRecord | None:
        """Read a pid file; None when there is none."""
        try:
            text = path.read_text()
        except FileNotFoundError:
            return None
        try:
            fields = json.loads(text)
            owner, ticks, exit_code = fields["owner"], fields["ticks"], fields["exit_code"]
            return cls(
                path=path,
                process=None if ticks is None else ProcessId(int(fields["pid"]), int(ticks)),
                owner=None if owner is None else ProcessId(int(owner["pid"]), int(owner["ticks"])),
                boot_id=str(fields["boot_id"]),
                exit_code=None if exit_code is None else int(exit_code),
            )
        except (ValueError, KeyError, TypeError) as exc:
            raise StackError(
                f"pid file {path} was not written by devstack ({exc!r}), look at it, then remove it"
            ) from exc

    def running(self, folder: Path) -> ProcessId | None:
        """
        Return the server if it runs.

        None when it ended and also when its pid is another program's by now: pid, start time, boot
        and a working folder inside the stack's must all agree, so that nothing is ever
        signalled because of a file alone.
        """
        process = self.process
        if process is None or self.exit_code is not None or self.boot_id != boot_id():
            return None
        if not process.alive:
            return None
        try:
            # The command line would not do: it is empty for a moment while a process executes.
            working_folder = Path(f"/proc/{process.pid}/cwd").readlink()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return None
        return process if working_folder.is_relative_to(folder) else None
