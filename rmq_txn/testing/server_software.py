"""The database server that is installed on this machine: its command, and how a data folder is made."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rmq_txn.errors import RmqTxnError

_INITIALISE_SECONDS: Final = 120.0
_VERSION_SECONDS: Final = 30.0
# Distributions put the server where ordinary users have no PATH to.
_SERVER_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
# Both servers refuse to run as root unless told so.
AS_ROOT: Final = ("--user=root",) if os.geteuid() == 0 else ()
# What a small server of a test run is told, whoever starts it and wherever it runs.
SMALL_SERVER: Final = (
    "--skip-name-resolve",
    "--skip-log-bin",
    "--character-set-server=utf8mb4",
    "--innodb-buffer-pool-size=64M",
    "--key-buffer-size=1M",
    "--max-connections=300",
    "--performance-schema=OFF",
    "--tls-version=",  # no TLS: PyMySQL would use it when offered, and tests read and cut the line
    "--loose-mysqlx=OFF",  # MySQL's second protocol would listen on a fixed port
)


class ServerError(RmqTxnError):
    """A database server is not installed, or can't be prepared or started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSoftware:
    """
    A server program and how it makes the system tables of a new data folder.

    Attributes:
        brand: "MariaDB" or "MySQL".
        command: starts it; the options that lead it to its own files are part of it.
        initialise: the command that makes the system tables; it still lacks the data folder.
        script: SQL that this command reads; None: it needs none.
        data_folder: the name of its data, which no other server may open.
    """

    brand: str
    command: tuple[str, ...]
    initialise: tuple[str, ...]
    data_folder: str
    script: str | None = None

    def make_system_tables(self, data: Path) -> None:
        """
        Make a data folder with an administrator 'root'@'localhost' that has no password.

        Raises:
            ServerError: the program failed, or took too long.
        """
        data.mkdir()
        command = [*self.initialise, f"--datadir={data}", own_temporary_folder(data)]
        text = " ".join(command)
        try:
            done = run_to_its_end(command, _INITIALISE_SECONDS, standard_input=self.script)
        except subprocess.TimeoutExpired as exc:
            raise ServerError(
                f"the database was not initialised within {_INITIALISE_SECONDS:g} s\ncommand: {text}"
            ) from exc
        if done.returncode != 0:
            raise ServerError(
                f"cannot initialise the database (exit code {done.returncode})\n"
                f"command: {text}\n{done.stdout[-4000:]}"
            )

    def version(self) -> str:
        """Return what the server says it is, such as "MySQL 9.7.4-2"."""
        said = run_to_its_end([*self.command, "--version"], _VERSION_SECONDS).stdout
        found = re.search(r"\bVer (\S+)", said)
        return f"{self.brand} {found[1] if found else said.strip()}"


def own_temporary_folder(data: Path) -> str:
    """
    Make a folder beside a server's data for its temporary files; return the option that names it.

    Without it all servers of a machine share one, and MariaDB, when it starts, removes the temporary tables
    that it finds there: those of a server that runs, too.
    """
    folder = data.parent / "temporary"
    folder.mkdir(exist_ok=True)
    return f"--tmpdir={folder}"


def installed() -> DatabaseSoftware:
    """
    Return MariaDB of this machine, else its MySQL.

    Raises:
        ServerError: it has neither.
    """
    found = installed_mariadb() or installed_mysql()
    if found is None:
        raise ServerError(
            "neither mariadbd nor mysqld is installed, install one: apt-get install mariadb-server"
        )
    return found


def installed_mariadb() -> DatabaseSoftware | None:
    """
    Return MariaDB of this machine, if it has one.

    Raises:
        ServerError: half of it is missing.
    """
    server = _program("mariadbd", "MariaDB")
    if server is None:
        return None
    installer = shutil.which("mariadb-install-db", path=_SERVER_PATH)
    if installer is None:
        raise ServerError(f"{server} has no mariadb-install-db beside it: apt-get install mariadb-server")
    # "normal": root may log in without the operating system's user, whoever runs the server.
    normal = "--auth-root-authentication-method=normal"
    return DatabaseSoftware(
        brand="MariaDB",
        command=(server, "--no-defaults", *AS_ROOT),
        initialise=(installer, "--no-defaults", *AS_ROOT, normal, "--skip-test-db", "--skip-name-resolve"),
        data_folder="data",
    )


def installed_mysql() -> DatabaseSoftware | None:
    """Return MySQL of this machine, if it has one."""
    server = _program("mysqld", "MySQL")
    return None if server is None else mysql((server,), "data-mysql-installed")


def mysql(server: tuple[str, ...], data_folder: str, *own_files: str) -> DatabaseSoftware:
    """Return MySQL as it is started by the words of `server`."""
    command = (*server, "--no-defaults", *own_files, *AS_ROOT)
    return DatabaseSoftware(
        brand="MySQL",
        command=command,
        initialise=(*command, "--initialize-insecure"),
        data_folder=data_folder,
    )


def _program(program: str, brand: str) -> str | None:
    """Return the path of a server of this machine, unless it only has the name of another brand's."""
    path = shutil.which(program, path=_SERVER_PATH)
    if path is None:
        return None
    is_mariadb = "mariadb" in Path(path).resolve().name
    return path if is_mariadb == (brand == "MariaDB") else None


def run_to_its_end(
    command: list[str], timeout_seconds: float, *, standard_input: str | None = None
) -> subprocess.CompletedProcess[str]:
    """
    Run a program, by default without input; what it says on either stream is in `stdout`.

    Raises:
        subprocess.TimeoutExpired: it was killed, it took too long.
    """
    return subprocess.run(  # noqa: S603 - programs of this machine, no shell
        command,
        input=standard_input or "",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout_seconds,
        check=False,
    )
