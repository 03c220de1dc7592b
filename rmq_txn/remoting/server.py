"""
One name server or broker that can be asked: a request, its answer, and what went wrong in one sentence.

Codes are those of ResponseCode.java of Apache RocketMQ 4.9 to 5.4.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal

from rmq_txn.errors import BrokerUnavailableError, RmqTxnError
from rmq_txn.remoting import wire

SUCCESS: Final = 0
SYSTEM_ERROR: Final = 1
REQUEST_CODE_NOT_SUPPORTED: Final = 3
TOPIC_NOT_EXIST: Final = 17
QUERY_NOT_FOUND: Final = 22
GROUP_NOT_EXIST: Final = 26
MESSAGE_ILLEGAL: Final = 13
NO_PERMISSION: Final = 16
CONSUMER_NOT_ONLINE: Final = 206


class RemotingError(RmqTxnError):
    """
    A server answered with an error code.

    Attributes:
        code: the response code of RocketMQ, such as 17 (TOPIC_NOT_EXIST).
        remark: what the server said; for people, and for decisions only where the code tells too little.
    """

    def __init__(self, code: int, remark: str) -> None:
        super().__init__(f"the server answered code {code}: {remark}")
        self.code = code
        self.remark = remark

    @property
    def refused(self) -> bool:
        """Whether the server refused who asked, rather than what was asked."""
        return self.code == NO_PERMISSION


class RemotingServer:
    """
    Ask one name server or one broker; a connection a call, so any thread may use it, unless one is kept.

    Args:
        address: "host:port". For a name server also "host:port;host:port": they are asked in
            turn until one answers, all within the one timeout.
        timeout_seconds: bound of each call, connecting included; more than 0.
        credentials: for servers that enforce access control.
        line: keeps the connection from call to call; then for one thread at a time, and the server may
            get a request twice.

    Every call raises BrokerUnavailableError when nobody answered in time, and RemotingError when
    the answer is an error code.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_seconds: float = 3.0,
        credentials: wire.Credentials | None = None,
        line: wire.Line | None = None,
    ) -> None:
        if timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds is {timeout_seconds!r}, allowed is more than 0")
        self.address = address
        self.timeout_seconds = timeout_seconds
        self._credentials = credentials
        self._exchange = wire.exchange if line is None else line.exchange
        self._endpoints = tuple(wire.as_endpoint(part) for part in address.split(";") if part.strip())
        if not self._endpoints:
            raise ValueError(f"address is {address!r}, allowed is 'host:port', several with ';'")

    def _tell(self, code: int, fields: Mapping[str, str], what: str, body: bytes = b"") -> dict[str, object]:
        """Send one request; return the fields of its answer, if any. `what` names it in errors."""
        with self._asking(what):
            header, _body = self._ask(code, fields, what, body)
            return wire.as_object(header.get("extFields") or {}, "extFields")

    @contextmanager
    def _asking(self, what: str, whom: Literal["broker", "name server"] = "broker") -> Iterator[None]:
        """Turn an answer that makes no sense, or a question to the wrong server, into a sentence."""
        try:
            yield
        except RemotingError as exc:
            if exc.code != REQUEST_CODE_NOT_SUPPORTED:
                raise
            usual = "9876" if whom == "name server" else "10911"
            raise BrokerUnavailableError(
                f"{self.address} is no {whom}: asked for {what} it does not know the question (code "
                f"{exc.code}: {exc.remark}); is this the port of something else of RocketMQ's? A {whom} "
                f"listens on port {usual} by default"
            ) from exc
        except wire.MalformedAnswerError as exc:
            raise BrokerUnavailableError(
                f"{self.address} was asked for {what} and gave no answer in the RocketMQ remoting "
                f"protocol ({exc}), check that the address is a name server's or broker's"
            ) from exc

    def _ask_body(self, code: int, fields: Mapping[str, str], what: str) -> object:
        _header, body = self._ask(code, fields, what)
        return wire.loads(body) if body else {}

    def _ask_offset(self, code: int, fields: Mapping[str, str], what: str) -> int:
        header, _body = self._ask(code, fields, what)
        return wire.as_offset(header)

    def _ask(
        self, code: int, fields: Mapping[str, str], what: str, body: bytes = b""
    ) -> tuple[dict[str, object], bytes]:
        """Send one request to the first endpoint that answers; return header and body."""
        deadline = time.monotonic() + self.timeout_seconds
        frame = wire.encode(code, fields, body, self._credentials)
        failures: list[str] = []
        last: OSError | None = None
        for position, (host, port) in enumerate(self._endpoints):
            left = deadline - time.monotonic()
            # An endpoint that hangs must not eat the time of those after it.
            share = left / (len(self._endpoints) - position)
            try:
                header, answer = self._exchange(host, port, share, frame)
            except OSError as exc:
                last = exc
                failures.append(f"{host}:{port}: {exc}")
                continue
            answer_code = header.get("code")
            if not isinstance(answer_code, int):
                raise wire.MalformedAnswerError(f"the answer's code is {answer_code!r}")
            if answer_code != SUCCESS:
                raise RemotingError(answer_code, str(header.get("remark") or "no remark"))
            return header, answer
        raise BrokerUnavailableError(
            f"{self.address} was asked for {what} and did not answer within "
            f"{self.timeout_seconds:g} s ({'; '.join(failures)})"
        ) from last
