"""Galera: each node may write, and all of them certify each transaction at COMMIT."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from devstack.database import HOST
from devstack.database_cluster import JOIN_SECONDS, NODES, DatabaseCluster
from devstack.errors import StackError
from devstack.server import poll_until
from devstack.software import INSTALLED

GALERA: Final = Path("/usr/lib/galera/libgalera_smm.so")


class GaleraCluster(DatabaseCluster):
    """MariaDB of this machine with Galera."""

    database = INSTALLED

    def options(self, number: int) -> list[str]:
        """Return what makes a node a member of this cluster."""
        node = self.nodes[number]
        provider = {
            "base_host": HOST,
            "gmcast.listen_addr": f"tcp://{HOST}:{node.group_port}",
            "ist.recv_addr": f"{HOST}:{self.first_port + 2 * NODES + number}",
            "gcache.size": "32M",
            "evs.keepalive_period": "PT0.5S",
            "evs.suspect_timeout": "PT3S",
        }
        others = ",".join(f"{HOST}:{each.group_port}" for each in self.nodes)
        return [
            "--wsrep-on=ON",
            f"--wsrep-provider={GALERA}",
            f"--wsrep-provider-options={';'.join(f'{key}={value}' for key, value in provider.items())}",
            "--wsrep-cluster-name=devstack",  # at most 32 characters
            f"--wsrep-cluster-address=gcomm://{others}",
            f"--wsrep-node-name={node.name}",
            f"--wsrep-node-address={HOST}",
            f"--wsrep-node-incoming-address={HOST}:{node.port}",
            "--wsrep-sst-method=rsync",
            f"--wsrep-sst-receive-address={HOST}:{self.first_port + 3 * NODES}",
            "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2",
        ]

    def _found(self) -> None:
        # A cluster of one notes in its data where they end. The others begin with a copy of these, so that
        # they are sent what is missing, and not all of it: that takes programs that run as somebody else.
        self._start(0, "--wsrep-new-cluster")
        self._wait_for(1)
        self.servers[0].stop()
        for node in self.nodes[1:]:
            node.begin_with(self.nodes[0])
        for node in self.nodes:
            # rsync's server, which says that nothing has to be sent, becomes "nobody" if root started it.
            node.data.chmod(0o777)
        self._start(0, "--wsrep-new-cluster")
        self._wait_for(1)

    def join(self, number: int) -> None:
        """Start a node that is down, with the data it has; return when it is a full member."""
        node = self.nodes[number]
        state = (node.data / "grastate.dat").read_text()
        more = []
        if re.search(r"seqno:\s*-1", state):  # it was killed
            node.options = self.options(number)
            more = [f"--wsrep-start-position={node.recovered_position()}"]
        self._start(number, *more)
        if not poll_until(lambda: self.members(number) > 0, JOIN_SECONDS):
            raise StackError(f"{node.name} did not join:\n{self.servers[number].log_tail()}")

    def members(self, number: int) -> int:
        """Return how many members a node sees, itself included; 0 if it is not in step with them."""
        status = self._status(number)
        in_step = status["wsrep_ready"] == "ON" and status["wsrep_local_state_comment"] == "Synced"
        return int(status["wsrep_cluster_size"]) if in_step else 0

    def is_primary(self, number: int) -> bool:
        """Whether a node takes writes now."""
        return self.members(number) > 0 and self.nodes[number].ask("SELECT @@read_only") == ((0,),)

    def demote(self, number: int) -> None:
        """Make it read only; the switch is for a Follower to turn."""
        self.nodes[number].ask("SET GLOBAL read_only = 1")

    def promote(self, number: int) -> None:
        """Let it write again, and lead new connections to it."""
        self.nodes[number].ask("SET GLOBAL read_only = 0")
        self.turn_to(number)

    def _status(self, number: int) -> dict[str, str]:
        return dict(self.nodes[number].ask("SHOW STATUS LIKE 'wsrep_%'"))
