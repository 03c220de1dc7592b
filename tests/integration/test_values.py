"""Values reach the tables as they are, whatever bytes they have, in each character set that is allowed."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from rmq_txn import Database
from rmq_txn.errors import SettingsError
from tests.kit.rows import rows

pytestmark = pytest.mark.servers

# A body that ends its value and goes on as SQL, if the server reads its bytes in another character set than
# the driver escaped them in: 0xBF 0x5C is one character of gbk, so the quote behind it is free.
INJECTION = b"\xbf' OR 1 = 1 -- "
JSON = json.dumps({"name": 'O\'Brien \\ "北京" \U0001f600', "n": "%s"}, ensure_ascii=False).encode()


@pytest.mark.parametrize("character_set", ["utf8mb4", "utf8mb3", "latin1", "ascii"])
@pytest.mark.parametrize("sql_mode", ["", "NO_BACKSLASH_ESCAPES", "ANSI_QUOTES"])
def test_bytes_and_text_arrive_as_they_were(
    database_url: str, open_database: Callable[..., Database], character_set: str, sql_mode: str
) -> None:
    """Bodies with every byte; also in a session whose SQL mode changes what a backslash is."""
    database = open_database(f"{database_url}?charset={character_set}")
    bodies = [INJECTION, JSON, bytes(range(256)), b"\\", b"'", b"\\'"]
    text = "O'Brien \\' \" %s"
    with database.transaction() as txn:
        if sql_mode:
            txn.execute(f"SET SESSION sql_mode = '{sql_mode}'")
        for n, body in enumerate(bodies):
            txn.execute(
                "INSERT INTO rmq_txn_outbox (txn_id, position, message_id, topic, properties, body)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                ("t", n, text, "t", b"{}", body),
            )
    found = rows(database_url, "SELECT body, message_id FROM rmq_txn_outbox ORDER BY position")
    assert found == [(body, text.encode()) for body in bodies]


@pytest.mark.parametrize(
    "character_set", ["gbk", "big5", "sjis", "cp932", "gb18030", "euckr", "GBK", "binary", ""]
)
def test_a_character_set_that_is_not_surely_safe_is_refused(character_set: str) -> None:
    """At once, with what is allowed."""
    with pytest.raises(SettingsError, match=r"charset .*, allowed are ascii, latin1, utf8, utf8mb3, utf8mb4"):
        Database.mysql(f"mysql://u:p@h/d?charset={character_set}")
