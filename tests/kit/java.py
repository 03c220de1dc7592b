"""A service of a Java team: the official client of the broker's own version, driven line by line."""

from __future__ import annotations

import base64
import json
import select
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from devstack import LocalStack
from devstack.jars import rocketmq_jars

_SOURCE = Path(__file__).with_name("Peer.java")
_ANSWER_SECONDS = 120.0  # the first one waits for the compiler, too


@dataclass(frozen=True)
class Received:
    """What a Java consumer saw of one message."""

    body: bytes
    tag: str | None
    keys: str | None
    stored_bytes: int
    """What it took in the broker; less than the body, if its sender compressed it."""
    properties: dict[str, str]


def missing() -> str | None:
    """Say why Java programs can't be run from source here; None if they can."""
    java = shutil.which("java")
    if java is None:
        return "java is not on PATH"
    modules = subprocess.run([java, "--list-modules"], capture_output=True, text=True, check=True).stdout
    # Debian's and Ubuntu's default-jre-headless has it; the runtimes of some others are cut down.
    if "jdk.compiler@" not in modules:
        return f"{java} has no compiler (module jdk.compiler), install a JDK"
    return None


class JavaPeer:
    """
    `Peer.java` as a process. Not thread-safe: a command, then its answer.

    Args:
        stack: the servers, and the jars.
        group: its producer group.
        folder: the client writes its log there.
    """

    def __init__(self, stack: LocalStack, group: str, folder: Path) -> None:
        jars = rocketmq_jars(stack.settings.rocketmq_version, stack.settings.cache_folder)
        self._errors = folder / "java.log"
        quick_start = ["-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        java = [shutil.which("java") or "java", *quick_start, f"-Duser.home={folder}", "-cp", f"{jars}/*"]
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [*java, str(_SOURCE), stack.name_server, group],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
            )

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)
        readable, _, _ = select.select([self._process.stdout], [], [], _ANSWER_SECONDS)
        line = self._process.stdout.readline() if readable else ""
        assert line, f"no answer to {command['do']}: {self._errors.read_text()[-3000:]}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def send(
        self,
        topic: str,
        body: bytes,
        *,
        keys: Sequence[str] = (),
        tag: str | None = None,
        properties: Mapping[str, str] | None = None,
        state: str | None = None,
    ) -> str:
        """Send a plain message, or a transactional one that ends in `state`; return its id."""
        command: dict[str, Any] = {"do": "send", "topic": topic, "body": base64.b64encode(body).decode()}
        command["properties"] = dict(properties or {})
        if keys:
            command["keys"] = list(keys)
        if tag is not None:
            command["tag"] = tag
        if state is not None:
            command |= {"do": "send_in_transaction", "state": state}
        answer = self._ask(**command)
        assert answer["status"] == "SEND_OK", answer
        return str(answer["message_id"])

    def subscribe(self, group: str, topic: str, expression: str = "*") -> None:
        """Start a consumer group from the first message of a topic on."""
        self._ask(do="subscribe", group=group, topic=topic, expression=expression)

    def received(self, group: str) -> list[Received]:
        """Return what a consumer group has got until now."""
        messages = self._ask(do="received", group=group)["messages"]
        return [
            Received(
                body=base64.b64decode(message["body"]),
                tag=message.get("tag"),
                keys=message.get("keys"),
                stored_bytes=message["stored_bytes"],
                properties=message["properties"],
            )
            for message in messages
        ]

    def __enter__(self) -> JavaPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # its end of input
        try:
            self._process.wait(timeout=20)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
