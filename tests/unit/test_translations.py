"""Each Chinese document says what the English one does: piece by piece, rows of tables included."""

from __future__ import annotations

import re

import pytest

from tests.kit.documents import CHINESE, TRANSLATIONS, links, text_of, untranslated

ENGLISH = """
# A title

A paragraph with `code` and 15 questions,
and a [link](costs.md#the-outbox).

* An item,
  with a second line.

| failure point | test |
|---|---|
| DDL in a handler | `tests/a.py::test_a` |
| a deadlock | `tests/a.py::test_b` |

```python
# a.py
print(1)  # why
```
"""
TRANSLATED = """
# 标题

一段话，[链接](costs.zh-CN.md#发件箱)，15 次，`code`。

* 一项，
  还有第二行。

| 故障点 | 测试 |
|---|---|
| 处理函数里的 DDL | `tests/a.py::test_a` |
| 死锁 | `tests/a.py::test_b` |

```python
# a.py
print(1)  # 为什么
```
"""


@pytest.mark.parametrize("original", TRANSLATIONS)
def test_a_translation_has_every_piece_of_its_original(original: str) -> None:
    missing = untranslated(text_of(original), text_of(TRANSLATIONS[original]))
    assert missing == [], "\n".join(["", *missing])


@pytest.mark.parametrize("translation", TRANSLATIONS.values())
def test_a_chinese_document_links_to_chinese_documents_where_there_are_any(translation: str) -> None:
    to_itself = translation.rpartition("/")[2].replace(CHINESE, ".md")  # "[English](...)"
    translated = {name.removeprefix("docs/") for name in TRANSLATIONS}
    named = {re.sub(r"^(\.\./)?(docs/)?|#.*$", "", link) for link in links(text_of(translation))}
    assert (named & translated) - {to_itself} == set()


def test_what_readers_use_is_in_both_languages() -> None:
    pages = ("concepts", "costs", "demo", "failures", "guarantees", "installation", "migrating", "quickstart")
    pages += ("frameworks", "operating", "performance", "recipes", "scaling")
    pages += ("telemetry", "testing", "tutorial")
    wanted = {f"docs/{page}.md" for page in pages}
    assert wanted | {"README.md"} == set(TRANSLATIONS)


def test_a_good_translation_lacks_nothing() -> None:
    assert untranslated(ENGLISH, TRANSLATED) == []


@pytest.mark.parametrize(
    ("in_translation", "instead", "named"),
    [
        (
            "| 死锁 | `tests/a.py::test_b` |\n",
            "",
            "only in the original: | a deadlock | `tests/a.py::test_b` |",
        ),
        ("15 次", "16 次", "only in the original: A paragraph"),
        ("`code`", "`mode`", "only in the original: A paragraph"),
        ("costs.zh-CN.md", "hazards.md", "only in the original: A paragraph"),
        ("# 标题", "## 标题", "only in the original: # A title"),
        ("* 一项，\n  还有第二行。\n", "", "only in the original: * An item"),
        ("print(1)", "print(2)", "only in the original: # a.py"),
        ("死锁 |", "死锁 | 一格 |", "only in the translation: | 死锁 | 一格 |"),
    ],
)
def test_what_differs_is_named(in_translation: str, instead: str, named: str) -> None:
    assert in_translation in TRANSLATED
    told = "\n".join(untranslated(ENGLISH, TRANSLATED.replace(in_translation, instead)))
    assert named in told
