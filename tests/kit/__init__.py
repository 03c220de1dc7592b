"""Faults and observations for tests; injected from outside, production modules know nothing of it."""
