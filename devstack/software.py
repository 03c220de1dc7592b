"""Which database server a stack runs: that of the machine, or one of Debian's unstable suite beside it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from devstack.debian import started_by_its_loader, unpacked
from devstack.errors import StackError
from devstack.machine import run_to_its_end

INSTALLED: Final = "installed"
MYSQL: Final = "mysql"
MARIADB_11: Final = "mariadb-11"
DATABASES: Final = (INSTALLED, MYSQL, MARIADB_11)

_INITIALISE_SECONDS = 120.0
_VERSION_SECONDS = 30.0
# Distributions put the server where ordinary users have no PATH to.
_SERVER_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
# Both servers refuse to run as root unless told so.
_AS_ROOT: Final = ("--user=root",) if os.geteuid() == 0 else ()
# What mariadb-install-db feeds to the server, without the help texts.
_MARIADB_TABLES = (
    "mariadb_system_tables.sql",
    "mariadb_performance_tables.sql",
    "mariadb_system_tables_data.sql",
    "maria_add_gis_sp_bootstrap.sql",
    "mariadb_sys_schema.sql",
)


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
        """Make a data folder with an administrator 'root'@'localhost' that has no password."""
        data.mkdir()
        command = [*self.initialise, f"--datadir={data}"]
        text = " ".join(command)
        try:
            done = run_to_its_end(command, _INITIALISE_SECONDS, standard_input=self.script)
        except subprocess.TimeoutExpired as exc:
            raise StackError(
                f"the database was not initialised within {_INITIALISE_SECONDS:g} s\ncommand: {text}"
            ) from exc
        if done.returncode != 0:
            raise StackError(
                f"cannot initialise the database (exit code {done.returncode})\n"
                f"command: {text}\n{done.stdout[-4000:]}"
            )

    def version(self) -> str:
        """Return what the server says it is, such as "MySQL 9.7.4-2"."""
        said = run_to_its_end([*self.command, "--version"], _VERSION_SECONDS).stdout
        found = re.search(r"\bVer (\S+)", said)
        return f"{self.brand} {found[1] if found else said.strip()}"


def find(name: str, cache_folder: Path) -> DatabaseSoftware:
    """
    Return the software of a name, fetching it when it is not there.

    Args:
        name: "installed": MariaDB of this machine, else its MySQL. "mysql": MySQL of this machine, else
            that of Debian's unstable suite. "mariadb-11": MariaDB of that suite.
        cache_folder: where fetched software is kept for all stacks.

    Raises:
        StackError: this machine doesn't have it and can't get it; the text says why.
    """
    if name == MARIADB_11:
        return _fetched_mariadb(cache_folder)
    mariadb, mysql = _installed("mariadbd", "MariaDB"), _installed("mysqld", "MySQL")
    if name == MYSQL:
        return _fetched_mysql(cache_folder) if mysql is None else _mysql((mysql,), "data-mysql-installed")
    if mariadb is not None:
        return _installed_mariadb(mariadb)
    if mysql is not None:
        return _mysql((mysql,), "data-mysql-installed")
    raise StackError("neither mariadbd nor mysqld is installed, install one: apt-get install mariadb-server")


def _installed(program: str, brand: str) -> str | None:
    """Return the path of a server of this machine, unless it only has the name of another brand's."""
    path = shutil.which(program, path=_SERVER_PATH)
    if path is None:
        return None
    is_mariadb = "mariadb" in Path(path).resolve().name
    return path if is_mariadb == (brand == "MariaDB") else None


def _installed_mariadb(server: str) -> DatabaseSoftware:
    installer = shutil.which("mariadb-install-db", path=_SERVER_PATH)
    if installer is None:
        raise StackError(f"{server} has no mariadb-install-db beside it: apt-get install mariadb-server")
    # "normal": root may log in without the operating system's user, whoever runs the server.
    normal = "--auth-root-authentication-method=normal"
    return DatabaseSoftware(
        brand="MariaDB",
        command=(server, "--no-defaults", *_AS_ROOT),
        initialise=(installer, "--no-defaults", *_AS_ROOT, normal, "--skip-test-db", "--skip-name-resolve"),
        data_folder="data",
    )


def _mysql(server: tuple[str, ...], data_folder: str, *own_files: str) -> DatabaseSoftware:
    command = (*server, "--no-defaults", *own_files, *_AS_ROOT)
    return DatabaseSoftware(
        brand="MySQL",
        command=command,
        initialise=(*command, "--initialize-insecure"),
        data_folder=data_folder,
    )


def _fetched_mysql(cache_folder: Path) -> DatabaseSoftware:
    root = unpacked("mysql-server-core", cache_folder)
    return _mysql(
        started_by_its_loader(root, "mysqld"),
        "data-mysql",
        f"--basedir={root / 'usr'}",
        f"--lc-messages-dir={root / 'usr/share/mysql'}",
        f"--plugin-dir={root / 'usr/lib/mysql/plugin'}",
        "--secure-file-priv=NULL",  # its default folder is not on this machine
    )


def _fetched_mariadb(cache_folder: Path) -> DatabaseSoftware:
    root = unpacked("mariadb-server-core", cache_folder)
    share = root / "usr/share/mariadb"
    command = (
        *started_by_its_loader(root, "mariadbd"),
        "--no-defaults",
        f"--basedir={root / 'usr'}",
        f"--lc-messages-dir={share}",
        f"--character-sets-dir={share / 'charsets'}",
        *_AS_ROOT,
    )
    # Its mariadb-install-db starts the server by itself, with the machine's C library.
    begin = "CREATE DATABASE IF NOT EXISTS mysql;\nUSE mysql;\nSET @auth_root_socket = NULL;\n"
    return DatabaseSoftware(
        brand="MariaDB",
        command=command,
        initialise=(*command, "--bootstrap", "--enforce-storage-engine=", "--max-allowed-packet=8M"),
        data_folder="data-mariadb-11",
        script=begin + "".join((share / name).read_text() for name in _MARIADB_TABLES),
    )
