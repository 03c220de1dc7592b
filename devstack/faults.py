"""What the fault lab breaks: a plan made from a seed, and the machinery that carries it out."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from devstack.errors import StackError
from devstack.keeper import Keeper
from devstack.proxy import TcpProxy

_DELAY_SECONDS: Final = 0.3

# What can happen to a process, and to a line. A clean restart is as likely as a kill or a pause.
PROCESS_FAULTS: Final = ("kill -9", "pause", "restart")
LINE_FAULTS: Final[Mapping[str, Callable[[TcpProxy], None]]] = {
    "cut": TcpProxy.cut,
    "black hole": lambda proxy: proxy.silence(to_client=True, to_server=True),
    "black hole to the client": lambda proxy: proxy.silence(to_client=True, to_server=False),
    "black hole to the server": lambda proxy: proxy.silence(to_client=False, to_server=True),
    "half-open": TcpProxy.half_open,
    "hold": TcpProxy.hold,
    "delay": lambda proxy: proxy.delay(_DELAY_SECONDS),
}
_SWITCH_AGAIN_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Fault:
    """
    One fault of a plan.

    Attributes:
        at: seconds after the begin of the run.
        kind: one of PROCESS_FAULTS or LINE_FAULTS, or a switch's own.
        target: the process, line or switch it happens to.
        seconds: how long it lasts; a killed process is started again after that.
    """

    at: float
    kind: str
    target: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.kind}: {self.target}, for {self.seconds:.1f} s"


def make_plan(
    seed: int,
    processes: Sequence[str],
    lines: Sequence[str],
    switches: Mapping[str, Iterable[str]],
    *,
    seconds: float,
    count: int,
    longest: float,
) -> list[Fault]:
    """
    Choose `count` faults at random times within `seconds`; the same arguments choose the same ones.

    Nothing is hit twice before everything was hit once. Faults overlap as chance will have it. `switches`
    are the kinds of fault that each of them has.
    """
    chance = random.Random(seed)
    everything = [*processes, *lines, *switches]
    kinds = {
        **dict.fromkeys(processes, PROCESS_FAULTS),
        **dict.fromkeys(lines, tuple(LINE_FAULTS)),
        **{name: tuple(turns) for name, turns in switches.items()},
    }
    chance.shuffle(everything)
    targets = [
        everything[number] if number < len(everything) else chance.choice(everything)
        for number in range(count)
    ]
    chance.shuffle(targets)
    times = sorted(chance.uniform(0, seconds) for _ in range(count))
    return [
        Fault(
            at=at,
            kind=chance.choice(kinds[target]),
            target=target,
            seconds=chance.uniform(0.5, longest),
        )
        for at, target in zip(times, targets, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Happened:
    """
    A fault that is over.

    Attributes:
        fault: as it was planned.
        began: when it was there, in seconds since the epoch.
        ended: when it was taken away; what was killed is started from then on.
    """

    fault: Fault
    began: float
    ended: float


class FaultMachine:
    """
    Carries out a plan, each fault in a thread of its own; one at a time for each target.

    Args:
        keepers: the processes, by name.
        lines: the proxies, by name.
        switches: by name and kind of fault, what turns it on or off; OSError while its server is away.
        say: prints a line.

    Attributes:
        happened: the faults that are over, in the order of their ends.
    """

    def __init__(
        self,
        keepers: Mapping[str, Keeper],
        lines: Mapping[str, TcpProxy],
        switches: Mapping[str, Mapping[str, Callable[[bool], None]]],
        say: Callable[[str], None],
    ) -> None:
        self._keepers = keepers
        self._lines = lines
        self._switches = switches
        self._say = say
        self._one_at_a_time = {name: threading.Lock() for name in (*keepers, *lines, *switches)}
        self._stop = threading.Event()
        self.happened: list[Happened] = []

    def run(self, plan: Sequence[Fault]) -> None:
        """Return when every fault is over; what was killed may still be starting."""
        threads = []
        began = 0.0
        for fault in plan:
            if self._stop.wait(fault.at - began):
                break
            began = fault.at
            threads.append(threading.Thread(target=self._apply, args=(fault,), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def run_in_turn(
        self, faults: Sequence[Fault], *, calm_seconds: float, wait_well: Callable[[], None]
    ) -> None:
        """
        Let faults happen one after the other, whatever their `at`: what is seen belongs to one of them.

        Args:
            faults: in this order.
            calm_seconds: between two of them, and before the first and after the last one.
            wait_well: returns when what the last one broke works again; calm begins then.
        """
        for fault in faults:
            if self._stop.wait(calm_seconds):
                return
            self._apply(fault)
            wait_well()
        self._stop.wait(calm_seconds)

    def stop(self) -> None:
        """End the faults that last, begin no more."""
        self._stop.set()

    def _apply(self, fault: Fault) -> None:
        with self._one_at_a_time[fault.target]:
            self._say(str(fault))
            began = time.time()
            if fault.target in self._lines:
                self._break_line(fault)
            elif fault.target in self._switches:
                self._turn(fault)
            else:
                self._break_process(fault)
            self.happened.append(Happened(fault, began, time.time()))

    def _break_line(self, fault: Fault) -> None:
        proxy = self._lines[fault.target]
        LINE_FAULTS[fault.kind](proxy)
        self._stop.wait(fault.seconds)
        proxy.heal()

    def _turn(self, fault: Fault) -> None:
        """Turn it on if its server is there, and off in any case: it must be there again in the end."""
        turn = self._switches[fault.target][fault.kind]
        try:
            turn(True)
        except OSError as error:
            self._say(f"{fault.kind}: {fault.target} could not be turned on ({error})")
        self._stop.wait(fault.seconds)
        while True:
            try:
                turn(False)
            except OSError:
                time.sleep(_SWITCH_AGAIN_SECONDS)
            else:
                return

    def _break_process(self, fault: Fault) -> None:
        keeper = self._keepers[fault.target]
        keeper.hold()
        try:
            if fault.kind == "kill -9":
                keeper.server.end()
                self._stop.wait(fault.seconds)
            elif fault.kind == "restart":
                keeper.server.stop()
            else:
                keeper.server.pause()
                try:
                    self._stop.wait(fault.seconds)
                finally:
                    keeper.server.resume()
        except StackError as error:  # it was down: a service that had ended because something else was
            self._say(f"{fault.kind}: {fault.target} was down already ({str(error).splitlines()[0]})")
        finally:
            keeper.release()
