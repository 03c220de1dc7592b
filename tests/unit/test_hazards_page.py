"""`docs/hazards.md` has a test for each neutralisation, and every item the code refers to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.test_guarantees import CHECKOUT, NODE_ID, not_collected

PAGE = (CHECKOUT / "docs" / "hazards.md").read_text(encoding="utf-8")
CODES = [
    *(f"A{n}" for n in range(1, 10)),
    *(f"B{n}" for n in range(7)),
    *(f"C{n}" for n in range(1, 11)),
    *(f"D {part}" for part in ("memory", "bodies", "compression", "sizes", "properties", "getters")),
    "D2",
    "D3",
    *(f"E{n}" for n in range(1, 17)),
    "E2b",
    *(f"F{n}" for n in range(1, 7)),
    *(f"H{n}" for n in range(1, 15)),
]
REFERENCE = re.compile(r"docs/hazards\.md,\s+(?:# )?([A-H]\d*[a-z]?)\b")
ALSO = re.compile(r"\(([A-H]\d+[a-z]?)\)")
"""Behind a first reference the others of a comment stand alone, in parentheses."""


def rows() -> list[list[str]]:
    """Return the cells of each row of the tables."""
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cells for cells in found if cells[0] != "item" and set(cells[0]) != {"-"}]


def references(source: str) -> set[str]:
    """Return the items that a module's comments refer to."""
    found = set(REFERENCE.findall(source))
    return found | set(ALSO.findall(source)) if found else found


def test_every_hazard_has_one_row() -> None:
    """Those of the first collection and those found since."""
    assert sorted(cells[0] for cells in rows()) == sorted(CODES)


def test_no_cell_is_empty_and_each_neutralisation_has_a_test() -> None:
    """Or says why it has none: nothing to call."""
    for cells in rows():
        assert len(cells) == 4, cells
        assert all(cells), cells
        assert NODE_ID.search(cells[3]) or cells[3].startswith("none: "), cells


def test_every_test_named_for_a_hazard_is_collected() -> None:
    """Asked of pytest itself."""
    assert not_collected(PAGE) == set()


@pytest.mark.parametrize(
    "path", sorted((CHECKOUT / "rmq_txn").rglob("*.py")), ids=lambda path: str(path.relative_to(CHECKOUT))
)
def test_every_item_in_a_comment_is_on_the_page(path: Path) -> None:
    """`docs/hazards.md, B0` in the code leads somewhere."""
    known = {cells[0] for cells in rows()} | {"D"}
    assert references(path.read_text(encoding="utf-8")) - known == set()


def test_the_reader_of_comments_finds_items() -> None:
    """So that the test above can fail."""
    assert references("Crashes at exit (B5).") == set()
    assert references("# it leaks (docs/hazards.md,\n    # D) each time") == {"D"}
    assert references("It leaks (docs/hazards.md, D), crashes (B1). docs/hazards.md, E2b") == {
        "D",
        "B1",
        "E2b",
    }
