"""Clients of the account service: each repeats its transfer until the answer is final."""

from __future__ import annotations

import http.client
import random
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Final

from devstack.services import Answer, DemoService

USERS: Final = tuple(f"user{number:02}" for number in range(20))
PAUPER: Final = "pauper"
SEEDS: Final = {**dict.fromkeys(USERS, 10**9), PAUPER: 0}
"""More than any run moves, so that only the pauper's transfers fail for want of money."""

_FEN_PER_YUAN: Final = 100
_MOST_YUAN: Final = 50
_PAUPERS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0


class Load:
    """
    Some threads that transfer whole yuan between random users until told to stop.

    Args:
        services: processes of the account service; each request goes to any of them.
        run: begins every transfer id.
        clients: threads.
        pause_seconds: how long each of them rests after a transfer.
    """

    def __init__(
        self, services: Sequence[DemoService], run: str, *, clients: int, pause_seconds: float = 0.0
    ) -> None:
        self._services = services
        self._run = run
        self._pause_seconds = pause_seconds
        self._stop = threading.Event()
        self._give_up = threading.Event()
        self._lock = threading.Lock()
        self._number = 0
        self.committed: dict[str, str] = {}
        """Transfers that a client was told are committed, with the txn_id it was told."""
        self.refused: set[str] = set()
        self.undecided: set[str] = set()
        """Transfers that were never answered for good, because the lab gave up."""
        self.answers: Counter[str] = Counter()
        self.surprises: list[str] = []
        """Answers that no fault explains."""
        self._threads = [
            threading.Thread(target=self._work, name=f"client {n}", daemon=True) for n in range(clients)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin no more transfers; those that run go on until they are answered."""
        self._stop.set()

    def join(self, seconds: float) -> None:
        """Wait for the transfers that run; after `seconds` the clients give up."""
        timer = threading.Timer(seconds, self._give_up.set)
        timer.daemon = True
        timer.start()
        for thread in self._threads:
            thread.join()
        timer.cancel()

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                self._number += 1
                number = self._number
            self._transfer(f"{self._run}-{number:06}")
            self._stop.wait(self._pause_seconds)

    def _transfer(self, transfer_id: str) -> None:
        payer, payee = random.sample(USERS, 2)
        if random.random() < _PAUPERS:
            payer = PAUPER
        amount = _FEN_PER_YUAN * random.randint(1, _MOST_YUAN)
        body = {"transfer_id": transfer_id, "from": payer, "to": payee, "amount": amount}
        pause = 0.05
        while not self._final(transfer_id, payer, self._post(body)):
            if self._give_up.wait(random.uniform(pause / 2, pause)):
                self.undecided.add(transfer_id)
                return
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _post(self, body: dict[str, object]) -> Answer | None:
        """Ask any process; None: it gave no answer, and nobody knows what became of the request."""
        try:
            answer = random.choice(self._services).post("/transfers", body)
        except (OSError, http.client.HTTPException) as error:
            what, answer = f"no answer ({type(error).__name__})", None
        else:
            what = f"{answer.status} {answer.body.get('error', {}).get('code', '')}".strip()
        with self._lock:
            self.answers[what] += 1
        return answer

    def _final(self, transfer_id: str, payer: str, answer: Answer | None) -> bool:
        if answer is None:
            return False
        if answer.status in (200, 201):
            self.committed[transfer_id] = answer.body["txn_id"]
            return True
        if answer.status == 409 and payer == PAUPER:
            self.refused.add(transfer_id)
            return True
        if answer.status != 503:
            with self._lock:
                self.surprises.append(f"{transfer_id}: {answer.status} {answer.body}")
        return False
