"""A consumer on a real database to which a test hands deliveries itself: what no broker has a part in."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from rmq_txn import Database, Delivery, IdempotentConsumer, Transaction
from rmq_txn.consumer.parking import ParkedState
from rmq_txn.identity import new_txn_id
from rmq_txn.verdict import Answer
from tests.kit.handed import Hands
from tests.kit.rows import rows

OWNER = "account-service@6f1c9a3e-0000-4000-8000-000000000000"


class Bench:
    """Consumers of one group on one database, and deliveries as a broker would make them."""

    def __init__(self, url: str, database: Database, topic: str) -> None:
        self.url, self.database, self.topic, self.group = url, database, topic, f"c-{topic}"
        self.hands = Hands()
        self.resources = ExitStack()
        self.calls: list[Delivery] = []
        self._numbers = itertools.count(1)

    def award(self, txn: Transaction, delivery: Delivery) -> None:
        """Be a handler with an effect."""
        self.calls.append(delivery)
        txn.execute("INSERT INTO effect (id) VALUES (%s)", (delivery.message_id[:64],))

    def consumer(
        self,
        handler: Callable[[Transaction, Delivery], object] | None = None,
        tag: str = "*",
        **settings: Any,
    ) -> IdempotentConsumer:
        """Start a consumer of the topic."""
        consumer = IdempotentConsumer(
            **{"group": self.group, "broker": self.hands, "database": self.database, **settings}
        )
        consumer.handles(self.topic, tag)(handler or self.award)
        self.resources.enter_context(consumer)
        return consumer

    def message(self, **changes: Any) -> Delivery:
        """Make a new message of ours, stored now."""
        now = int(time.time() * 1000)
        fields: dict[str, Any] = {
            "topic": self.topic,
            "body": b"{}",
            "message_id": f"M{next(self._numbers)}",
            "born_milliseconds": now,
            "stored_milliseconds": now,
            "properties": {"rmq_txn_id": new_txn_id(), "rmq_txn_n": "0", "rmq_txn_owner": OWNER},
        }
        return Delivery(**(fields | changes))

    def deliver(self, delivery: Delivery) -> Answer:
        """Deliver as a native client does: on a thread that is not the main one."""
        answers: list[Answer | BaseException] = []

        def run() -> None:
            try:
                answers.append(self.hands.deliver(delivery))
            except BaseException as error:  # noqa: BLE001 - shown by the test
                answers.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(120)
        (answer,) = answers
        assert isinstance(answer, Answer), answer
        return answer

    def parked(self) -> list[tuple[ParkedState, int]]:
        """Return state and failures of every row, failing ones included."""
        found = rows(
            self.url, "SELECT state, attempts FROM rmq_txn_parked ORDER BY first_failed_at, dedup_key"
        )
        return [(ParkedState(state), attempts) for state, attempts in found]

    def inbox(self) -> list[str]:
        """Return the keys that the group is done with."""
        return [key.decode() for (key,) in rows(self.url, "SELECT dedup_key FROM rmq_txn_inbox ORDER BY 1")]

    def effects(self) -> list[str]:
        """Return the ids of the effects, in their order."""
        return [row[0] for row in rows(self.url, "SELECT id FROM effect ORDER BY n")]
