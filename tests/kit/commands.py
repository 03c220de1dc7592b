"""What a client sends to a database server: whole commands, some of them in one write."""

from __future__ import annotations

from collections.abc import Sequence

from tests.kit.proxy import Line


def commands_of(data: bytes) -> list[bytes]:
    """Divide what came in one write into packets."""
    found = []
    while data:
        end = int.from_bytes(data[:3], "little") + 4
        found.append(data[:end])
        data = data[end:]
    return found


def names_of(commands: Sequence[bytes]) -> list[str]:
    """Return the text of each of them."""
    return [command[5:].decode("utf-8", "replace") for command in commands]


def break_after(line: Line, commands: Sequence[bytes], arrive: int, how: str) -> None:
    """Let so many of these reach the server and no answer come back; the line is "cut" then, or "silent"."""
    line.silence(to_client=True, to_server=True)
    line.server.sendall(b"".join(commands[:arrive]))
    if how == "cut":
        line.cut()
