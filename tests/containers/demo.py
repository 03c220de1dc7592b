"""The unmodified docker-compose.yml: health, transfers, faults, restarts, data that stay."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

from devstack.machine import free_port_block
from devstack.settings import CHECKOUT
from tests.containers.engine import run, say
from tests.kit.wait import until

PROJECT = "rmq-txn-containers"
SERVERS = ("namesrv", "broker", "mysql", "points-service", "account-service")
SEEDED = 20_000_000
KILLED = 137  # 128 + SIGKILL: what an engine does to a container that does not stop in time


class Demo:
    """
    The compose file, and what users of the demo ask.

    Args:
        program: `docker-compose`, or the Compose plugin as a program of its own.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        port = free_port_block()
        self._account, self._points = (f"http://127.0.0.1:{port + offset}" for offset in (0, 1))
        self._environment = {**os.environ, "ACCOUNT_PORT": str(port), "POINTS_PORT": str(port + 1)}
        self.sent: dict[str, int] = {}

    def compose(self, *arguments: str) -> str:
        """Run Compose on the file."""
        command = (self._program, "--ansi", "never", "-p", PROJECT, *arguments)
        return run(*command, cwd=CHECKOUT, env=self._environment)

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine knows of the container of a service."""
        identity = self.compose("ps", "--all", "-q", service).strip()
        (answer,) = json.loads(run("docker", "inspect", identity))
        return dict(answer)

    def up(self) -> None:
        """Bring the demo up and wait until everything is healthy."""
        self.compose("up", "-d")
        self.wait_healthy()

    def wait_healthy(self) -> None:
        """Wait for the health checks of all servers."""
        for service in SERVERS:
            until(
                lambda s=service: self.inspect(s)["State"]["Health"]["Status"] == "healthy",
                f"{service} is healthy",
                120,
            )

    def ask(self, url: str, body: object = None) -> tuple[int, Any]:
        """Send a request; status 0: nobody answered."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except (OSError, http.client.HTTPException) as error:
            return 0, repr(error)

    def transfer(self, transfer_id: str, amount: int = 2500) -> None:
        """Transfer money, repeating as a client does until it is told that it happened."""
        body = {"transfer_id": transfer_id, "from": "alice", "to": "bob", "amount": amount}
        self.sent[transfer_id] = amount
        until(
            lambda: self.ask(f"{self._account}/transfers", body)[0] in (200, 201),
            f"transfer {transfer_id}",
            120,
        )

    def arm(self, fault: str, transfer_id: str) -> None:
        """Press a button of the page."""
        status, answer = self.ask(f"{self._account}/faults", {"fault": fault, "transfer_id": transfer_id})
        assert status == 200, answer

    def check_books(self) -> None:
        """Every transfer of this run earned its points once, no money came or went, and nothing is extra."""
        due = {transfer_id: amount // 100 for transfer_id, amount in self.sent.items()}

        def entries() -> dict[str, int] | None:
            status, answer = self.ask(f"{self._points}/points/alice/entries")
            return {e["transfer_id"]: e["points"] for e in answer["entries"]} if status == 200 else None

        until(lambda: (entries() or {}).keys() >= due.keys(), "points for every transfer", 120)
        assert entries() == due
        points = sum(due.values())
        assert self.ask(f"{self._points}/points/alice") == (200, {"user": "alice", "points": points})
        status, answer = self.ask(f"{self._account}/accounts")
        balances = {account["user"]: account["balance"] for account in answer["accounts"]}
        assert status == 200
        assert balances["bob"] - balances["alice"] == 2 * sum(self.sent.values()), balances
        assert sum(balances.values()) == SEEDED, balances
        say(f"books agree: {len(due)} transfers, {points} points")

    def check_confinement(self) -> None:
        """No process of a server is root's, and ports are published on loopback only."""
        for service in SERVERS:
            container = self.inspect(service)
            owners = run("docker", "top", container["Id"], "-eo", "pid,uid").split()[3::2]
            assert owners, service
            assert "0" not in owners, f"{service} runs as root: {owners}"
            for bindings in container["NetworkSettings"]["Ports"].values():
                assert all(binding["HostIp"] == "127.0.0.1" for binding in bindings or ()), service
        say("no process is root's, ports are published on 127.0.0.1 only")

    def check_stopped_cleanly(self, service: str) -> None:
        """The container ended by itself within its stop_grace_period: 10 s, the broker's 30 s."""
        code = self.inspect(service)["State"]["ExitCode"]
        assert code != KILLED, f"{service} did not stop in time and was killed"
        say(f"{service} stopped by itself, exit code {code}")


def check(program: str) -> None:
    """Run the check with this Compose; afterwards its containers, volumes and networks are gone."""
    demo = Demo(program)
    try:
        _check(demo)
    except (AssertionError, subprocess.CalledProcessError):
        print(demo.compose("logs", "--tail=15"), file=sys.stderr)
        raise
    finally:
        demo.compose("down", "--volumes")


def _check(demo: Demo) -> None:
    """Up, transfer, points, faults, restart of every container, down and up: nothing is lost."""
    demo.up()
    demo.check_confinement()
    demo.transfer("up")
    demo.check_books()

    say("the account service kills itself right after its COMMIT")
    demo.arm("kill_after_commit", "after-commit")
    demo.transfer("after-commit")
    assert demo.inspect("account-service")["RestartCount"] == 1
    demo.check_books()

    say("the points service is killed from outside")
    os.kill(demo.inspect("points-service")["State"]["Pid"], signal.SIGKILL)
    demo.transfer("points-down")
    demo.check_books()
    assert demo.inspect("points-service")["RestartCount"] == 1

    for service in SERVERS:
        demo.compose("stop", service)
        demo.check_stopped_cleanly(service)
        demo.compose("start", service)
        demo.transfer(f"after-{service}")
    demo.wait_healthy()
    demo.check_books()

    demo.compose("stop")
    for service in SERVERS:
        demo.check_stopped_cleanly(service)
    demo.compose("down")
    say("down, and up again")
    demo.up()
    demo.transfer("up-again")
    demo.check_books()
