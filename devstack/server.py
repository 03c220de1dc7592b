"""One server of the stack as a process: start, stop, kill, pause, and what it says."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from devstack.errors import StackError
from devstack.guard import is_stopped, start_ticks
from devstack.machine import require_free_ports
from devstack.program import ServerProgram, wait_until_ready
from devstack.record import ProcessId, ServerRecord

_GUARD = Path(__file__).with_name("guard.py")
_POLL_SECONDS = 0.05
_GUARD_START_SECONDS = 10.0
# After SIGKILL only the kernel has work to do: pages to unmap, files to close.
_KILLED_SECONDS = 20.0
_STOPPED_SECONDS = 20.0
_TAIL_BYTES = 64 * 1024


class Server:
    """
    A handle of one server; its methods may be called from any thread.

    Two handles of the same folder, also in two processes, see the same server: all state is the
    pid file and the kernel's. Only the process that started a server reaps its guard.
    """

    def __init__(self, program: ServerProgram, *, outlives_starter: bool = False) -> None:
        self._program = program
        self._outlives_starter = outlives_starter
        self._pid_file = program.folder / "run" / f"{program.name}.json"
        self._log = program.folder / "logs" / f"{program.name}.log"
        self._guard: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """Return the name that log, pid file and messages use."""
        return self._program.name

    @property
    def alive(self) -> bool:
        """Tell whether the process exists; a paused server is alive."""
        return self._running() is not None

    @property
    def frozen(self) -> bool:
        """Tell whether the process is paused (SIGSTOP): it exists, and does nothing."""
        process = self._running()
        return process is not None and is_stopped(process.pid)

    @property
    def pid(self) -> int:
        """Return the process id; StackError when the server doesn't run."""
        return self._required().pid

    @property
    def owner_pid(self) -> int | None:
        """Return the process with which a running server ends; None: it runs until stop()."""
        owner = self._owner()
        return owner.pid if owner is not None and owner.alive and self.alive else None

    @property
    def log_path(self) -> Path:
        """Return the file with stdout and stderr since the last start; the one before: *.1."""
        return self._log

    def start(self, *, wait: bool = True) -> None:
        """
        Start the server on its ports with its data.

        Args:
            wait: return when it serves; False: when the process exists, see wait_ready.

        Raises:
            StackError: it runs already, a port is taken, or it did not come up.
        """
        with self._lock:
            self.require_stopped()
            self._reap_guard()
            require_free_ports(self.name, self._program.ports)
            self._program.prepare()
            self._launch()
        if wait:
            self.wait_ready()

    def wait_ready(self, *, timeout_seconds: float | None = None) -> None:
        """Wait until the server itself answers; default deadline: that of its kind."""
        seconds = self._program.ready_seconds if timeout_seconds is None else timeout_seconds
        wait_until_ready(seconds, lambda: self.alive, self._program.probe, self._report)

    def stop(self) -> None:
        """Stop it cleanly (SIGTERM), kill it if that takes too long; nothing when it is down."""
        with self._lock:
            self.begin_stop()
            self._finish_stop()

    def begin_stop(self) -> None:
        """Ask for a clean stop without waiting; stop() then waits."""
        process = self._running()
        if process is not None:
            self._signal(process, signal.SIGTERM)
            self._signal(process, signal.SIGCONT)  # a paused process can't act on SIGTERM

    def kill(self) -> None:
        """End it with SIGKILL and wait until it is gone; StackError when it doesn't run."""
        self._required()
        self.end()

    def end(self) -> None:
        """End it with SIGKILL if it runs, and wait until it is gone."""
        with self._lock:
            process = self._running()
            if process is not None:
                self._signal(process, signal.SIGKILL)
                self._wait_gone(process, _KILLED_SECONDS)
            self._reap_guard()

    def pause(self) -> None:
        """Freeze it (SIGSTOP), and return when it is: connections stay open and nobody answers."""
        process = self._required()
        self._signal(process, signal.SIGSTOP)
        poll_until(lambda: is_stopped(process.pid) or not process.alive, _STOPPED_SECONDS)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal(self._required(), signal.SIGCONT)

    def restart(self) -> None:
        """Stop it cleanly, start it again and wait until it serves."""
        self.stop()
        self.start()

    def log_tail(self, lines: int = 40) -> str:
        """Return the last lines of its output and, under their names, of its own log files."""
        parts = [_tail(self._log, lines)]
        for path in self._program.more_logs:
            text = _tail(path, lines)
            if text:
                parts.append(f"--- {path.name}\n{text}")
        return "\n".join(part for part in parts if part)

    def require_stopped(self) -> None:
        """Raise StackError when it runs; wait for one whose owner was killed a moment ago."""
        process = self._running()
        if process is None:
            return
        owner = self._owner()
        if owner is not None and not owner.alive:
            self._wait_gone(process, _KILLED_SECONDS)  # its guard is about to end it
            return
        whose = "started by 'devstack up'" if owner is None else f"of process {owner.pid}"
        raise StackError(
            f"{self.name} of {self._program.folder} runs already as process {process.pid} "
            f"({whose}), stop it or use another folder"
        )

    def _running(self) -> ProcessId | None:
        record = ServerRecord.read(self._pid_file)
        return None if record is None else record.running(self._program.folder)

    def _owner(self) -> ProcessId | None:
        record = ServerRecord.read(self._pid_file)
        return None if record is None else record.owner

    def _required(self) -> ProcessId:
        process = self._running()
        if process is None:
            raise StackError(f"{self.name} is not running, start it first")
        return process

    def _launch(self) -> None:
        for folder in (self._pid_file.parent, self._log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        # One start a file, so that a tail never shows the error of an earlier life.
        if self._log.exists():
            self._log.replace(self._log.with_suffix(".log.1"))
        owner = None
        if not self._outlives_starter:
            owner = {"pid": os.getpid(), "ticks": start_ticks(os.getpid())}
        request = {
            "name": self.name,
            "command": self._program.command(),
            "log": str(self._log),
            "pid_file": str(self._pid_file),
            "owner": owner,
        }
        guard_log = self._log.with_name(f"{self.name}-guard.log")
        with guard_log.open("wb") as errors:
            guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), json.dumps(request)],
                cwd=self._program.folder,
                env=self._program.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for the owner, which then stops its servers
            )
        self._guard = guard
        assert guard.stdout is not None
        with guard.stdout:
            readable, _, _ = select.select([guard.stdout], [], [], _GUARD_START_SECONDS)
            if not (readable and guard.stdout.readline()):
                guard.kill()
                guard.wait()
                self._guard = None
                raise StackError(f"cannot start {self.name}: {_tail(guard_log, 20) or 'no reason'}")

    def _finish_stop(self) -> None:
        process = self._running()
        if process is not None and not self._gone_within(process, self._program.stop_seconds):
            self._signal(process, signal.SIGKILL)
            self._wait_gone(process, _KILLED_SECONDS)
        self._reap_guard()

    def _signal(self, process: ProcessId, number: signal.Signals) -> None:
        """Send a signal to this very process; one that ended meanwhile is left alone."""
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return
        try:
            # The descriptor pins the process, so the pid can't change hands after this check.
            if process.alive:
                signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return
        finally:
            os.close(descriptor)

    def _gone_within(self, process: ProcessId, seconds: float) -> bool:
        return poll_until(lambda: not process.alive, seconds)

    def _wait_gone(self, process: ProcessId, seconds: float) -> None:
        if not self._gone_within(process, seconds):
            raise StackError(f"{self.name} (process {process.pid}) did not end in {seconds:g} s")

    def _reap_guard(self) -> None:
        """Collect our guard, which ends right after its server has and has noted the exit code."""
        if self._guard is None:
            return
        try:
            self._guard.wait(_KILLED_SECONDS)
        except subprocess.TimeoutExpired as exc:
            raise StackError(f"the guard of {self.name} (process {self._guard.pid}) hangs") from exc
        self._guard = None

    def _report(self, what: str) -> str:
        if not self.alive:
            with self._lock:  # somebody else may be starting it again
                self._reap_guard()
        record = ServerRecord.read(self._pid_file)
        code = None if record is None else record.exit_code
        lines = [
            f"{self.name} {what}",
            f"command: {' '.join(self._program.command())}",
            f"exit code: {'none, it runs' if self.alive else 'unknown' if code is None else code}",
            f"log {self._log}:",
            self.log_tail(),
        ]
        return "\n".join(lines)


def poll_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Return True as soon as the condition holds, False when it doesn't within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _tail(path: Path, lines: int) -> str:
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
