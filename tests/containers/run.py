"""
`./dev test --containers`: docker-compose.yml, the containers stack and RocketMQContainer on a real engine.

Images can't be pulled everywhere, so the images that are named are stand-ins, made here from Debian:
real RocketMQ, MariaDB in the place of MySQL, Python 3.11 in the place of 3.12. What the real images do
otherwise is not seen by this test. See docs/decisions/0024 and 0026.

The engine lives in namespaces of its own, of mounts, processes and (for the checks) the network: its
bridges, firewall rules, mounts and processes are gone when this ends, however it ends. Images stay.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from devstack.settings import CHECKOUT
from tests.containers import demo
from tests.containers.engine import FOLDER, engine, make_images, remove_leftovers, run, say

CHECKS = ("compose", "functional")
# Tests of the containers themselves, and those that say most about another engine and another database.
FUNCTIONAL = (
    "tests/containers",
    "tests/contract/test_native_transport.py",
    "tests/integration/test_schema.py",
    "tests/integration/test_sessions.py",
    "tests/integration/test_transactions.py",
    "tests/integration/test_consuming.py",
    "tests/integration/test_faults.py",
    "tests/integration/test_parking.py",
)
_TESTS_SECONDS = 3600
# When this process dies, unshare does, and with it everything inside.
_NAMESPACES = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)


def functional() -> None:
    """Run functional tests on the containers stack."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--stack", "containers"]
    command += ["--require-servers", *FUNCTIONAL]
    # Its reaper is an image, which can't be pulled everywhere; here nothing outlives the engine anyway.
    environment = {**os.environ, "TESTCONTAINERS_RYUK_DISABLED": "true"}
    done = subprocess.run(command, check=False, cwd=CHECKOUT, env=environment, timeout=_TESTS_SECONDS)
    if done.returncode != 0:
        raise SystemExit("containers: functional tests failed")


def inside(options: argparse.Namespace) -> None:
    """Do one phase in its namespaces."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.phase == "images":
        say("making images (the first time some minutes) ...")
        # With the network of the host, which is left alone: building needs the package index only.
        with engine(options.short, "--bridge=none", "--iptables=false", "--ip-forward=false"):
            make_images()
        return
    run("ip", "link", "set", "lo", "up")
    with engine(options.short):
        remove_leftovers()
        for check in [options.only] if options.only else CHECKS:
            began = time.monotonic()
            if check == "compose":
                demo.check(options.compose)
            else:
                functional()
            say(f"{check} passed in {time.monotonic() - began:.0f} s")


def main(arguments: Sequence[str]) -> int:
    """Make the images, then run the checks, each phase in namespaces of its own."""
    parser = argparse.ArgumentParser(prog="./dev test --containers")
    parser.add_argument("--only", choices=CHECKS, help="one check instead of all")
    parser.add_argument("--compose", default="docker-compose", help="another Compose (default: %(default)s)")
    parser.add_argument("--phase", choices=("images", "checks"), help=argparse.SUPPRESS)
    parser.add_argument("--short", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.phase is not None:
        inside(options)
        return 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for phase in ("images", "checks"):
        own_network = ("--net",) if phase == "checks" else ()
        program = [sys.executable, "-m", "tests.containers.run", *arguments, "--phase", phase]
        with tempfile.TemporaryDirectory(prefix="rmq-txn-") as short:
            code = subprocess.run(
                [*_NAMESPACES, *own_network, *program, "--short", short], check=False
            ).returncode
        if code != 0:
            say(f"{phase} failed")
            return 1
    say("passed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
