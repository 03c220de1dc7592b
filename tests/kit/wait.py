"""Waiting for a condition with a deadline: as the contract suite does it."""

from __future__ import annotations

from rmq_txn.testing.waiting import until

__all__ = ["until"]
