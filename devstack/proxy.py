"""A TCP proxy whose line can be cut, made silent, slow or half-open, in either direction."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

_CONNECT_SECONDS = 5.0


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

    @property
    def lossy(self) -> bool:
        """Whether bytes may have been swallowed: such a line can't go on as if nothing was."""
        return self.silent_to_client.is_set() or self.silent_to_server.is_set()


class TcpProxy:
    """
    Listens on a loopback port and forwards to `host:port`. Thread-safe.

    Set `on_request` to see what clients send: it is called with the line and the bytes before they
    are forwarded, and may act on the line.

    The methods that break things act on every line, those of new connections included, until `heal`.

    Args:
        host, port: the server.
        listen: where to listen; by default on a free port of 127.0.0.1.
    """

    def __init__(self, host: str, port: int, *, listen: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.target = (host, port)
        self._listener = socket.create_server(listen)
        self.port: int = self._listener.getsockname()[1]
        self.on_request: Callable[[Line, bytes], None] = lambda _line, _data: None
        self._lock = threading.Lock()
        self._lines: set[Line] = set()
        self._silent = {"to_client": False, "to_server": False}
        self._refusing = False
        self._delay_seconds = 0.0
        self._flows = threading.Event()
        self._flows.set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def lines(self) -> list[Line]:
        """Return the connections that are open now."""
        with self._lock:
            return list(self._lines)

    def lead_to(self, host: str, port: int) -> None:
        """Lead new connections to another server; those that are open stay with theirs."""
        self.target = (host, port)

    def cut(self) -> None:
        """Close every connection and refuse new ones."""
        self._refusing = True
        for line in self.lines:
            line.cut()

    def silence(self, *, to_client: bool, to_server: bool) -> None:
        """Swallow what is sent in these directions; nobody is told (a black hole)."""
        with self._lock:
            self._silent = {"to_client": to_client, "to_server": to_server}
            for line in self._lines:
                line.silence(**self._silent)

    def half_open(self) -> None:
        """Close the clients' ends of open connections; the server is not told and keeps its own."""
        for line in self.lines:
            line.silence(to_client=True, to_server=True)
            with suppress(OSError):
                line.client.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """Forward nothing and lose nothing: it all arrives after `heal`."""
        self._flows.clear()

    def delay(self, seconds: float) -> None:
        """Forward each chunk of bytes this much later."""
        self._delay_seconds = seconds

    def heal(self) -> None:
        """Serve new connections well; end those that have lost bytes."""
        with self._lock:
            self._silent = {"to_client": False, "to_server": False}
            self._refusing = False
            self._delay_seconds = 0.0
            self._flows.set()
            lossy = [line for line in self._lines if line.lossy]
        for line in lossy:
            line.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            # In a thread: a connection to a server that hangs must not hold up the others.
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            if self._refusing:
                raise ConnectionRefusedError
            server = socket.create_connection(self.target, timeout=_CONNECT_SECONDS)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        for end in (client, server):  # as drivers and servers do: else the second of two small answers waits
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = Line(client, server)
        with self._lock:
            self._lines.add(line)
            line.silence(**self._silent)
        answers = threading.Thread(target=self._pump_answers, args=(line,), daemon=True)
        answers.start()
        self._pump(line, client, server, line.silent_to_server, self._look)
        answers.join()
        with self._lock:
            self._lines.discard(line)
        client.close()
        server.close()

    def _look(self, line: Line, data: bytes) -> None:
        self.on_request(line, data)

    def _pump_answers(self, line: Line) -> None:
        self._pump(line, line.server, line.client, line.silent_to_client, lambda _line, _data: None)

    def _pump(
        self,
        line: Line,
        source: socket.socket,
        sink: socket.socket,
        silent: threading.Event,
        look: Callable[[Line, bytes], None],
    ) -> None:
        try:
            while data := source.recv(65536):
                look(line, data)
                self._flows.wait()
                if self._delay_seconds:
                    time.sleep(self._delay_seconds)
                if not silent.is_set():
                    sink.sendall(data)
        except OSError:
            pass  # the line was cut; the other direction ends the same way
        finally:
            if not silent.is_set():
                line.cut()

    def close(self) -> None:
        """Stop listening and end every connection."""
        self._listener.close()
        self._flows.set()
        for line in self.lines:
            line.cut()

    def __enter__(self) -> TcpProxy:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


def through(url: str, proxy: TcpProxy) -> str:
    """Return a database URL with the proxy in the place of the server."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}"))


def proxied(url: str) -> TcpProxy:
    """Return a proxy to the server of a database URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return TcpProxy(parts.hostname, parts.port)
