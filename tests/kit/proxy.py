"""The fault lab's TCP proxy, under the name by which tests know it."""

from __future__ import annotations

from devstack.proxy import Line, TcpProxy, proxied, through

__all__ = ["Line", "TcpProxy", "proxied", "through"]
