"""Measurements that nobody is gated by; what they said is in docs/costs.md."""
