"""The one error of the development stack."""

from __future__ import annotations


class StackError(RuntimeError):
    """A server, the machine or a setting kept the stack from doing what was asked."""
