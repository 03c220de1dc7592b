"""
`python -m devstack.hurried`: the account service for a broker that gives a half message up early.

The same service with shorter times of the outbox. RocketMQ's defaults ask for 7.6 minutes; the fault
lab, asked for an impatient broker, lets it ask for seconds, so that the relay has work to do.
"""

from __future__ import annotations

from functools import partial

from demo_account_service import __main__ as service
from rmq_txn.producer.upkeep import OutboxTimes

QUESTIONS = 3
"""How often the broker asks then: after 3 to 8 s, and each 5 s after that."""
CHECK_BUDGET_SECONDS = 25.0
TIMES = OutboxTimes(
    relay_margin_seconds=5.0, settle_seconds=5.0, silence_seconds=6.0, pause_seconds=2.0, round_seconds=1.0
)

if __name__ == "__main__":
    service.WatchedProducer = partial(  # type: ignore[assignment, misc]
        service.WatchedProducer, check_budget_seconds=CHECK_BUDGET_SECONDS, outbox_times=TIMES
    )
    service.end(service.main())
