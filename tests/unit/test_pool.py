"""Database settings, URLs that keep their secrets, and the bounded pool."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest

from rmq_txn import Database, DatabaseUnavailableError
from rmq_txn.database import connection
from rmq_txn.database.pool import ConnectionPool, error_code, is_lost_connection, parse_url
from rmq_txn.errors import LifecycleError, SettingsError

CHECKOUT = Path(__file__).resolve().parents[2]
URL = "mysql://app:pw@127.0.0.1:3306/shop"
SECRET = "hunter2"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Return a port that refuses connections."""
    with socket.socket() as bound:  # bound, never listening: nobody else can take it meanwhile
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_a_url_becomes_the_drivers_parameters() -> None:
    """Percent-encoding is undone, the character set is the full one."""
    assert parse_url("mysql://us%40er:p%2Fw%3A%23@db.example:3307/sh%20op") == {
        "host": "db.example",
        "port": 3307,
        "user": "us@er",
        "password": "p/w:#",
        "database": "sh op",
        "charset": "utf8mb4",
    }


def test_port_and_password_may_be_left_out_and_options_are_passed_on() -> None:
    """3306, an empty password; `mariadb:` is the same."""
    found = parse_url("mariadb://app@db/shop?unix_socket=/run/db.sock&charset=utf8mb3")
    assert (found["port"], found["password"]) == (3306, "")
    assert (found["unix_socket"], found["charset"]) == ("/run/db.sock", "utf8mb3")


def test_an_authority_for_tls_that_cannot_be_used_is_refused_at_once(tmp_path: Path) -> None:
    """Not at the first transaction, and never with TLS that believes anybody."""
    empty = tmp_path / "empty.pem"
    empty.touch()
    for path in (empty, tmp_path / "missing.pem", tmp_path):
        with pytest.raises(
            SettingsError, match=r"ssl_ca is '.*', needed is a readable file with cert"
        ) as caught:
            parse_url(f"mysql://app:{SECRET}@db/shop?ssl_ca={path}")
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"postgres://app:{SECRET}@db/shop", "scheme 'postgres', allowed is mysql://"),
        (f"mysql+mysqldb://app:{SECRET}@db/shop", "'mysql+mysqldb', allowed is mysql://"),
        (f"mysql+pymysql://app:{SECRET}@db/shop", "it names a driver"),
        (f"mariadb+mysqldb://app:{SECRET}@db/shop", "write mysql:// here, and leave your engine as it is"),
        (f"//app:{SECRET}@db/shop", "scheme '', allowed is"),
        ("", "scheme '', allowed is"),
        (f"mysql://app:{SECRET}@db/shop?ssl_verify_identity=true", "ssl_verify_identity without ssl_ca"),
        (f"mysql://app:{SECRET}@db/shop?ssl_verify_identity=1", "'1', allowed is true or false"),
        (f"mysql://app:{SECRET}@db", "lacks a part"),
        (f"mysql://app:{SECRET}@db/", "lacks a part"),
        (f"mysql://:{SECRET}@db/shop", "lacks a part"),
        (f"mysql://app:{SECRET}@/shop", "lacks a part"),
        (f"mysql://app:{SECRET}@db/shop/more", "lacks a part"),
        (f"mysql://app:{SECRET}@db:port/shop", "no usable port, allowed is 1 to 65535"),
        (f"mysql://app:{SECRET}@db:0/shop", "no usable port, allowed is 1 to 65535"),
        (f"mysql://app:{SECRET}@db:70000/shop", "no usable port"),
        (f"mysql://app:{SECRET}@db/shop?autocommit=1", "options ['autocommit'], allowed are ['charset'"),
        (f"mysql://app:{SECRET}@db/shop?init_command={SECRET}", "options ['init_command']"),
        # What people forget to percent-encode in a password:
        (f"mysql://app:a/{SECRET}@db/shop", "lacks a part"),
        (f"mysql://app:a#{SECRET}@db/shop", "lacks a part"),
        (f"mysql://app:a?{SECRET}@db/shop", "lacks a part"),
        (f"mysql://app:{SECRET}[@db/shop", "percent-encode"),
        (f"mysql://app:{SECRET}℀@db/shop", "percent-encode"),  # refused by Python, which repeats it
        (f"mysql://app@corp:{SECRET}/x", "percent-encode"),  # an @ in the user: the password is a "port"
    ],
)
def test_a_url_that_is_not_usable_is_refused_without_showing_its_password(url: str, said: str) -> None:
    """Not in the text, and not in a chained error: tracebacks end in logs."""
    with pytest.raises(SettingsError) as caught:
        Database.mysql(url)
    assert said in str(caught.value)
    shown = "".join(traceback.format_exception_only(caught.value))
    for chained in (caught.value.__cause__, caught.value.__context__):
        if chained is not None and not caught.value.__suppress_context__:
            shown += str(chained)
    assert SECRET not in shown


@pytest.mark.parametrize(
    "name",
    [
        "pool_size",
        "pool_wait_seconds",
        "connect_timeout_seconds",
        "statement_timeout_seconds",
        "lock_wait_seconds",
        "local_timeout_seconds",
    ],
)
@pytest.mark.parametrize("value", [0, -1, float("nan"), True])
def test_a_number_that_is_not_above_zero_is_refused(name: str, value: Any) -> None:
    """The text names the setting and the value."""
    with pytest.raises(SettingsError, match=rf"{name} is {value!r}, allowed is a number above 0"):
        Database.mysql(URL, **{name: value})


