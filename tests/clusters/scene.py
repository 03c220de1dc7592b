"""Both demo services on a cluster with failover, transfers from several clients, and the books at the end."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Final

from devstack import StackError
from devstack.database_cluster import DatabaseCluster
from devstack.evidence import Evidence
from devstack.ledger import Books, Ledger, drop_the_key_that_hides_duplicates
from devstack.load import SEEDS, Load
from devstack.machine import free_port_block
from devstack.replicas import ReplicatedCluster
from devstack.services import (
    ACCOUNT_DATABASE,
    TOPIC,
    account_service,
    points_service,
    start_together,
    stop_together,
)
from rmq_txn import Database
from tests.kit.broker_administrator import BrokerAdministrator
from tests.kit.wait import until

CLIENTS: Final = 3
SECONDS: Final = 600.0
"""Deadline of each wait: a busy machine needs a minute for the start of a broker alone."""
_QUIET_SECONDS: Final = 12.0  # longer than a check interval: an extra or a second delivery would come by then


class Pauses:
    """Watches a load: the longest time without a committed transfer since `reset`, which is at `began`."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.reset()
        threading.Thread(target=self._watch, daemon=True).start()

    def reset(self) -> None:
        """Begin anew."""
        with self._lock:
            self.began = self._last = time.monotonic()
            self._count, self.longest_seconds = len(self._load.committed), 0.0

    def close(self) -> None:
        """Stop watching."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            with self._lock:
                count, now = len(self._load.committed), time.monotonic()
                if count > self._count:
                    self.longest_seconds = max(self.longest_seconds, now - self._last)
                    self._last, self._count = now, count


class Scene:
    """
    One process of each service on the cluster. See `running`.

    Attributes:
        databases: the cluster that the databases of both services are on, if they are on one.
        load, pauses: of the last `begin_load`.
    """

    def __init__(
        self, cluster: ReplicatedCluster, databases: DatabaseCluster | None, account_module: str
    ) -> None:
        self.cluster = cluster
        self.databases = databases
        self._began = time.monotonic()
        folder, first = cluster.settings.folder, free_port_block()
        self.services = (
            account_service(cluster, folder, port=first, seeds=SEEDS, module=account_module),
            points_service(cluster, folder, port=first + 1),
        )
        self.load = self._new_load()
        self.pauses = Pauses(self.load)

    def begin_load(self) -> None:
        """Let clients transfer money, until `settle`."""
        self.end_load()
        self.load = self._new_load()
        self.pauses = Pauses(self.load)
        self.load.start()

    def end_load(self) -> None:
        """Begin no more transfers."""
        self.load.stop()
        self.pauses.close()

    def _new_load(self) -> Load:
        return Load([self.services[0]], secrets.token_hex(3), clients=CLIENTS)

    def say(self, text: str) -> None:
        """Print one line with the seconds since the start."""
        print(f"[{time.monotonic() - self._began:6.1f} s] {text}", flush=True)

    def wait_for_more(self, count: int, phase: str) -> None:
        """Wait until so many more transfers are committed."""
        goal = len(self.load.committed) + count
        until(lambda: len(self.load.committed) >= goal, f"{count} transfers {phase}", SECONDS)

    def kill_master(self) -> str:
        """Kill -9 the master under load; return its address when another one is known as master."""
        killed = self.cluster.master()
        self.pauses.reset()
        self.cluster.brokers[killed].kill()
        self._wait_for_master_after(killed)
        return killed

    def kill_primary(self) -> int:
        """Kill -9 the database primary under load; return its number when another one takes writes."""
        killed = self._primary()
        self.pauses.reset()
        self._nodes.servers[killed].kill()
        self._wait_for_primary_after(killed, "is killed")
        return killed

    def kill_both(self) -> tuple[str, int]:
        """Kill -9 both at the same moment; return which, when both have successors."""
        master, primary = self.cluster.master(), self._primary()
        self.pauses.reset()
        killers = [
            threading.Thread(target=server.kill)
            for server in (self.cluster.brokers[master], self._nodes.servers[primary])
        ]
        for killer in killers:
            killer.start()
        for killer in killers:
            killer.join()
        self._wait_for_primary_after(primary, "is killed")
        self._wait_for_master_after(master)
        return master, primary

    def demote_primary(self) -> int:
        """Let the primary refuse writes under load; return its number when another one takes them."""
        demoted = self._primary()
        self.pauses.reset()
        self._nodes.demote(demoted)
        self._wait_for_primary_after(demoted, "is demoted")
        return demoted

    def promote(self, number: int) -> None:
        """Let a demoted node be the primary again, under load."""
        self.pauses.reset()
        self._nodes.promote(number)
        until(lambda: self._nodes.primary() == number, "the demoted node is primary again", SECONDS)
        self.say(f"database {number} is primary again")

    def bring_back_node(self, number: int) -> None:
        """Start a killed database; return when every node sees all of them."""
        self._nodes.join(number)
        self._nodes.wait_for_all()
        self.say(f"database {number} is back, primary is {self._primary()}")

    def tell_pause(self, why: str) -> None:
        """Print how long nothing was committed."""
        self.say(f"{why}: no transfer was committed for {self.pauses.longest_seconds:.1f} s at the longest")

    @property
    def _nodes(self) -> DatabaseCluster:
        assert self.databases is not None
        return self.databases

    def _primary(self) -> int:
        found = self._nodes.primary()
        assert found is not None
        return found

    def _wait_for_master_after(self, killed: str) -> None:
        until(lambda: self._master() not in (None, killed), "another replica is master", SECONDS)
        took = time.monotonic() - self.pauses.began
        self.say(f"master {killed} is killed, {self._master()} is known as master after {took:.1f} s")

    def _wait_for_primary_after(self, former: int, what: str) -> None:
        until(lambda: self._nodes.primary() not in (None, former), "another primary", SECONDS)
        took = time.monotonic() - self.pauses.began
        self.say(f"database {former} {what}, {self._primary()} takes writes after {took:.1f} s")

    def bring_back(self, address: str) -> None:
        """Start a killed broker; return when it is a replica in sync again."""
        self.cluster.brokers[address].start()
        until(lambda: self._in_sync() == set(self.cluster.brokers), "both replicas are in sync", SECONDS)
        self.say(f"{address} is back, a slave and in sync; master is {self._master()}")

    def books(self) -> Books:
        """Read both databases."""
        with Ledger(self.cluster) as ledger:
            return ledger.read()

    def cut_replication(self) -> None:
        """Let the master send nothing to its slave any more; it goes on by itself where it may."""
        lines = {"haFlowControlEnable": "true", "maxHaTransferByteInSecond": "0"}
        BrokerAdministrator(self.cluster.master()).configure(lines)

    def forget_copies(self, txn_ids: Iterable[str]) -> int:
        """Delete the outbox rows of transactions; return of how many messages."""
        with (
            closing(Database.mysql(self.cluster.database_url(ACCOUNT_DATABASE))) as database,
            database.transaction() as txn,
        ):
            return txn.executemany(
                "DELETE FROM rmq_txn_outbox WHERE txn_id = %s", [(id_,) for id_ in txn_ids]
            )

    def settle(self, *, lost: frozenset[str] = frozenset()) -> Books:
        """End the load; wait for the points of all but the lost transfers, and for what comes too late."""
        self.end_load()
        self.load.join(SECONDS)
        until(lambda: self.books().missing <= lost, "points for every transfer", SECONDS)
        time.sleep(_QUIET_SECONDS)
        return self.books()

    def tell(self, books: Books) -> Evidence:
        """Print what the run came to; counts of log lines are since the services' start."""
        found = Evidence(service.log_path for service in self.services)
        self.say(
            f"{len(books.transfers)} transfers committed: {len(books.missing)} missing, "
            f"{len(books.extra)} extra, {len(books.twice)} twice; so far the inbox caught {found.duplicates} "
            f"duplicates, check-backs were answered {dict(found.check_backs)}, the relay published "
            f"{found.relayed} messages again; clients were answered {dict(self.load.answers)}"
        )
        return found

    def _master(self) -> str | None:
        with suppress(StackError):  # a failover runs
            return self.cluster.master()
        return None

    def _in_sync(self) -> frozenset[str]:
        with suppress(StackError):
            return self.cluster.replication().in_sync
        return frozenset()


@contextmanager
def running(
    cluster: ReplicatedCluster,
    databases: DatabaseCluster | None = None,
    account_module: str = "demo_account_service",
) -> Iterator[Scene]:
    """Start a cluster and the services, on databases that run; stop them at the end."""
    with cluster:
        cluster.create_topic(TOPIC)
        scene = Scene(cluster, databases, account_module)
        scene.say(f"master is {cluster.master()}, in sync are {sorted(cluster.replication().in_sync)}")
        try:
            start_together(*scene.services)
            drop_the_key_that_hides_duplicates(cluster)
            yield scene
        finally:
            scene.end_load()
            stop_together(*scene.services)
