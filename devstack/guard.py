"""
Run one server and see to it that it never outlives its owner.

    python guard.py '{"name": …, "command": […], …}'   # working folder and environment: as given

A process of its own for each server, because whoever starts a server can be killed with SIGKILL
at any time and can't clean up then. The kernel tells the guard when the owner's process ends (a
pidfd, so threads, forks and inherited descriptors of the owner don't matter), and tells the server
when the guard ends (PR_SET_PDEATHSIG; the guard has one thread, so "the parent thread ended" means
"the guard ended"). Without an owner (`devstack up`) only the second half holds.

Standard library only and no import of its package: it starts in a few milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_EXIT_NOT_STARTED = 127


def start_ticks(pid: int) -> int | None:
    """
    Return when a process started, in clock ticks since boot; None when it is gone or a zombie.

    A pid and its start ticks name one process for the life of the machine; a pid alone is reused.
    """
    state, *fields = _stat(pid)
    return None if state in ("Z", "X") else int(fields[18])


def is_stopped(pid: int) -> bool:
    """
    Tell whether all threads of a process are stopped by a signal: SIGSTOP, or a debugger's.

    They stop one by one, each when it is scheduled: on a busy machine one may work a moment longer.
    """
    try:
        threads = [thread.name for thread in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return False
    states = {_stat(pid, thread)[0] for thread in threads} - {"Z", "X"}
    return bool(states) and states <= {"T", "t"}


def _stat(pid: int, thread: str | None = None) -> list[str]:
    """
    Return the state of a process, or of one of its threads, and the fields after it.

    A dead one's state for one that is gone.
    """
    place = Path(f"/proc/{pid}") if thread is None else Path(f"/proc/{pid}/task/{thread}")
    try:
        stat = (place / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ["X"]
    # The command name in parentheses may contain anything, blanks and parentheses included.
    return stat[stat.rindex(")") + 2 :].split()


def boot_id() -> str:
    """Return the id of this boot of the machine: start ticks mean nothing in another one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that a reader, or a crash, sees the old or the new text, never half."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _become_server(request: dict[str, Any], guard_pid: int) -> None:
    """Turn this forked child into the server; never returns."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")  # noqa: TRY301
        if os.getppid() != guard_pid:  # the guard ended before prctl took effect
            os._exit(_EXIT_NOT_STARTED)
        # A process group of its own: what a terminal or a test runner signals is not this server.
        os.setpgid(0, 0)
        # Python ignores these, and an ignored signal stays ignored through exec.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.execv(request["command"][0], request["command"])
    except OSError as exc:
        with contextlib.suppress(OSError):
            Path(request["log"]).write_text(f"devstack: cannot start the server: {exc}\n")
        os._exit(_EXIT_NOT_STARTED)


def _owner_descriptor(owner: dict[str, int]) -> int | None:
    """Return a pidfd that becomes readable when the owner ends; None when it has ended."""
    try:
        descriptor = os.pidfd_open(owner["pid"])
    except ProcessLookupError:
        return None
    # Only now is the pid pinned; whether it still is the owner is asked after that.
    return descriptor if start_ticks(owner["pid"]) == owner["ticks"] else None


def run(request: dict[str, Any]) -> int:
    """Start the server, write its pid file, report on stdout, wait; return its exit code."""
    poller = select.poll()
    owner_descriptor = None
    if request["owner"] is not None:
        owner_descriptor = _owner_descriptor(request["owner"])
        if owner_descriptor is None:
            return _EXIT_NOT_STARTED
        poller.register(owner_descriptor, select.POLLIN)

    guard_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_server(request, guard_pid)
    record = {
        "name": request["name"],
        "pid": pid,
        "ticks": start_ticks(pid),
        "boot_id": boot_id(),
        "owner": request["owner"],
        "exit_code": None,
    }
    pid_file = Path(request["pid_file"])
    write_atomically(pid_file, json.dumps(record))
    sys.stdout.write(f"{pid}\n")
    sys.stdout.flush()
    # The starter read that line; what it does with its end of the pipe is no longer our business.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    server_descriptor = os.pidfd_open(pid)
    poller.register(server_descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poller.poll()}
        if server_descriptor in ready:
            break
        if owner_descriptor in ready:
            poller.unregister(owner_descriptor)
            os.kill(pid, signal.SIGKILL)  # not reaped yet, so the pid is still this server
    exit_code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    record["exit_code"] = exit_code
    # The stack's folder may have been removed meanwhile, then nobody reads the record.
    with contextlib.suppress(FileNotFoundError):
        write_atomically(pid_file, json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(run(json.loads(sys.argv[1])))
