"""What a started producer is made of: the oracle that answers, the client that sends, the upkeep."""

from __future__ import annotations

from collections.abc import Sequence

from rmq_txn.clock import DatabaseClock
from rmq_txn.database import Database
from rmq_txn.identity import Owner, owner_of
from rmq_txn.message import Message
from rmq_txn.producer.checkback import Oracle
from rmq_txn.producer.commitment import Commitment
from rmq_txn.producer.undisturbed_time import SentVerdicts
from rmq_txn.producer.upkeep import OutboxTimes, Upkeep, undisturbed_time
from rmq_txn.pruning import PrunedLog, Pruning
from rmq_txn.schema import Identity
from rmq_txn.transport import Transport


class ProducerParts:
    """
    The parts of one producer, wired; they run from `start` to `close`, each called once.

    Attributes:
        oracle: answers check-backs, and makes the ids of new transactions.
        client: of the transport.
        upkeep: takes care of the copies in the outbox.
    """

    def __init__(
        self,
        group: str,
        topics: Sequence[str],
        broker: Transport,
        database: Database,
        identity: Identity,
        *,
        retention_seconds: float,
        check_budget_seconds: float,
        times: OutboxTimes,
        prune: bool,
    ) -> None:
        self._topics = topics
        self._database = database
        self._owner = Owner(owner_of(group, identity.database_id), identity.secret)
        clock = DatabaseClock()
        undisturbed = undisturbed_time(times)
        self._verdicts = SentVerdicts(undisturbed, check_budget_seconds)
        self.oracle = Oracle(
            database,
            self._owner,
            retention_seconds,
            clock=clock,
            disturb=undisturbed.disturb,
            unstamped_until=(identity.upgraded_at or 0.0) + retention_seconds,
        )
        self.client = broker.producer(group, self.oracle.check)
        self.upkeep = Upkeep(
            database,
            identity.database_id,
            group,
            topics,
            clock,
            check_budget_seconds,
            times,
            undisturbed,
            self._verdicts,
            self.oracle,
            self.client,
        )
        log_rows = PrunedLog(retention_seconds)
        self._pruning = Pruning(database, identity.database_id, log_rows) if prune else None

    def start(self) -> None:
        """Start what runs, in the order in which others may notice it."""
        # Before a broker can name it: who is named without a row is taken for a stranger.
        self.upkeep.announce(self.client.instance)
        self.client.start(self._topics)
        self.upkeep.start()
        if self._pruning is not None:
            self._pruning.start()

    def close(self, timeout_seconds: float) -> None:
        """Stop what runs; also if the start failed half way."""
        if self._pruning is not None:
            self._pruning.close(timeout_seconds)
        self.upkeep.close(timeout_seconds)
        self.client.close(timeout_seconds)

    def commitment(self, txn_id: str, messages: Sequence[Message]) -> Commitment:
        """Make the commit of one transaction."""
        return Commitment(
            self.client, self.oracle, self._owner, self._database, self._verdicts, txn_id, messages
        )
