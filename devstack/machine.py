"""What the machine must offer before a server is started: ports, memory, disk."""

from __future__ import annotations

import errno
import ipaddress
import random
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from devstack.errors import StackError

# Below the range from which Linux takes the ports of outgoing connections (32768 and up), so that
# no connection sits on a server's port while that server is down.
_FIRST_PORT = 20_000
_LAST_PORT = 32_000
PORT_BLOCK = 10
_BLOCK_ATTEMPTS = 200

# The broker refuses messages above 90 % and clamps higher settings (DefaultMessageStore.java).
_BROKER_MAX_DISK_USED = 0.90
_NEEDED_DISK_MB = 1024
_LISTENS = "0A"  # the state of a socket in /proc/net/tcp


def port_is_free(port: int, host: str = "0.0.0.0") -> bool:
    """Tell whether a server could listen on the port now; by default on every address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: closed connections in TIME_WAIT don't keep a port, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            if exc.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
        return True


def require_free_ports(name: str, ports: Iterable[int]) -> None:
    """Raise StackError when somebody else has a port that a server needs."""
    for port in ports:
        # A proxy of the fault lab may have the same port of another loopback address.
        if not port_is_free(port, "127.0.0.1"):
            raise StackError(
                f"{name} needs port {port}, which another process has; stop that process or "
                f"choose other ports"
            )


def free_port_block() -> int:
    """Return the first of PORT_BLOCK ports in a row that are free now."""
    blocks = range(_FIRST_PORT, _LAST_PORT, PORT_BLOCK)
    for _ in range(_BLOCK_ATTEMPTS):
        first = random.choice(blocks)  # at random: stacks that start together must not meet
        # On every address: RocketMQ can't be told to open all of its ports on 127.0.0.1 only.
        if all(port_is_free(port) for port in range(first, first + PORT_BLOCK)):
            return first
    raise StackError(
        f"no {PORT_BLOCK} free ports in a row between {_FIRST_PORT} and {_LAST_PORT}, "
        f"stop other stacks or give the ports"
    )


def ports_open_to_others(pid: int) -> set[int]:
    """Return the ports on which a process of ours listens beyond loopback, as the kernel sees it."""
    sockets = {f"socket:[{inode}]": port for inode, port in _listeners(pid)}
    held = {_link(descriptor) for descriptor in Path(f"/proc/{pid}/fd").iterdir()}
    return {port for name, port in sockets.items() if name in held}


def _listeners(pid: int) -> Iterator[tuple[str, int]]:
    """Yield inode and port of each socket of the process's network that listens beyond loopback."""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] != _LISTENS:
                continue
            address, port = fields[1].split(":")
            words = (bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8))
            ip = ipaddress.ip_address(b"".join(words))
            mapped = getattr(ip, "ipv4_mapped", None)  # as Java listens
            if not (mapped or ip).is_loopback:
                yield fields[9], int(port, 16)


def _link(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:  # closed meanwhile
        return ""


def require_memory(needed_mb: int) -> None:
    """Raise StackError when less memory is available than the servers were given."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable":
            available_mb = int(value.split()[0]) // 1024
            if available_mb < needed_mb:
                raise StackError(
                    f"{available_mb} MB of memory are available, the servers need {needed_mb} MB; "
                    f"stop other programs or give smaller heaps"
                )


def require_disk(folder: Path) -> None:
    """Raise StackError when the disk is too full for the servers to work."""
    usage = shutil.disk_usage(folder)
    free_mb = usage.free // (1024 * 1024)
    if free_mb < _NEEDED_DISK_MB:
        raise StackError(f"{free_mb} MB are free on the disk of {folder}, needed are {_NEEDED_DISK_MB} MB")
    # As the broker counts: blocks reserved for root are not free.
    used = usage.used / (usage.used + usage.free)
    if used > _BROKER_MAX_DISK_USED:
        raise StackError(
            f"the disk of {folder} is {used:.0%} full and the broker refuses messages above "
            f"{_BROKER_MAX_DISK_USED:.0%}; free some space or use a folder on another disk"
        )
