"""What the documents of this checkout consist of: blocks, files, commands, links, and pieces to compare."""

from __future__ import annotations

import difflib
import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
CHINESE = ".zh-CN.md"
TRANSLATIONS = {
    path.relative_to(CHECKOUT).as_posix().replace(CHINESE, ".md"): path.relative_to(CHECKOUT).as_posix()
    for folder in (CHECKOUT, CHECKOUT / "docs")
    for path in sorted(folder.glob(f"*{CHINESE}"))
}
"""Each document that has a translation, and the translation."""
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
        return re.sub(r"^# .*\n", "", block, flags=re.MULTILINE)
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


@dataclass(frozen=True)
class Piece:
    """A heading, paragraph, item of a list, row of a table or fenced block of a document."""

    kind: str
    text: str

    def in_any_language(self) -> tuple[object, ...]:
        """Return what a translation leaves as it is: kind, code, numbers, and where links lead."""
        if self.kind in ("```mermaid", "```text"):  # pictures: their words are translated
            return self.kind, self.text.count("\n")
        if self.kind.startswith("```"):
            return self.kind, without_comments(self.kind.removeprefix("```"), self.text)
        code = sorted(set(re.findall(r"`([^`]+)`", self.text)))
        words = re.sub(r"`[^`]+`|\]\([^)\s]+\)", " ", self.text)
        numbers = sorted(re.findall(r"\d+(?:[.,]\d+)*", words))
        return self.kind, code, numbers, sorted(map(_in_any_language, links(self.text)))


def _in_any_language(link: str) -> str:
    """Return the link to a document instead of to its translation; the anchors of both differ."""
    document = link.partition("#")[0].replace(CHINESE, ".md")
    is_translated = Path(document).name in {Path(name).name for name in TRANSLATIONS}
    return document if is_translated and "demo_" not in document else link


_PIECE = re.compile(
    r"^(?P<fence>```[^\n]*)\n(?P<block>.*?)^```$"
    r"|^(?P<row>\|[^\n]*\|)$"
    r"|^(?P<heading>#+) [^\n]*$"
    r"|^(?P<item>\*|\d+\.) [^\n]*(?:\n {2,}\S[^\n]*)*"
    r"|^[^\n]+(?:\n(?!```|\||\* |\d+\. )[^\n]+)*",
    re.MULTILINE | re.DOTALL,
)


def pieces(text: str) -> list[Piece]:
    """Return the pieces of a document in order."""
    found = []
    for match in _PIECE.finditer(text):
        kind = match["fence"] or (match["row"] and match["row"].count("|") * "|") or match["heading"]
        found.append(Piece(kind or match["item"] or "paragraph", match["block"] or match[0]))
    return found


def untranslated(original: str, translation: str) -> list[str]:
    """Return each piece of one document that the other does not have, as lines for people."""
    ours, theirs = pieces(original), pieces(translation)
    matcher = difflib.SequenceMatcher(
        a=[repr(piece.in_any_language()) for piece in ours],
        b=[repr(piece.in_any_language()) for piece in theirs],
        autojunk=False,
    )
    told = []
    for tag, ours_from, ours_to, theirs_from, theirs_to in matcher.get_opcodes():
        if tag != "equal":
            told += [f"only in the original: {piece.text}" for piece in ours[ours_from:ours_to]]
            told += [f"only in the translation: {piece.text}" for piece in theirs[theirs_from:theirs_to]]
    return told
