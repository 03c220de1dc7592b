"""Both demo services on a cluster with failover, transfers from several clients, and the books at the end."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from devstack import StackError
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
from tests.kit.rows import rows
from tests.kit.wait import until

CLIENTS: Final = 3
SECONDS: Final = 600.0
"""Deadline of each wait: a busy machine needs a minute for the start of a broker alone."""
_QUIET_SECONDS: Final = 12.0  # longer than a check interval: an extra or a second delivery would come by then


class Pauses:
    """Watches a load: the longest time without a committed transfer since `reset`, in seconds."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.reset()
        threading.Thread(target=self._watch, daemon=True).start()

    def reset(self) -> None:
        """Begin anew."""
        with self._lock:
            self._last, self._count, self.longest_seconds = time.monotonic(), len(self._load.committed), 0.0

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
    """One process of each service on the cluster, under load. See `running`."""

    def __init__(self, cluster: ReplicatedCluster, account_module: str) -> None:
        self.cluster = cluster
        self._began = time.monotonic()
        folder, first = cluster.settings.folder, free_port_block()
        self.services = (
            account_service(cluster, folder, port=first, seeds=SEEDS, module=account_module),
            points_service(cluster, folder, port=first + 1),
        )
        self.load = Load([self.services[0]], secrets.token_hex(3), clients=CLIENTS)
        self.pauses = Pauses(self.load)

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
        began = time.monotonic()
        self.cluster.brokers[killed].kill()
        until(lambda: self._master() not in (None, killed), "another replica is master", SECONDS)
        took = time.monotonic() - began
        self.say(f"master {killed} is killed, {self._master()} is known as master after {took:.1f} s")
        return killed

    def bring_back(self, address: str) -> None:
        """Start a killed broker; return when it is a replica in sync again."""
        self.cluster.brokers[address].start()
        until(lambda: self._in_sync() == set(self.cluster.brokers), "both replicas are in sync", SECONDS)
        self.say(f"{address} is back, a slave and in sync; master is {self._master()}")

    def books(self) -> Books:
        """Read both databases."""
        with Ledger(self.cluster) as ledger:
            return ledger.read()

    def copies(self) -> set[str]:
        """Return the transaction ids that the outbox of the account service has copies of."""
        url = self.cluster.database_url(ACCOUNT_DATABASE)
        return {_text(row[0]) for row in rows(url, "SELECT txn_id FROM rmq_txn_outbox")}

    def settle(self, *, lost: frozenset[str] = frozenset()) -> Books:
        """End the load; wait for the points of all but the lost transfers, and for what comes too late."""
        self.load.stop()
        self.load.join(SECONDS)
        until(lambda: self.books().missing <= lost, "points for every transfer", SECONDS)
        time.sleep(_QUIET_SECONDS)
        return self.books()

    def tell(self, books: Books) -> Evidence:
        """Print what the run came to."""
        found = Evidence(service.log_path for service in self.services)
        self.say(
            f"{len(books.transfers)} transfers committed: {len(books.missing)} missing, "
            f"{len(books.extra)} extra, {len(books.twice)} twice; the inbox caught {found.duplicates} "
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
def running(cluster: ReplicatedCluster, account_module: str = "demo_account_service") -> Iterator[Scene]:
    """Start a cluster, the services and the load; stop all of it at the end."""
    with cluster:
        cluster.create_topic(TOPIC)
        scene = Scene(cluster, account_module)
        scene.say(f"master is {cluster.master()}, in sync are {sorted(cluster.replication().in_sync)}")
        try:
            start_together(*scene.services)
            drop_the_key_that_hides_duplicates(cluster)
            scene.load.start()
            yield scene
        finally:
            scene.load.stop()
            scene.pauses.close()
            stop_together(*scene.services)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
