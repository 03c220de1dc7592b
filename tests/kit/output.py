"""
What a document says a program prints, compared with what it printed.

`…` alone stands for any lines, at the end of a line for the rest of it. Ids, ports and times differ from
run to run; an id that stands twice in a document must be the same id both times. The fields of log lines
have no order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ELLIPSIS = "…"

_IDS = r"\b(?:[0-9a-f]{32}|[0-9a-f]{16}|[0-9A-F]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\b"
_OTHERS = {
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    r"seconds=[\d.]+": r"seconds=[\d.e-]+",
    r"pid \d+": r"pid \d+",
    r"127\.0\.0\.1:\d+": r"127\.0\.0\.1:\d+",
}
_VARIABLE = re.compile("|".join(f"({pattern})" for pattern in (_IDS, *_OTHERS)))


class Output:
    """
    The outputs of one document. It remembers which id here is which id there.

    Args:
        now_and_then: how lines begin that may be printed anywhere, or not at all. One that a document
            shows must be printed, and may come earlier than there.
        overtaken: how lines begin that other threads may overtake on a busy machine: what a document shows
            after them may be printed before.
    """

    def __init__(self, now_and_then: Sequence[str] = (), overtaken: Sequence[str] = ()) -> None:
        self._now_and_then = tuple(now_and_then)
        self._overtaken = tuple(overtaken)
        self._ids: dict[str, str] = {}

    def of_note(self, said: Sequence[str]) -> list[str]:
        """Return the lines that a document must show."""
        return [line for line in said if not line.startswith(self._now_and_then)]

    def match(self, expected: Sequence[str], said: Sequence[str]) -> int | None:
        """
        Return how many lines of `said` are the expected ones, from the first on; None if more must be said.

        A match binds the ids in it.

        Raises:
            AssertionError: a line is another one than the expected, and nothing may stand before that.
        """
        ids, taken, may_skip = dict(self._ids), 0, False
        early = list[str]()
        for line in expected:
            if line == ELLIPSIS:
                may_skip = True
                continue
            found = None
            for number, seen in enumerate(early):
                if (found := _ids_of(line, seen, ids)) is not None:
                    del early[number]
                    break
            while found is None:
                if taken == len(said):
                    return None
                found = _ids_of(line, said[taken], ids)
                taken += 1
                if found is None:
                    is_early = line.startswith(self._overtaken) or not self.of_note([said[taken - 1]])
                    assert may_skip or is_early, f"expected is {line!r}, said was {said[taken - 1]!r}"
                    early += [said[taken - 1]] * is_early
            ids.update(found)
            may_skip = False
        self._ids = ids
        return len(said) if may_skip else taken


def _ids_of(expected: str, said: str, ids: dict[str, str]) -> dict[str, str] | None:
    """Return the ids that make both lines the same, or None if none do."""
    cut = expected.endswith(ELLIPSIS)
    if cut:
        expected = expected.removesuffix(ELLIPSIS)
    else:
        expected, said = _in_order(expected), _in_order(said)
    pattern, new, end = "", list[str](), 0
    for found in _VARIABLE.finditer(expected):
        pattern += re.escape(expected[end : found.start()])
        end = found.end()
        text = found[0]
        if found[1] is None:
            pattern += next(p for seen, p in _OTHERS.items() if re.fullmatch(seen, text))
        elif text in ids:
            pattern += re.escape(ids[text])
        elif text in new:
            pattern += f"(?P=id{new.index(text)})"
        else:
            pattern += f"(?P<id{len(new)}>{_IDS})"
            new.append(text)
    pattern += re.escape(expected[end:]) + (".*" if cut else "")
    same = re.fullmatch(pattern, said)
    return None if same is None else {text: same[f"id{number}"] for number, text in enumerate(new)}


def _in_order(line: str) -> str:
    """Sort the fields of a log line."""
    words = line.split(" ")
    fields = sorted(word for word in words if re.match(r"\w+=", word))
    return " ".join([*(word for word in words if not re.match(r"\w+=", word)), *fields])
