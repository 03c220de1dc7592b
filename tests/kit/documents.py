"""What the documents of this checkout consist of: blocks, files, commands, links, shape."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
_TRANSLATED = re.compile(r"(README|tutorial|concepts)(?:\.zh-CN)?\.md(?:#.*)?$")
PROGRAMS = ("./dev", "rmq-txn", "pip", "python", "mqadmin")


def text_of(name: str) -> str:
    """Return a document of the checkout."""
    return (CHECKOUT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def all_blocks(text: str) -> list[tuple[str, str]]:
    """Return all fenced blocks with their languages, in order."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def without_blocks(text: str) -> str:
    """Return the prose."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def without_comments(language: str, block: str) -> str:
    """Return what a machine reads of a block: comments may be in the reader's language."""
    if language != "python":
        return block
    tokens = tokenize.generate_tokens(io.StringIO(block).readline)
    kept = [token for token in tokens if token.type not in (tokenize.COMMENT, tokenize.NL)]
    return " ".join(token.string for token in kept)


def file_name(block: str) -> str:
    """Return the file that a Python block belongs to; its first line says so."""
    found = re.match(r"# ([\w.]+\.py)\n", block)
    assert found, f"the first line of a Python block names its file: {block[:60]!r}"
    return found[1]


def quoted_commands(text: str) -> set[str]:
    """Return the commands that the prose quotes."""
    quoted = re.findall(r"`([^`\n]+)`", without_blocks(text))
    return {words for words in quoted if words.split()[0] in PROGRAMS and " " in words}


def shell_commands(text: str) -> set[str]:
    """Return the commands of shell blocks, and those that the prose quotes."""
    return {line for block in blocks(text, "sh") for line in block.splitlines()} | quoted_commands(text)


def links(text: str) -> list[str]:
    """Return the targets of the links that lead to files."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_blocks(text))
    return [target for target in targets if not re.match(r"https?:|#", target)]


def shape(text: str) -> dict[str, list[str]]:
    """
    Return what a document and its translation have in common beside their blocks.

    A link to a translated document leads to the one in the reader's language.
    """
    return {
        "headings": re.findall(r"^#+ ", text, re.MULTILINE),
        "rows": [row.count("|") * "|" for row in re.findall(r"^\|.*\|$", text, re.MULTILINE)],
        "items": re.findall(r"^(?:\*|\d+\.) ", text, re.MULTILINE),
        "commands": sorted(quoted_commands(text)),
        "links": [_TRANSLATED.sub(r"\1.md", link) for link in links(text)],
        "errors": re.findall(r"`(?:rmq_txn\.errors\.)?(\w+Error)`", text),
    }
