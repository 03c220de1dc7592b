"""Databases that outlive the loss of a server: what callers are told is what the survivors hold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pymysql
import pytest

from devstack.chaos import CLUSTERS
from devstack.database_cluster import DatabaseCluster, Follower
from devstack.galera import GaleraCluster
from devstack.group_replication import GroupReplicationCluster
from rmq_txn import Database, DatabaseUnavailableError, schema
from rmq_txn.database.pool import error_code
from rmq_txn.database.session_state import SessionState
from rmq_txn.errors import InDoubtError
from rmq_txn.identity import Owner, new_txn_id
from rmq_txn.producer import txlog
from rmq_txn.producer.checkback import Oracle
from rmq_txn.producer.txlog import LogState
from rmq_txn.verdict import Verdict
from tests.kit.rows import rows
from tests.kit.wait import until

pytestmark = [pytest.mark.servers, pytest.mark.local_stack]

WRITERS = 4
DEADLOCK = 1213
READ_ONLY = 1290
FORESTALLED = 3101
CONFLICTS = (DEADLOCK, FORESTALLED)


@pytest.fixture(scope="module", params=CLUSTERS.values(), ids=CLUSTERS)
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DatabaseCluster]:
    with request.param(tmp_path_factory.mktemp("cluster") / "nodes") as running:
        yield running


@pytest.fixture
def url(cluster: DatabaseCluster, unique: str) -> str:
    """Return a database with our tables and `effect(id, n)`, through the switch; each node has them."""
    primary = cluster.primary()
    assert primary is not None
    cluster.turn_to(primary)
    url = cluster.database_url(unique)
    database = Database.mysql(url)
    try:
        schema.apply(database)
        schema.run_script(
            database,
            "CREATE TABLE effect (id VARCHAR(64) PRIMARY KEY, n INT NOT NULL DEFAULT 0) ENGINE=InnoDB",
        )
    finally:
        database.close()
    return url


def at_node(cluster: DatabaseCluster, url: str, number: int) -> str:
    """Return the URL of a node of its own, once it has the tables."""
    there = cluster.at(url, cluster.nodes[number].port)

    def has_tables() -> bool:
        try:
            return rows(there, "SELECT COUNT(*) FROM effect") is not None
        except pymysql.MySQLError:
            return False

    until(has_tables, f"node {number} has the tables", 60)
    return there


def oracle(database: Database) -> Oracle:
    return Oracle(database, Owner("owner", b"s"), 7 * 86_400.0)


class Writer(threading.Thread):
    """Commits one row after the other, maybe with a count in a shared one, and notes what it was told."""

    def __init__(
        self, database: Database, name: str, stop: threading.Event, shared: str | None = None
    ) -> None:
        super().__init__(daemon=True)
        self._database, self._name, self._stop_it, self._shared = database, name, stop, shared
        self.told: set[int | None] = set()
        self.committed: set[str] = set()
        self.not_committed: set[str] = set()
        self.in_doubt: set[str] = set()
        self.surprises: list[Exception] = []

    def run(self) -> None:
        number = 0
        while not self._stop_it.is_set():
            number += 1
            self._write(f"{self._name}-{number}")

    def _write(self, id_: str) -> None:
        try:
            with self._database.transaction() as txn:
                txn.execute("INSERT INTO effect (id) VALUES (%s)", (id_,))
                if self._shared is not None:
                    txn.execute("UPDATE effect SET n = n + 1 WHERE id = %s", (self._shared,))
        except InDoubtError:
            self.in_doubt.add(id_)
        except (DatabaseUnavailableError, pymysql.MySQLError) as error:
            self.told.add(error_code(error))
            if not isinstance(error, DatabaseUnavailableError) and error_code(error) not in CONFLICTS:
                self.surprises.append(error)
            self.not_committed.add(id_)
            self._stop_it.wait(0.05)
        else:
            self.committed.add(id_)


def test_what_writers_were_told_is_what_the_survivors_hold_when_the_primary_is_killed(
    cluster: DatabaseCluster, url: str, open_database: Callable[..., Database]
) -> None:
    """Told committed: there. Told that nothing was committed: not there. In doubt: either, and few."""
    stop = threading.Event()
    writers = [Writer(open_database(url), f"w{number}", stop) for number in range(WRITERS)]
    primary = cluster.primary()
    assert primary is not None
    with closing(Follower(cluster)):
        for writer in writers:
            writer.start()
        until(lambda: all(len(writer.committed) > 5 for writer in writers), "traffic", 120)
        cluster.servers[primary].kill()
        before = {writer: len(writer.committed) for writer in writers}
        until(
            lambda: all(len(w.committed) > before[w] + 5 for w in writers), "traffic on another primary", 120
        )
        stop.set()
        for writer in writers:
            writer.join(60)
            assert not writer.is_alive()
        there = {id_ for (id_,) in rows(url, "SELECT id FROM effect")}
    assert cluster.primary() != primary
    for writer in writers:
        assert writer.surprises == []
        assert writer.committed <= there
        assert not writer.not_committed & there
        assert len(writer.in_doubt) <= 2
    cluster.join(primary)  # the others of this file need it
    cluster.wait_for_all()


def test_a_conflict_that_surfaces_at_commit_is_surely_rolled_back_and_not_in_doubt(
    cluster: DatabaseCluster, url: str, open_database: Callable[..., Database]
) -> None:
    """Two nodes of Galera write one row: the later COMMIT is answered 1213, and that is the outcome."""
    if not isinstance(cluster, GaleraCluster):
        pytest.skip("one primary: two nodes can't write at once")
    first, second = (open_database(at_node(cluster, url, number)) for number in (0, 1))
    with first.transaction() as txn:
        txn.execute("INSERT INTO effect (id) VALUES ('row')")
    until(lambda: rows(cluster.at(url, cluster.nodes[1].port), "SELECT id FROM effect") != [], "the row", 60)
    session = second.begin(new_txn_id())
    session.execute("UPDATE effect SET n = 2 WHERE id = 'row'")
    with first.transaction() as txn:
        txn.execute("UPDATE effect SET n = 1 WHERE id = 'row'")
    with pytest.raises(pymysql.err.OperationalError) as told:
        session.commit()
    assert error_code(told.value) == DEADLOCK
    assert session.state is SessionState.OPEN
    assert session.rollback()
    assert rows(url, "SELECT n FROM effect") == [(1,)]


def test_a_commit_that_another_primary_of_a_group_forestalled_is_surely_rolled_back(
    cluster: DatabaseCluster, url: str, open_database: Callable[..., Database]
) -> None:
    """Two primaries commit one row at the same time: the later one in the group's order is answered 3101."""
    if not isinstance(cluster, GroupReplicationCluster):
        pytest.skip("group replication's own number; Galera says 1213")
    stop = threading.Event()
    with open_database(url).transaction() as txn:
        txn.execute("INSERT INTO effect (id) VALUES ('row')")
    nodes = [at_node(cluster, url, number) for number in (0, 1)]
    writers = [Writer(open_database(node), f"w{n}", stop, shared="row") for n, node in enumerate(nodes)]
    with cluster.many_primaries():
        for writer in writers:
            writer.start()
        until(lambda: any(FORESTALLED in writer.told for writer in writers), "an answer 3101", 60)
        stop.set()
        for writer in writers:
            writer.join(60)
            assert not writer.is_alive()
    committed = writers[0].committed | writers[1].committed
    expected = sorted([("row", len(committed)), *((id_, 0) for id_ in committed)])
    until(
        lambda: all(sorted(rows(node, "SELECT id, n FROM effect")) == expected for node in nodes),
        "both nodes hold what was told committed, and nothing else",
        60,
    )
    assert [writer.surprises for writer in writers] == [[], []]


