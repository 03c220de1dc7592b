"""The invariant of the demo services, read from both databases without asking the services."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import TracebackType

import pymysql

from devstack.services import ACCOUNT_DATABASE, POINTS_DATABASE, Databases
from rmq_txn import Database
from rmq_txn.database.pool import parse_url

FEN_PER_POINT = 100


@dataclass(frozen=True, slots=True)
class Transfer:
    """A committed transfer, of the account service's database."""

    payer: str
    amount: int
    txn_id: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the points ledger, of the points service's database."""

    user: str
    points: int
    txn_id: str


@dataclass(frozen=True, slots=True)
class Books:
    """
    Both databases at one moment.

    Attributes:
        balances: fen, by user.
        transfers: by transfer id.
        entries: by transfer id.
        points: by user.
        twice: transfers with more than one entry; the service's own key forbids them, the fault lab drops it.
        parked: what the points service could not handle: no points until a person replays it.
    """

    balances: dict[str, int]
    transfers: dict[str, Transfer]
    entries: dict[str, Entry]
    points: dict[str, int]
    twice: frozenset[str] = frozenset()
    parked: frozenset[str] = frozenset()

    @property
    def total(self) -> int:
        """Return the sum of all balances, in fen."""
        return sum(self.balances.values())

    @property
    def missing(self) -> set[str]:
        """Return the committed transfers that earned nothing (yet)."""
        return self.transfers.keys() - self.entries.keys()

    @property
    def awaited(self) -> set[str]:
        """Return the committed transfers whose points can still come by themselves."""
        return self.missing - self.parked

    def without(self, ids: set[str]) -> Books:
        """Return the books as if these transfers, which earned nothing, had not been made."""
        return replace(self, transfers={id_: t for id_, t in self.transfers.items() if id_ not in ids})

    @property
    def extra(self) -> set[str]:
        """Return what earned points and was never committed."""
        return self.entries.keys() - self.transfers.keys()

    def problems(self, total: int) -> list[str]:
        """
        Return in words where the books break the invariant; nothing if they keep it.

        Args:
            total: what the sum of balances must be, in fen.
        """
        found = []
        if self.total != total:
            found.append(f"the sum of balances is {self.total} fen, it must be {total}")
        if self.missing:
            found.append(f"transfers without points: {sorted(self.missing)}")
        if self.extra:
            found.append(f"points without a transfer: {sorted(self.extra)}")
        if self.twice:
            found.append(f"transfers with points twice: {sorted(self.twice)}")
        for transfer_id in sorted(self.transfers.keys() & self.entries.keys()):
            transfer = self.transfers[transfer_id]
            due = Entry(transfer.payer, transfer.amount // FEN_PER_POINT, transfer.txn_id)
            if self.entries[transfer_id] != due:
                found.append(f"transfer {transfer_id}: entry is {self.entries[transfer_id]}, due is {due}")
        earned: dict[str, int] = {}
        for entry in self.entries.values():
            earned[entry.user] = earned.get(entry.user, 0) + entry.points
        if earned != self.points:
            found.append(f"points are {self.points}, the entries add up to {earned}")
        return found


class Ledger:
    """
    Reads the books. For one thread; a context manager.

    Args:
        stack: a stack that runs, on which both services have made their tables.
    """

    def __init__(self, stack: Databases) -> None:
        self._account = Database.mysql(stack.database_url(ACCOUNT_DATABASE), pool_size=1)
        self._points = Database.mysql(stack.database_url(POINTS_DATABASE), pool_size=1)

    def read(self) -> Books:
        """Read both databases; DatabaseUnavailableError when one does not answer."""
        # Points first: a transfer that commits in between is then missing, never extra.
        with self._points.transaction() as txn:
            txn.execute("SELECT transfer_id, user_id, points, txn_id FROM points_entry")
            entries: dict[str, Entry] = {}
            twice = set()
            for transfer_id, *entry in txn.fetchall():
                if transfer_id in entries:
                    twice.add(transfer_id)
                entries[transfer_id] = Entry(*entry)
            txn.execute("SELECT user_id, points FROM points_balance")
            points = dict(txn.fetchall())
            txn.execute("SELECT message_key FROM rmq_txn_parked WHERE state > 0 AND message_key IS NOT NULL")
            parked = frozenset(key.decode() for (key,) in txn.fetchall())
        with self._account.transaction() as txn:
            txn.execute("SELECT transfer_id, payer, amount, txn_id FROM transfer")
            transfers = {row[0]: Transfer(*row[1:]) for row in txn.fetchall()}
            txn.execute("SELECT user_id, balance FROM account")
            balances = dict(txn.fetchall())
        return Books(balances, transfers, entries, points, frozenset(twice), parked)

    def close(self) -> None:
        """Close the connections."""
        self._account.close()
        self._points.close()

    def __enter__(self) -> Ledger:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()


def drop_the_key_that_hides_duplicates(stack: Databases) -> None:
    """Let the ledger take a second entry of a transfer: its key would hide what the inbox lets through."""
    url = stack.database_url(POINTS_DATABASE)
    with pymysql.connect(**parse_url(url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "ALTER TABLE points_entry DROP PRIMARY KEY, ADD KEY (transfer_id),"
            " ADD COLUMN line BIGINT AUTO_INCREMENT PRIMARY KEY"
        )
