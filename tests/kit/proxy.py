"""A TCP proxy whose line can be cut, made silent, or cut exactly between a request and its answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit


class Line:
    """One proxied connection; `cut` and `silence` act on both directions."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.silent_to_client = threading.Event()
        self.silent_to_server = threading.Event()

    def cut(self) -> None:
        """Close both ends at once."""
        for end in (self.client, self.server):
            with suppress(OSError):  # closed by its peer already
                end.shutdown(socket.SHUT_RDWR)

    def silence(self, *, to_client: bool = True, to_server: bool = False) -> None:
        """Swallow what is sent from now on; nobody is told (a black hole)."""
        if to_client:
            self.silent_to_client.set()
        if to_server:
            self.silent_to_server.set()


class TcpProxy:
    """
    Listens on a free loopback port and forwards to `host:port`.

    Set `on_request` to see what clients send: it is called with the line and the bytes before they
    are forwarded, and may act on the line.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.on_request: Callable[[Line, bytes], None] = lambda _line, _data: None
        self.lines: list[Line] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            line = Line(client, server)
            self.lines.append(line)
            threading.Thread(target=self._pump_requests, args=(line,), daemon=True).start()
            threading.Thread(target=self._pump_answers, args=(line,), daemon=True).start()

    def _pump_requests(self, line: Line) -> None:
        self._pump(line, line.client, line.server, line.silent_to_server, self.on_request)

    def _pump_answers(self, line: Line) -> None:
        self._pump(line, line.server, line.client, line.silent_to_client, lambda _line, _data: None)

    @staticmethod
    def _pump(
        line: Line,
        source: socket.socket,
        sink: socket.socket,
        silent: threading.Event,
        look: Callable[[Line, bytes], None],
    ) -> None:
        try:
            while data := source.recv(65536):
                look(line, data)
                if not silent.is_set():
                    sink.sendall(data)
        except OSError:
            pass  # the line was cut; the other direction ends the same way
        finally:
            if not silent.is_set():
                line.cut()

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._listener.close()
        for line in self.lines:
            line.cut()
            line.client.close()
            line.server.close()


def through(url: str, proxy: TcpProxy) -> str:
    """Return `url` with the proxy in the place of the server."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}"))


def proxied(url: str) -> TcpProxy:
    """Return a proxy to the server of a database URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return TcpProxy(parts.hostname, parts.port)