def test_a_node_that_comes_back_takes_no_write_before_the_group_has_it(
    cluster: DatabaseCluster, url: str
) -> None:
    """What it would commit by itself no other node has: lost, and the node can't join any more."""
    if not isinstance(cluster, GroupReplicationCluster):
        pytest.skip("a node of Galera that is no member refuses every statement by itself")
    number = cluster.primary()
    assert number is not None
    cluster.servers[number].kill()
    until(lambda: cluster.primary() not in (None, number), "another primary", 120)
    cluster.servers[number].start()
    node = cluster.at(url, cluster.nodes[number].port)
    with pytest.raises(pymysql.err.OperationalError) as refused:
        rows(node, "INSERT INTO effect (id) VALUES ('alone')")
    assert error_code(refused.value) == READ_ONLY
    cluster.servers[number].end()
    cluster.join(number)
    cluster.wait_for_all()


def test_a_check_back_over_another_node_right_after_commit_never_says_rollback(
    cluster: DatabaseCluster, url: str, open_database: Callable[..., Database]
) -> None:
    """A node that lags shows no row; the fence collides all the same, at the latest when it commits."""
    if not isinstance(cluster, GaleraCluster):
        pytest.skip("a check-back goes to the one primary; the others refuse the fence")
    writer, asker = (open_database(at_node(cluster, url, number)) for number in (0, 1))
    verdicts = []
    for _ in range(20):
        txn_id = new_txn_id()
        session = writer.begin(txn_id)
        txlog.insert(session, LogState.COMMITTED, ["m"])
        session.commit()
        verdicts.append(oracle(asker).decide(txn_id, 0, "m"))
    assert Verdict.ROLLBACK not in verdicts
    assert Verdict.COMMIT in verdicts
