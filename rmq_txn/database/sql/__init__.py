"""The SQL of this package, by name. Read once at import; the files are the documentation."""

from __future__ import annotations

import re
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_VERSION = re.compile(r"^-- version: (\d+)$", re.MULTILINE)


def _read(file: str) -> str:
    return resources.files(__name__).joinpath(file).read_text(encoding="utf-8")


def without_comments(text: str) -> str:
    """Drop `-- ` comments, whole lines and line ends; no statement of ours quotes two dashes."""
    return re.sub(r"--\s.*$", "", text, flags=re.MULTILINE)


def _statements(text: str) -> dict[str, str]:
    _, *parts = _NAME.split(text)
    return {
        name: " ".join(without_comments(body).split())
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def _upgrades(text: str) -> dict[int, str]:
    _, *parts = _VERSION.split(text)
    return {int(version): body for version, body in zip(parts[::2], parts[1::2], strict=True)}


STATEMENTS = _statements(_read("statements.sql"))
SCHEMA = _read("schema.sql")
UPGRADES = _upgrades(_read("upgrades.sql"))
"""Scripts that lead to a version of the tables, by that version, ascending."""
