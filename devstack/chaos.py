"""
`python -m devstack.chaos`: both demo services under load while everything they need breaks.

Processes are killed, paused and restarted, and lines are cut, in random overlap; then all of it is
healed, and the books of both databases must agree transfer by transfer. The seed chooses the
faults; what they meet is up to the machine, so the same seed is the same plan, not the same run.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from devstack.database_cluster import DatabaseCluster
from devstack.errors import StackError
from devstack.evidence import Evidence
from devstack.faults import Fault, make_plan
from devstack.galera import GaleraCluster
from devstack.group_replication import GroupReplicationCluster
from devstack.lab import Lab
from devstack.ledger import Books
from devstack.load import SEEDS, Load
from devstack.settings import CHECKOUT

EXIT_OK: Final = 0
EXIT_BROKEN: Final = 1  # the invariant does not hold, or the lab could not be set up
EXIT_USAGE: Final = 2  # argparse's own
EXIT_INTERRUPTED: Final = 130

DEFAULT_FOLDER: Final = CHECKOUT / ".devstack" / "chaos"
CLUSTERS: Final[Mapping[str, type[DatabaseCluster]]] = {
    "galera": GaleraCluster,
    "group-replication": GroupReplicationCluster,
}
_SECONDS_A_FAULT: Final = 3.0


def problems(books: Books, load: Load) -> list[str]:
    """Return in words what is wrong: in the books, and in what clients were told."""
    found = books.problems(sum(SEEDS.values()))
    for transfer_id, txn_id in sorted(load.committed.items()):
        transfer = books.transfers.get(transfer_id)
        if transfer is None or transfer.txn_id != txn_id:
            found.append(
                f"a client was told that {transfer_id} committed as {txn_id}; the books say {transfer}"
            )
    found += [
        f"a client was told 409, and {id_} is committed"
        for id_ in sorted(load.refused & set(books.transfers))
    ]
    found += [f"no fault explains this answer: {surprise}" for surprise in load.surprises]
    found += [f"{transfer_id} was never answered for good" for transfer_id in sorted(load.undecided)]
    return found


def sentence(
    seed: int, plan: Sequence[Fault], books: Books, evidence: Evidence, *, given_up: int, seconds: float
) -> str:
    """Say the whole run in one sentence."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(f.kind for f in plan).items()))
    verdicts = ", ".join(f"{verdict} {count}" for verdict, count in sorted(evidence.check_backs.items()))
    return (
        f"chaos: seed {seed}, {len(books.transfers)} transfers committed in {seconds:.0f} s "
        f"under {len(plan)} faults ({kinds or 'none'}): "
        f"{len(books.missing)} missing, {len(books.extra)} extra, {len(books.twice)} twice; "
        f"the inbox caught {evidence.duplicates} duplicates, {evidence.check_backs.total()} check-backs were "
        f"answered ({verdicts or 'none came'}), deliveries were held {evidence.held} times, "
        f"the broker gave {given_up} half messages up, the relay published {evidence.relayed} messages again."
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="./dev chaos", description=__doc__.strip().splitlines()[2])
    parser.add_argument("--seed", type=int, help="chooses the faults (default: a random one, printed)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="how long faults begin (default: %(default)g)"
    )
    parser.add_argument("--faults", type=int, help=f"how many (default: one for each {_SECONDS_A_FAULT:g} s)")
    parser.add_argument("--transfers", type=int, default=0, help="go on until so many are committed")
    parser.add_argument("--clients", type=int, default=6, help="threads of the load (default: %(default)s)")
    parser.add_argument(
        "--longest", type=float, default=8.0, help="seconds a fault lasts at most (default: %(default)g)"
    )
    parser.add_argument(
        "--impatient", action="store_true", help="the broker gives up after 3 questions: the relay's hour"
    )
    parser.add_argument(
        "--cluster",
        choices=list(CLUSTERS),
        help="brokers and databases that fail over, and failovers among the faults",
    )
    parser.add_argument(
        "--folder", type=Path, default=DEFAULT_FOLDER, help="where everything lives (default: %(default)s)"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the lab and return the exit code."""
    options = build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        databases = CLUSTERS.get(options.cluster)
        with Lab(options.folder, impatient=options.impatient, databases=databases) as lab:
            found = experiment(lab, options)
    except StackError as exc:
        print(f"chaos: {exc}", file=sys.stderr)
        return EXIT_BROKEN
    except KeyboardInterrupt:
        print("\nchaos: interrupted, everything is stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_BROKEN if found else EXIT_OK


def experiment(lab: Lab, options: argparse.Namespace) -> list[str]:
    """
    Do what the options say in a lab that runs, print the result, and return what is wrong.

    The last line printed is one sentence with the figures.
    """
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    count = round(options.seconds / _SECONDS_A_FAULT) if options.faults is None else options.faults
    plan = make_plan(
        seed,
        list(lab.keepers),
        list(lab.lines),
        lab.switches,
        seconds=options.seconds,
        count=count,
        longest=options.longest,
    )
    lab.say(f"seed {seed}: {count} faults in {options.seconds:g} s; the same again with --seed {seed}")
    began = time.monotonic()
    load = lab.start_load(options.clients)
    lab.run(plan, load, transfers=options.transfers)
    books = lab.heal(load)
    seconds = time.monotonic() - began
    evidence, given_up = lab.evidence(), lab.given_up()
    _print_counts("answers to clients", load.answers)
    _print_counts("errors that services logged", evidence.errors)
    found = problems(books, load)
    for problem in found:
        print(f"chaos: {problem}")
    if found:
        print(f"chaos: the logs stay in {lab.stack.settings.folder}")
    print(sentence(seed, plan, books, evidence, given_up=given_up, seconds=seconds), flush=True)
    return found


def _print_counts(title: str, counts: Counter[str]) -> None:
    print(f"{title}: " + (", ".join(f"{what} {count}" for what, count in counts.most_common()) or "none"))


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
