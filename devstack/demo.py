"""`python -m devstack.demo`: a transfer that earns points, and what happens when a service dies."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import secrets
import signal
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from devstack.demo_page import DEFAULT_PORT, page_served
from devstack.errors import StackError
from devstack.keeper import kept_up
from devstack.ledger import Ledger
from devstack.local import LocalStack, forget_data
from devstack.machine import require_free_ports
from devstack.narrator import Narrator
from devstack.server import poll_until
from devstack.services import (
    TOPIC,
    DemoService,
    account_service,
    page_settings,
    points_service,
    start_together,
    stop_together,
)
from devstack.settings import CHECKOUT, StackSettings

EXIT_OK = 0
EXIT_FAILED = 1  # a step went otherwise than promised, or the machine lacks something
EXIT_USAGE = 2  # argparse's own
EXIT_INTERRUPTED = 130  # Ctrl-C before the end, as shells count it: 128 + SIGINT

DEFAULT_FOLDER = CHECKOUT / ".devstack" / "demo"
# The money of every run in this folder; one run moves 60 yuan.
SEEDS = {"alice": 10_000_000, "bob": 10_000_000}

# Check-back comes within transaction timeout and check interval, redelivery after a rebalance; a
# busy small machine takes several times as long.
_DELIVERY_SECONDS = 60.0
_DEATH_SECONDS = 20.0


class DemoError(Exception):
    """Something went otherwise than the demo promises; the text says what."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m devstack.demo",
        description="Transfer money, earn points, kill the services in between, count.",
    )
    parser.add_argument("--once", action="store_true", help="stop everything after the tutorial")
    parser.add_argument(
        "--fresh", action="store_true", help="begin anew: remove all that earlier runs left in the folder"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=DEFAULT_FOLDER,
        help="where servers and logs live (default: %(default)s)",
    )
    parser.add_argument("--page-port", type=int, default=DEFAULT_PORT, help="default: %(default)s")
    parser.add_argument("--account-port", type=int, default=8001, help="default: %(default)s")
    parser.add_argument("--points-port", type=int, default=8002, help="default: %(default)s")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the demo and return the exit code."""
    options = build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _running(options) as tutorial:
            tutorial.show_page()
            tutorial.run()
            if not options.once:
                _stay_up(tutorial)
    except (StackError, DemoError) as exc:
        print(f"\ndemo: {exc}", file=sys.stderr)
        if isinstance(exc, DemoError):
            print("demo: if an earlier run left this behind, --fresh begins anew", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("\ndemo: interrupted, everything is stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


@contextmanager
def _running(options: argparse.Namespace) -> Iterator[Tutorial]:
    """Start the servers and both services; stop all of them at the end."""
    say = Narrator()
    # Before the servers take their ten seconds.
    require_free_ports("the account service (--account-port)", [options.account_port])
    require_free_ports("the points service (--points-port)", [options.points_port])
    if not options.once:
        require_free_ports("the page (--page-port)", [options.page_port])
    settings = StackSettings.for_tests(options.folder)
    if options.fresh:
        forget_data(settings)
    folder = settings.folder
    say(f"starting Apache RocketMQ {settings.rocketmq_version} and a database in {folder}")
    with LocalStack(settings) as stack:
        stack.create_topic(TOPIC)
        say("they run: name server, broker, database; real ones, with fast settings for a demo:")
        say.more(
            f"the broker asks about an unfinished transaction after "
            f"{settings.transaction_timeout_seconds:g} s here, 6 s by default,"
        )
        (replicas,) = stack.open_ports
        say.more(f"and again every {settings.transaction_check_interval_seconds:g} s, 30 s by default")
        say.more(f"they listen on 127.0.0.1; port {replicas}, for replicas, RocketMQ opens on every address")
        for_account, for_points = page_settings(folder, options.points_port)
        account = account_service(stack, folder, port=options.account_port, seeds=SEEDS, more=for_account)
        points = points_service(stack, folder, port=options.points_port, more=for_points)
        try:
            start_together(account, points)
            say(f"account service on {account.url}, points service on {points.url}")
            with Ledger(stack) as ledger, ExitStack() as page:
                url = ""
                if not options.once:
                    url = page.enter_context(page_served(stack, account, points, options.page_port))
                yield Tutorial(say, account, points, ledger, page=url)
        finally:
            stop_together(account, points)
    say("everything is stopped; the data stays for the next run")


class Tutorial:
    """
    The steps, in order; each one raises DemoError if it goes otherwise than it says.

    Args:
        say: prints.
        account: the account service, serving.
        points: the points service, serving.
        ledger: reads both databases behind the services' back.
        page: its URL; "": nobody watches.
    """

    def __init__(
        self, say: Narrator, account: DemoService, points: DemoService, ledger: Ledger, page: str = ""
    ) -> None:
        self.page = page
        self.account = account
        self.points = points
        self._say = say
        self._ledger = ledger
        # Data survives in the folder, so ids of this run must differ from those of earlier ones.
        self._run = secrets.token_hex(3)
        self._parked: set[str] = set()  # of earlier runs: nothing comes of them before a person acts

    def show_page(self) -> None:
        """Say where the page is, and open it where there is a screen: the steps can be watched there."""
        if not self.page:
            return
        self._say(f"the page is at {self.page}/ and shows the following steps as they happen")
        if any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
            webbrowser.open(f"{self.page}/")

    def run(self) -> None:
        """Run all steps."""
        self._settle_earlier_runs()
        self._happy_path()
        self._business_failure()
        self._account_service_dies()
        self._points_service_dies()
        self._count()

    def _settle_earlier_runs(self) -> None:
        # One that was interrupted may have left a transfer whose message comes only now.
        self._wait(lambda: not self._ledger.read().awaited, "the points of earlier runs")
        books = self._ledger.read()
        self._parked = books.missing & books.parked
        if self._parked:
            self._say("parked by earlier runs, so these transfers have no points and are not counted:")
            self._say.more(", ".join(sorted(self._parked)))
            self._say.more('the page has a button "mend" for each; --fresh begins anew without them')

    def _happy_path(self) -> None:
        self._say.title("1. A transfer earns points")
        transfer_id, body = self._order("happy", "alice", "bob", 2500)
        before = self._points_of("alice")
        answer = self._post(body)
        self._expect(answer, 201)
        self._wait_for_points(transfer_id)
        self._say(f"alice has {self._points_of('alice') - before} points more: one a yuan (100 fen)")
        self._say("the client did not hear the answer, say, and sends the same transfer again:")
        repeated = self._post(body)
        self._expect(repeated, 200)
        if repeated["txn_id"] != answer["txn_id"]:
            raise DemoError("the repeated transfer has another txn_id, the money moved twice")
        self._say("the first result; nothing moved twice")

    def _business_failure(self) -> None:
        self._say.title("2. A transfer that fails sends nothing")
        failed, body = self._order("too-much", "bob", "alice", 10**12)
        self._expect(self._post(body), 409)
        rolled_back = list(self.account.log_lines("rolled back by its block, nothing was sent"))
        if not rolled_back:
            raise DemoError("the account service has not logged the rollback")
        self._say("its transaction was rolled back before any message was sent; the log of the service:")
        self._say.more(f'"{rolled_back[-1]["event"]}" cause={rolled_back[-1]["cause"]}')
        self._say("a transfer sent after it:")
        later, body = self._order("later", "bob", "alice", 1000)
        self._expect(self._post(body), 201)
        self._wait_for_points(later)
        books = self._ledger.read()
        if failed in books.transfers or failed in books.entries:
            raise DemoError(f"the failed transfer {failed} left traces")
        self._say(f"{failed} is in neither database")

    def _account_service_dies(self) -> None:
        self._say.title("3. The account service is killed between COMMIT and telling the broker")
        transfer_id, body = self._order("orphan", "alice", "bob", 1500)
        self.account.stop()
        self.account.start_with_crash_point("after_commit", transfer_id)
        self._say(
            f"account service restarted; it will kill -9 itself right after the COMMIT of {transfer_id}"
        )
        self._print_request(body)
        try:
            answer = self.account.post("/transfers", body)
        except (OSError, http.client.HTTPException) as exc:
            self._say(f"no answer, the connection dropped: {type(exc).__name__}")
        else:
            raise DemoError(f"the service was to be killed, it answered {answer.status}")
        self._wait_for_death(self.account)
        books = self._ledger.read()
        if transfer_id not in books.transfers:
            raise DemoError("the transfer is not committed, the service died too early")
        self._say("the money moved, the database says so; the broker holds a half message, no points yet")
        died = time.monotonic()
        self.account.start()
        self._say("account service started again; now the broker asks it: commit or roll back?")
        self._wait_for_points(transfer_id)
        self._say(f"check-back (事务回查) delivered it {time.monotonic() - died:.1f} s after the kill")
        for line in self.account.log_lines("check-back answered"):
            if line.get("txn_id") == books.transfers[transfer_id].txn_id:
                self._say.more(f'"{line["event"]}" verdict={line["verdict"]}')
        self._say("the client repeats the transfer it never got an answer for:")
        self._expect(self._post(body), 200)

    def _points_service_dies(self) -> None:
        self._say.title("4. The points service is killed between COMMIT and its ack")
        transfer_id, body = self._order("twice", "alice", "bob", 1000)
        self.points.stop()
        self.points.start_with_crash_point("after_commit_before_ack", transfer_id)
        self._say(f"points service restarted; it will kill -9 itself right after the COMMIT of {transfer_id}")
        answer = self._post(body)
        self._expect(answer, 201)
        self._wait_for_death(self.points)
        if transfer_id not in self._ledger.read().entries:
            raise DemoError("the points are not committed, the service died too early")
        before = self._ledger.read().points["alice"]
        self._say("the points are committed, but the broker got no ack and will deliver again")
        died = time.monotonic()
        self.points.start()
        self._say("points service started again")

        def skipped() -> bool:
            lines = self.points.log_lines("duplicate skipped")
            return any(line.get("txn_id") == answer["txn_id"] for line in lines)

        self._wait(skipped, "the redelivery")
        self._say(f'delivered again {time.monotonic() - died:.1f} s after the kill: "duplicate skipped"')
        if self._points_of("alice") != before:
            raise DemoError("the duplicate changed the points")
        self._say(f"alice still has {before} points; effects inside the database happen once")

    def _count(self) -> None:
        self._say.title("The books")
        total = sum(SEEDS.values())
        self._wait(lambda: self._ledger.read().missing <= self._parked, "points for each transfer")
        books = self._ledger.read()
        books = books.without(self._parked & books.missing)  # one may have been mended meanwhile
        print(f"  {'transfer':<24} {'payer':<8} {'fen':>8} {'points':>7}")
        for transfer_id, transfer in sorted(books.transfers.items(), key=lambda item: item[1].txn_id):
            if transfer_id.startswith(self._run):
                earned = books.entries[transfer_id].points
                print(f"  {transfer_id:<24} {transfer.payer:<8} {transfer.amount:>8} {earned:>7}")
        print(f"  balances: {books.balances}, points: {books.points}")
        problems = books.problems(total)
        if problems:
            raise DemoError("the books are wrong:\n  " + "\n  ".join(problems))
        print(f"  sum of balances: {books.total} fen, as at the beginning")
        print(
            f"  {{committed transfers}} == {{transfers with points}}: {len(books.transfers)} == "
            f"{len(books.entries)}, nothing missing, nothing extra, nothing twice"
        )
        print(
            "  (effects inside your database happen once; delivery is at least once; order is not promised)"
        )

    def _order(self, name: str, payer: str, payee: str, amount: int) -> tuple[str, dict[str, Any]]:
        transfer_id = f"{self._run}-{name}"
        return transfer_id, {"transfer_id": transfer_id, "from": payer, "to": payee, "amount": amount}

    def _print_request(self, body: dict[str, Any]) -> None:
        self._say(f"POST {self.account.url}/transfers {json.dumps(body)}")

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        self._print_request(body)
        began = time.monotonic()
        answer = self.account.post("/transfers", body)
        self._say.more(
            f"-> {answer.status} {json.dumps(answer.body)} ({(time.monotonic() - began) * 1000:.0f} ms)"
        )
        return {"status": answer.status, **answer.body}

    def _expect(self, answer: dict[str, Any], status: int) -> None:
        if answer["status"] != status:
            raise DemoError(f"the answer is {answer['status']}, expected is {status}")

    def _points_of(self, user: str) -> int:
        return int(self.points.get(f"/points/{user}").body["points"])

    def _wait_for_points(self, transfer_id: str) -> None:
        began = time.monotonic()
        self._wait(lambda: transfer_id in self._ledger.read().entries, f"the points of {transfer_id}")
        entry = self._ledger.read().entries[transfer_id]
        self._say(
            f"the points service has {transfer_id}: {entry.points} points for {entry.user} "
            f"(waited {time.monotonic() - began:.1f} s)"
        )

    def _wait_for_death(self, service: DemoService) -> None:
        self._wait(lambda: service.exit_code is not None, f"the end of the {service.name}", _DEATH_SECONDS)
        if service.exit_code != -signal.SIGKILL:
            raise DemoError(f"the {service.name} ended with {service.exit_code}, not by SIGKILL")
        self._say(f"the {service.name} is dead: killed by signal 9")

    def _wait(self, condition: Callable[[], bool], what: str, seconds: float = _DELIVERY_SECONDS) -> None:
        if not poll_until(condition, seconds):
            logs = "\n".join(
                f"--- {service.name}, {service.log_path}:\n{service.log_tail(20)}"
                for service in (self.account, self.points)
            )
            raise DemoError(f"waited {seconds:g} s for {what} in vain\n{logs}")


def _stay_up(tutorial: Tutorial) -> None:
    """
    Print where to go on and wait for Ctrl-C or SIGTERM, which is a good end.

    Until then services that die are started again: the page has buttons that kill them.
    """
    account, points = tutorial.account.url, tutorial.points.url
    print(
        f"""
Open this page: {tutorial.page}/
It shows each transfer step by step, and has buttons that break things.

Everything stays up until Ctrl-C, and services that die are started again. By hand:

  curl {account}/accounts
  curl -X POST {account}/transfers -H 'Content-Type: application/json' \\
       -d '{{"from": "alice", "to": "bob", "amount": 4200}}'
  curl {points}/points/alice
  curl {points}/points/alice/entries
  curl {account}/health
  curl {account}/openapi.json
""",
        flush=True,
    )
    with kept_up(tutorial.account, tutorial.points):
        try:
            while not threading.Event().wait(3600):
                pass
        except KeyboardInterrupt:
            print("\nstopping ...", flush=True)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
