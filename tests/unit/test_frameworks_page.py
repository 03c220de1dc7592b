"""The code of `docs/frameworks.md` is what the examples say, which are run."""

from __future__ import annotations

import textwrap

import pytest

from tests.kit.documents import CHECKOUT, blocks, text_of

BLOCKS = blocks(text_of("docs/frameworks.md"), "python")


def excerpt_of(block: str, source: str) -> bool:
    """Whether a block stands in a source, at any indentation."""
    text = textwrap.dedent(block).rstrip()
    return any(
        textwrap.indent(text, " " * spaces, lambda line: bool(line.strip())) in source for spaces in (0, 4, 8)
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_each_block_is_an_excerpt_of_the_example_that_it_names(block: str) -> None:
    named, _, code = block.partition("\n")
    source = (CHECKOUT / named.removeprefix("# ")).read_text(encoding="utf-8")
    assert code.strip()
    assert excerpt_of(code, source)


def test_what_no_example_says_is_found() -> None:
    """The check above can fail."""
    assert BLOCKS
    assert not excerpt_of("with producer.transaction(join=joined(other)):", BLOCKS[0])
