"""Group replication: one primary writes, and the others elect a new one when it is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from devstack.database import ADMIN, HOST
from devstack.database_cluster import JOIN_SECONDS, NODES, DatabaseCluster
from devstack.errors import StackError
from devstack.server import poll_until
from devstack.software import MYSQL


class GroupReplicationCluster(DatabaseCluster):
    """MySQL with group replication, single primary."""

    database = MYSQL
    _MEMBERS = (
        "SELECT member_port, member_role FROM performance_schema.replication_group_members"
        " WHERE member_state = 'ONLINE'"
    )

    def options(self, number: int) -> list[str]:
        """Return what makes a node a member of this cluster."""
        node = self.nodes[number]
        seeds = ",".join(f"{HOST}:{each.group_port}" for each in self.nodes)
        return [
            f"--server-id={number + 1}",
            "--log-bin=binlog",
            "--gtid-mode=ON",
            "--enforce-gtid-consistency=ON",
            "--performance-schema=ON",
            "--tls-version=TLSv1.3",  # it does not start without
            f"--report-host={HOST}",
            "--plugin-load-add=group_replication.so",
            # Until the group says otherwise: whoever is still led to a node that comes back would write to it
            # alone, and it could not join any more.
            "--super-read-only=ON",
            "--loose-group-replication-start-on-boot=OFF",
            f"--loose-group-replication-group-name={self.name}",
            f"--loose-group-replication-local-address={HOST}:{node.group_port}",
            f"--loose-group-replication-group-seeds={seeds}",
            f"--loose-group-replication-ip-allowlist={HOST}",
            "--loose-group-replication-recovery-get-public-key=ON",
            "--loose-group-replication-member-expel-timeout=0",
        ]

    def _found(self) -> None:
        self._start(0)
        self.nodes[0].ask(
            "SET GLOBAL group_replication_bootstrap_group = ON",
            self._START.format(self.nodes[0].password),
            "SET GLOBAL group_replication_bootstrap_group = OFF",
        )
        self._wait_for(1)

    _START = f"START GROUP_REPLICATION USER = '{ADMIN}', PASSWORD = '{{}}'"

    def join(self, number: int) -> None:
        """Start a node that is down, with the data it has; return when it is a full member."""
        self._start(number)
        self.nodes[number].ask(self._START.format(self.nodes[0].password))
        if not poll_until(lambda: self.members(number) > 0, JOIN_SECONDS):
            raise StackError(f"{self.nodes[number].name} did not join:\n{self.servers[number].log_tail()}")

    def members(self, number: int) -> int:
        """Return how many members a node sees online, itself included; 0 if it is none of them."""
        ports = [port for port, _role in self.nodes[number].ask(self._MEMBERS)]
        return len(ports) if self.nodes[number].port in ports else 0

    def is_primary(self, number: int) -> bool:
        """Whether a node takes writes now."""
        node = self.nodes[number]
        leads = (node.port, "PRIMARY") in node.ask(self._MEMBERS)
        return leads and node.ask("SELECT @@super_read_only, @@read_only") == ((0, 0),)

    def demote(self, number: int) -> None:
        """Let the group make the next node its primary, which then is read only itself."""
        others = (other for other in range(NODES) if other != number and self.servers[other].alive)
        self._lead(next(other for other in others if self.members(other)))

    def promote(self, number: int) -> None:
        """Let the group make it its primary."""
        self._lead(number)
        self.turn_to(number)

    def _lead(self, number: int) -> None:
        node = self.nodes[number]
        ((member,),) = node.ask("SELECT @@server_uuid")
        node.ask(f"SELECT group_replication_set_as_primary('{member}')")

    @contextmanager
    def many_primaries(self) -> Iterator[None]:
        """Let every node take writes for the duration of the block."""
        self.nodes[0].ask("SELECT group_replication_switch_to_multi_primary_mode()")
        try:
            yield
        finally:
            self.nodes[0].ask("SELECT group_replication_switch_to_single_primary_mode()")
