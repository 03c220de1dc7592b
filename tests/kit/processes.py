"""What would crash or hang a process runs in one of its own, with a deadline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import CHECKOUT

_RUN = (
    "import importlib, json, sys; module, name, arguments = sys.argv[1:];"
    " getattr(importlib.import_module(module), name)(**json.loads(arguments))"
)


def child(
    program: Callable[..., None],
    *,
    environment: dict[str, str] | None = None,
    **arguments: Any,
) -> subprocess.Popen[str]:
    """Start a function of a test module in a process of its own; its arguments travel as JSON."""
    inherited = {name: value for name, value in os.environ.items() if name != "ROCKETMQ_CLIENT_LOG_DIR"}
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, program.__module__, program.__name__, json.dumps(arguments)],
        cwd=CHECKOUT,
        env={**inherited, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # killed with all that it forked
    )


def outcome(process: subprocess.Popen[str], seconds: float) -> tuple[int, str]:
    """Return exit status and output of a process that ends within `seconds`; kill it if it does not."""
    try:
        said, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, errors = process.communicate()
        pytest.fail(f"the process hung for {seconds:g} s; it said: {said}\n{errors}")
    sys.stderr.write(errors)  # pytest shows it if the test fails
    return process.returncode, said


def together(calls: list[Callable[[], object]]) -> None:
    """Run each call on a thread of its own, all at once; raise what one of them raised."""
    barrier, problems = threading.Barrier(len(calls)), list[BaseException]()

    def run(call: Callable[[], object]) -> None:
        barrier.wait()
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - raised below
            problems.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
