"""The fault lab's own judgement, on fabricated books: one that finds nothing wrong would be worthless."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from devstack import chaos
from devstack.chaos import problems, sentence
from devstack.evidence import Evidence
from devstack.faults import (
    LINE_FAULTS,
    PROCESS_FAULTS,
    Fault,
    FaultMachine,
    make_plan,
)
from devstack.ledger import Books, Entry, Transfer
from devstack.load import SEEDS, Load
from devstack.proxy import TcpProxy
from tests.kit.wait import until

PROCESSES = ["account-1", "broker", "database"]
LINES = ["line 1", "line 2"]
SWITCHES = {"writes": ["read-only"], "primary": ["killed", "demoted"]}


def plan(seed: int, count: int = 40) -> list[Fault]:
    return make_plan(seed, PROCESSES, LINES, SWITCHES, seconds=30, count=count, longest=8)


def test_a_seed_is_a_plan() -> None:
    """The same seed chooses the same faults, another one others."""
    assert plan(1) == plan(1)
    assert plan(1) != plan(2)


def test_a_plan_leaves_nothing_out() -> None:
    """Everything is hit before something is hit twice; kinds fit their targets; times are in order."""
    kinds = {
        **dict.fromkeys(PROCESSES, PROCESS_FAULTS),
        **dict.fromkeys(LINES, LINE_FAULTS),
        **SWITCHES,
    }
    assert {fault.target for fault in plan(3, count=7)} == kinds.keys()
    for fault in plan(3):
        assert fault.kind in kinds[fault.target]
        assert 0 <= fault.at <= 30
        assert 0.5 <= fault.seconds <= 8
    assert [fault.at for fault in plan(3)] == sorted(fault.at for fault in plan(3))
    assert {fault.kind for fault in plan(3, count=200)} == {
        *PROCESS_FAULTS,
        *LINE_FAULTS,
        "read-only",
        "killed",
        "demoted",
    }


def test_a_switch_is_off_in_the_end_even_if_its_server_was_away() -> None:
    """A server that was killed may have been turned on before: it is asked until it answers."""
    turned: list[bool] = []
    answers = iter([True, False, False, True])

    def turn(on: bool) -> None:
        if not next(answers):
            raise OSError("connection refused")
        turned.append(on)

    said: list[str] = []
    FaultMachine({}, {}, {"writes": {"read-only": turn}}, said.append).run(
        [Fault(0.0, "read-only", "writes", 0.01)]
    )
    assert turned == [True, False]
    assert said == ["read-only: writes, for 0.0 s"]


def test_faults_in_turn_wait_until_all_is_well_and_are_noted() -> None:
    """From before it was turned on until it was off; the next one only after that, and after calm."""
    told: list[tuple[str, float]] = []

    def tell(what: str) -> None:
        told.append((what, time.time()))

    writes = {"read-only": lambda on: tell("on" if on else "off")}
    machine = FaultMachine({}, {}, {"writes": writes}, lambda _text: None)
    faults = [Fault(99.0, "read-only", "writes", seconds) for seconds in (0.02, 0.01)]
    machine.run_in_turn(faults, calm_seconds=0.01, wait_well=lambda: tell("well"))
    assert [what for what, _ in told] == ["on", "off", "well"] * 2
    assert [noted.fault for noted in machine.happened] == faults
    (first, _), (second, _) = [(noted.began, noted.ended) for noted in machine.happened]
    moments = [moment for _, moment in told]
    assert first <= moments[0] < moments[1] <= machine.happened[0].ended <= moments[2] < second <= moments[3]


BOOKS = Books(
    balances={"payer": sum(SEEDS.values())},
    transfers={"t1": Transfer("payer", 300, "x1"), "t2": Transfer("payer", 500, "x2")},
    entries={"t1": Entry("payer", 3, "x1"), "t2": Entry("payer", 5, "x2")},
    points={"payer": 8},
)


def load(**told: object) -> Load:
    """Return a load that never ran, with what its clients were told."""
    made = Load([], "run", clients=0)
    for name, value in told.items():
        setattr(made, name, value)
    return made


def test_good_books_have_no_problems() -> None:
    """And clients that were told the truth."""
    assert problems(BOOKS, load(committed={"t1": "x1"}, refused={"t3"})) == []


@pytest.mark.parametrize(
    ("books", "told", "words"),
    [
        (replace(BOOKS, entries={"t1": BOOKS.entries["t1"]}), {}, "transfers without points: ['t2']"),
        (replace(BOOKS, transfers={"t1": BOOKS.transfers["t1"]}), {}, "points without a transfer: ['t2']"),
        (replace(BOOKS, twice=frozenset({"t2"})), {}, "transfers with points twice: ['t2']"),
        (replace(BOOKS, points={"payer": 13}), {}, "the entries add up to"),
        (replace(BOOKS, balances={"payer": 1}), {}, "the sum of balances is 1 fen"),
        (BOOKS, {"committed": {"t9": "x9"}}, "told that t9 committed as x9; the books say None"),
        (BOOKS, {"committed": {"t1": "x2"}}, "told that t1 committed as x2"),
        (BOOKS, {"refused": {"t2"}}, "told 409, and t2 is committed"),
        (BOOKS, {"surprises": ["t1: 500"]}, "no fault explains this answer: t1: 500"),
        (BOOKS, {"undecided": {"t1"}}, "t1 was never answered for good"),
    ],
)
def test_each_kind_of_problem_is_found(books: Books, told: dict[str, object], words: str) -> None:
    """By its ids."""
    assert words in " ".join(problems(books, load(**told)))


def test_the_last_line_is_one_sentence_with_the_figures(tmp_path: Path) -> None:
    """Counted from log lines; what is no JSON, or of others, is passed over."""
    log = tmp_path / "account-1.log"
    log.write_text(
        '{"event": "duplicate skipped", "logger": "rmq_txn.consumer", "level": "info"}\n'
        '{"event": "check-back answered", "verdict": "commit", "logger": "rmq_txn.checkback"}\n'
        '{"event": "check-back answered", "verdict": "unknown", "logger": "rmq_txn.checkback"}\n'
        '{"event": "handler failed", "logger": "rmq_txn.consumer", "level": "error"}\n'
        '{"event": "published again: the broker may have given this message up", "level": "warning"}\n'
        '{"event": "not ours", "logger": "uvicorn.error", "level": "error"}\n'
        'Traceback (most recent call last):\n{"event": "cut off by kil'
    )
    evidence = Evidence([log])
    assert evidence.errors == {"handler failed": 1}
    books = replace(BOOKS, entries={"t1": BOOKS.entries["t1"]})
    faults = [Fault(1.0, "pause", "broker", 2.0)]
    assert sentence(7, faults, books, evidence, given_up=1, seconds=61.2) == (
        "chaos: seed 7, 2 transfers committed in 61 s under 1 faults (1 pause): 1 missing, 0 extra, 0 twice; "
        "the inbox caught 1 duplicates, 2 check-backs were answered (commit 1, unknown 1), deliveries were "
        "held 0 times, the broker gave 1 half messages up, the relay published 1 messages again."
    )


class FakeLab:
    """Starts nothing."""

    def __init__(self, folder: Path, *, impatient: bool, databases: object) -> None:
        self.folder, self.impatient = folder, impatient

    def __enter__(self) -> FakeLab:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("found", "code"), [([], 0), (["transfers without points: ['t2']"], 1)])
def test_the_exit_code_says_whether_the_books_agree(
    monkeypatch: pytest.MonkeyPatch, found: list[str], code: int
) -> None:
    """0 or 1; options reach the experiment."""
    seen = []
    monkeypatch.setattr(chaos, "Lab", FakeLab)
    monkeypatch.setattr(chaos, "experiment", lambda _lab, options: seen.append(options) or found)
    monkeypatch.setattr(chaos.signal, "signal", lambda *_: None)
    assert chaos.main(["--seed", "5", "--seconds", "9"]) == code
    assert (seen[0].seed, seen[0].seconds) == (5, 9.0)


@pytest.fixture
def echo() -> Iterator[TcpProxy]:
    """Yield a proxy in front of a server that echoes."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(1024):
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with server, TcpProxy(*server.getsockname()) as proxy:
        yield proxy
        server.shutdown(socket.SHUT_RDWR)


def connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=60)


def answer(client: socket.socket, seconds: float = 60.0) -> bytes | None:
    """Return what comes back; b"" is a closed line, None silence for that long."""
    client.settimeout(seconds)
    try:
        client.sendall(b"x")
        return client.recv(10)
    except TimeoutError:
        return None
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("kind", "meanwhile", "afterwards"),
    [
        ("cut", b"", b""),
        ("half-open", b"", b""),
        ("black hole", None, b""),
        ("black hole to the client", None, b""),
        ("black hole to the server", None, b""),
        ("hold", None, b"x"),
    ],
)
def test_a_fault_does_to_an_open_line_what_its_name_says(
    echo: TcpProxy, kind: str, meanwhile: bytes | None, afterwards: bytes
) -> None:
    """And a new connection is served after the line is healed."""
    with closing(connect(echo)) as client:
        assert answer(client) == b"x"
        LINE_FAULTS[kind](echo)
        assert answer(client, 0.3 if meanwhile is None else 60.0) == meanwhile
        echo.heal()
        assert answer(client)[:1] == afterwards
    with closing(connect(echo)) as client:
        assert answer(client) == b"x"
    until(lambda: echo.lines == [], "closed lines are forgotten")


def test_a_line_that_is_cut_refuses_new_connections(echo: TcpProxy) -> None:
    """Until it is healed."""
    echo.cut()
    with closing(connect(echo)) as client:
        assert answer(client) == b""
