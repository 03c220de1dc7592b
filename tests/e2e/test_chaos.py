"""The fault lab, short and with a fixed seed; and an outage longer than the broker's patience."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator

import pytest

from devstack import LocalStack
from devstack.chaos import build_parser, experiment
from devstack.faults import make_plan
from devstack.lab import Lab
from devstack.ledger import Ledger
from devstack.load import SEEDS
from devstack.services import TOPIC
from rmq_txn import Database, IdempotentConsumer, RocketMQ
from rmq_txn.message import Delivery
from rmq_txn.transport import Deliver
from rmq_txn.verdict import Answer
from tests.kit.transports import Wrapped
from tests.kit.wait import until

pytestmark = pytest.mark.servers

SEED, SECONDS, FAULTS = 84434, 20, 16
# The first delivery and 16 redeliveries; then the broker moves a message to the dead-letter topic.
ALL_DELIVERIES = 17


@pytest.fixture(scope="module")
def lab(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Start a lab of this module's own; `stack` only so that it is skipped where servers can't run."""
    folder = tmp_path_factory.mktemp("chaos") / "lab"
    with Lab(folder, redeliveries=" ".join(["1s"] * 18)) as lab:
        yield lab
    shutil.rmtree(folder)


def test_the_seed_hits_what_matters(lab: Lab) -> None:
    """Broker, database and a process of each service killed; the broker's line silent; writes refused."""
    plan = make_plan(
        SEED,
        list(lab.keepers),
        list(lab.lines),
        lab.switches,
        seconds=SECONDS,
        count=FAULTS,
        longest=8.0,
    )
    hits = {(fault.kind, fault.target) for fault in plan}
    assert {fault.target for fault in plan} == {*lab.keepers, *lab.lines, *lab.switches}
    assert hits >= {("kill -9", name) for name in ("broker", "database", "account-1", "points-1")}
    assert hits >= {(f"black hole to the {end}", "the line to the broker") for end in ("client", "server")}


def test_the_books_agree_after_a_short_run_of_random_faults(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every committed transfer earns its points once, and every client was told the truth."""
    arguments = f"--seed {SEED} --seconds {SECONDS} --faults {FAULTS} --clients 4"
    found = experiment(lab, build_parser().parse_args(arguments.split()))
    output = capsys.readouterr().out
    assert found == [], output
    last = output.splitlines()[-1]
    assert last.startswith(f"chaos: seed {SEED}, ")
    assert "0 missing, 0 extra, 0 twice" in last


@pytest.mark.long
def test_every_point_arrives_after_an_outage_longer_than_all_redeliveries(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """The points database is away until the broker has given up on a consumer that always refuses."""
    deliveries: Counter[str] = Counter()

    def refuse(_deliver: Deliver) -> Deliver:
        def refused(delivery: Delivery) -> Answer:
            deliveries[delivery.message_id] += 1
            return Answer.RETRY

        return refused

    lines = [lab.lines[f"the line to the database of points-{number}"] for number in (1, 2)]
    broker = Wrapped(RocketMQ(lab.stack.name_server, new_group_from="latest"), around_deliver=refuse)
    database = Database.mysql(lab.stack.database_url("points"))
    yardstick = IdempotentConsumer(group="yardstick", broker=broker, database=database)
    yardstick.handles(TOPIC)(lambda _txn, _delivery: None)
    with yardstick, Ledger(lab.stack) as ledger:
        for line in lines:
            line.cut()
        load = lab.start_load(clients=1)
        until(lambda: len(load.committed) >= 5, "some transfers", 60)
        load.stop()
        load.join(60)
        assert ledger.read().missing >= load.committed.keys()
        until(
            lambda: sum(count >= ALL_DELIVERIES for count in deliveries.values()) >= len(load.committed),
            "the broker's last redelivery",
            180,
        )
        for line in lines:
            line.heal()
        until(lambda: not ledger.read().missing, "every point", 120)
        assert ledger.read().problems(sum(SEEDS.values())) == []
    database.close()