@pytest.mark.parametrize("name", ["pool_size", "lock_wait_seconds", "local_timeout_seconds"])
def test_a_fraction_of_a_whole_number_is_refused(name: str) -> None:
    """The server takes whole seconds; half a connection holds nothing."""
    with pytest.raises(SettingsError, match=rf"{name} is 1\.5, allowed is a whole number above 0"):
        Database.mysql(URL, **{name: 1.5})  # type: ignore[arg-type]


def test_a_lock_wait_must_end_before_the_statements_timeout() -> None:
    """Else a held lock would look like a lost connection."""
    with pytest.raises(SettingsError, match=r"lock_wait_seconds is 5, it must be below .*\(5\)"):
        Database.mysql(URL, lock_wait_seconds=5, statement_timeout_seconds=5.0)
    assert Database.mysql(URL, lock_wait_seconds=5, statement_timeout_seconds=5.1).pool_size == 16


def test_a_described_database_connects_to_nothing(closed_port: int) -> None:
    """Not even to find out that nobody is there; closing it is fine."""
    database = Database.mysql(f"mysql://app:pw@127.0.0.1:{closed_port}/shop", pool_size=3)
    assert database.pool_size == 3
    database.close()
    database.close()


def test_a_refused_connection_is_told_with_the_address_and_frees_its_place(closed_port: int) -> None:
    """The pool of one is asked three times; a lost place would say `busy`."""
    database = Database.mysql(
        f"mysql://app:{SECRET}@127.0.0.1:{closed_port}/shop", pool_size=1, pool_wait_seconds=0.05
    )
    for _ in range(3):
        with pytest.raises(DatabaseUnavailableError) as caught:
            database.begin("t")
        assert f"database 127.0.0.1:{closed_port} did not answer" in str(caught.value)
        assert "(error 2003)" in str(caught.value)
        assert SECRET not in str(caught.value)
        assert isinstance(caught.value.__cause__, pymysql.err.MySQLError)


def test_a_full_pool_is_told_after_the_wait_and_says_what_helps(closed_port: int) -> None:
    """DBUtils would wait for ever; ours ends."""
    parameters = parse_url(f"mysql://app:pw@127.0.0.1:{closed_port}/shop")
    pool = ConnectionPool(parameters, size=2, wait_seconds=0.05)
    for _ in range(2):
        pool._permits.get(timeout=0)
    with pytest.raises(DatabaseUnavailableError) as caught:
        pool.borrow()
    assert str(caught.value) == (
        f"all 2 connections to 127.0.0.1:{closed_port} were busy for 0.05 s; "
        "raise pool_size or shorten the transactions"
    )


def test_a_closed_database_is_refused() -> None:
    """With the next step."""
    database = Database.mysql(URL)
    database.close()
    with pytest.raises(LifecycleError, match="the database is closed; make a new Database"):
        database.begin("t")


def test_a_database_used_before_a_fork_is_refused_after_it(closed_port: int) -> None:
    """Parent and child would talk on one connection; both pids are named."""
    program = textwrap.dedent(f"""
        import os
        from rmq_txn import Database, DatabaseUnavailableError
        from rmq_txn.errors import LifecycleError

        database = Database.mysql("mysql://app:pw@127.0.0.1:{closed_port}/shop")
        try:
            database.begin("t")
        except DatabaseUnavailableError:
            pass
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            try:
                database.begin("t")
            except LifecycleError as error:
                right = f"process {{parent}}" in str(error) and f"process {{os.getpid()}}" in str(error)
                os._exit(0 if right else 3)
            os._exit(4)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, timeout=30, check=False
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "0"), ran.stderr


@pytest.mark.parametrize(
    ("error", "code", "lost"),
    [
        (pymysql.err.OperationalError(2013, "Lost connection"), 2013, True),
        (pymysql.err.InterfaceError(0, ""), 0, True),
        (pymysql.err.OperationalError(1205, "Lock wait timeout"), 1205, False),
        (pymysql.err.IntegrityError(1062, "Duplicate"), 1062, False),
        (pymysql.err.OperationalError("2013"), None, False),
        (pymysql.err.OperationalError(), None, False),
        (pymysql.err.InterfaceError(False), None, False),
        (DatabaseUnavailableError("away"), None, True),
        (OSError(2013, "not the driver's"), None, False),
        (ValueError(0), None, False),
    ],
)
def test_errors_are_told_apart_by_number_never_by_text(
    error: Exception, code: int | None, lost: bool
) -> None:
    """Only numbers of the driver count."""
    assert error_code(error) == code
    assert is_lost_connection(error) is lost


def test_connections_that_trust_any_server_share_one_context_and_others_have_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Making one reads all authorities of the system: most of the time that it takes to connect."""
    made: list[object] = []
    create = ssl.create_default_context

    def counted(**settings: object) -> ssl.SSLContext:
        made.append(settings)
        return create(**settings)  # type: ignore[arg-type]

    monkeypatch.setattr(connection, "_optional_tls", connection._OptionalTls())
    monkeypatch.setattr(ssl, "create_default_context", counted)
    three = [connection.WatchedConnection(defer_connect=True) for _ in range(3)]
    assert len(made) == 1
    assert {one.ctx.verify_mode for one in three} == {ssl.CERT_NONE}  # type: ignore[attr-defined]
    own = create()
    strict = connection.WatchedConnection(defer_connect=True, ssl=own)
    assert (strict.ctx, strict._ssl_required) == (own, True)  # type: ignore[attr-defined]
    assert own.verify_mode is ssl.CERT_REQUIRED
