"""Which database server a stack runs: that of the machine, or one of Debian's unstable suite beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from devstack.debian import started_by_its_loader, unpacked
from devstack.errors import StackError
from rmq_txn.testing import server_software as software
from rmq_txn.testing.server_software import AS_ROOT, DatabaseSoftware, ServerError

INSTALLED: Final = "installed"
MYSQL: Final = "mysql"
MARIADB_11: Final = "mariadb-11"
DATABASES: Final = (INSTALLED, MYSQL, MARIADB_11)

# What mariadb-install-db feeds to the server, without the help texts.
_MARIADB_TABLES = (
    "mariadb_system_tables.sql",
    "mariadb_performance_tables.sql",
    "mariadb_system_tables_data.sql",
    "maria_add_gis_sp_bootstrap.sql",
    "mariadb_sys_schema.sql",
)


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
    if name == MYSQL:
        return software.installed_mysql() or _fetched_mysql(cache_folder)
    try:
        return software.installed()
    except ServerError as error:
        raise StackError(str(error)) from error


def _fetched_mysql(cache_folder: Path) -> DatabaseSoftware:
    root = unpacked("mysql-server-core", cache_folder)
    return software.mysql(
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
        *AS_ROOT,
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
