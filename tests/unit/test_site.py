"""The site of the documents: built strictly, complete, and nothing in it is loaded from elsewhere."""

from __future__ import annotations

import argparse
import json
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pymdownx.superfences import SuperFencesException

import rmq_txn
from docsite import hooks, links, sequence
from rmq_txn import errors
from rmq_txn.cli import build_parser

CHECKOUT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(path.relative_to(CHECKOUT / "docs") for path in (CHECKOUT / "docs").rglob("*.md"))
LOADING = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("object", "data")}
LOADING_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch"}


class Page(HTMLParser):
    """Collects what one page loads, has as anchors, links to in its navigation, and its policy."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.navigation: set[str] = set()
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.loaded += [value for name, value in values.items() if (tag, name) in LOADING]
        if tag == "link" and LOADING_LINKS & set(values.get("rel", "").split()):
            self.loaded.append(values.get("href", ""))
        self.loaded += re.findall(r"url\(([^)]*)\)", values.get("style", ""))
        self.anchors |= {values["id"]} if "id" in values else set()
        if tag == "a" and "md-nav__link" in values.get("class", ""):
            self.navigation.add(values.get("href", ""))
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]


def foreign(addresses: list[str]) -> list[str]:
    """Return the addresses that name a host."""
    return [address for address in addresses if re.match(r"['\"]?(?:[a-z]+:)?//", address)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `./dev docs` does, into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=CHECKOUT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,  # a guard against a hang: 6 s, on a crowded machine 100
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder


def page(site: Path, name: str) -> Page:
    """Read the page of a document; `index` is the start page."""
    path = site / "index.html" if name == "index" else site / name / "index.html"
    return Page(path.read_text("utf-8"))


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """No page, no style sheet, and a policy in each page that says so to the browser."""
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(DOCUMENTS)
    for path in pages:
        read = Page(path.read_text("utf-8"))
        assert read.loaded, path
        assert foreign(read.loaded) == [], path
        assert read.policy.startswith("default-src 'self';"), path
        assert not re.search(r"https?:|(?<!:)//|\*", read.policy), path
    for path in site.rglob("*.css"):
        text = path.read_text("utf-8")
        assert foreign(re.findall(r"url\(([^)]*)\)", text)) == [], path
        assert not re.search(r"@import", text), path


def test_the_finder_of_foreign_hosts_finds_them() -> None:
    """So that the test above can fail."""
    bad = Page(
        '<script src="https://cdn.example/a.js"></script><link rel="preconnect" href="//fonts.example">'
        '<img src="http://x.example/a.png"><p style="background: url(https://y.example)">'
        '<script src="assets/a.js"></script><a href="https://fine.example">link</a>'
    )
    assert len(foreign(bad.loaded)) == 4


@pytest.mark.parametrize("name", sorted(rmq_txn.__all__))
def test_every_public_name_is_in_the_reference(site: Path, name: str) -> None:
    """Under the name by which it is imported."""
    assert f"rmq_txn.{name}" in page(site, "api").anchors


def test_every_error_is_in_the_reference(site: Path) -> None:
    """Also the rarer ones, which are imported from `rmq_txn.errors`."""
    own = {name for name, value in vars(errors).items() if isinstance(value, type)}
    anchors = page(site, "api").anchors
    assert own
    rarer = own - set(rmq_txn.__all__)
    assert {name for name in rarer if f"rmq_txn.errors.{name}" not in anchors} == set()


@pytest.mark.parametrize("name", ["Transport", "ProducerTransport", "ConsumerTransport", "Check"])
def test_the_protocols_are_in_the_reference(site: Path, name: str) -> None:
    """The seam has a page of its own."""
    assert f"rmq_txn.transport.{name}" in page(site, "transport").anchors


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parser of each command that can be run."""
    if parser._subparsers is None:
        yield parser
        return
    (group,) = parser._subparsers._group_actions
    assert group.choices
    for inner in dict(group.choices).values():
        yield from commands(inner)


def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    """Made from the parsers, so this fails only if the making does."""
    text = (site / "cli" / "index.html").read_text("utf-8")
    anchors = page(site, "cli").anchors
    found = list(commands(build_parser()))
    assert len(found) > 10
    for command in found:
        assert command.prog.replace(" ", "-") in anchors
        for action in command._actions:
            if not isinstance(action, argparse._HelpAction):
                told = (action.option_strings or [str(action.metavar)])[-1]
                assert f"<code>{told}" in text, f"{command.prog} {told}"


def test_every_document_is_in_the_navigation(site: Path) -> None:
    """And those from elsewhere in the checkout: nothing has to be found by search."""
    read = page(site, "index")
    reached = {posixpath.normpath(link) for link in read.navigation}
    names = [*map(str, DOCUMENTS), *hooks.ELSEWHERE.values(), hooks.DECISIONS]
    wanted = {re.sub(r"(^|/)index$", "", name.removesuffix(".md")) or "." for name in names}
    assert wanted - reached == set()


def test_a_chinese_page_says_so(site: Path) -> None:
    """Browsers choose fonts and voices by it."""
    for name, language in (("concepts", "en"), ("concepts.zh-CN", "zh-CN")):
        text = (site / name / "index.html").read_text("utf-8")
        assert f'<html lang="{language}"' in text


def test_the_search_knows_the_words_of_the_glossary(site: Path) -> None:
    """`\\u200b` stands between the words that jieba cut."""
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    words = {word for entry in index["docs"] for word in entry["text"].split("\u200b")}
    assert {"半消息", "事务回查", "发件箱", "栅栏"} <= words


PAGES = {
    "docs/costs.md": "costs.md",
    "docs/decisions/0001-a.md": "decisions/0001-a.md",
    "docs/images/page.png": "images/page.png",
    "README.md": "index.md",
}


@pytest.mark.parametrize(
    ("source", "written", "told"),
    [
        ("docs/costs.md", "[a](decisions/0001-a.md#b)", "[a](decisions/0001-a.md#b)"),
        ("docs/decisions/0001-a.md", "[a](../costs.md)", "[a](../costs.md)"),
        ("docs/costs.md", "[the *home*](../README.md)", "[the *home*](index.md)"),
        ("README.md", "[costs](docs/costs.md#x)", "[costs](costs.md#x)"),
        ("docs/costs.md", "[`pool.py`](../rmq_txn/database/pool.py)", "`rmq_txn/database/pool.py`"),
        ("docs/costs.md", "[a licence](../LICENSE)", "a licence (`LICENSE`)"),
        ("docs/costs.md", "[gone](../no/such/file)", "[gone](../no/such/file)"),
        ("docs/costs.md", "[web](https://example.org/a.md)", "[web](https://example.org/a.md)"),
        ("README.md", "[![a [b]", "[![a [b]"),
        ("README.md", "![a](docs/images/page.png)", "![a](images/page.png)"),
        ("docs/decisions/0001-a.md", "![a](../images/page.png)", "![a](../images/page.png)"),
        (
            "README.md",
            "[![a](docs/images/page.png)](docs/images/page.png)",
            "[![a](images/page.png)](images/page.png)",
        ),
        ("docs/costs.md", "`[a](../LICENSE)`", "`[a](../LICENSE)`"),
        ("docs/costs.md", "```md\n[a](../LICENSE)\n```\n", "```md\n[a](../LICENSE)\n```\n"),
    ],
)
def test_links_are_told_from_where_the_page_is(source: str, written: str, told: str) -> None:
    """A page stays a link, another file becomes its path, and what is broken is left for mkdocs to say."""
    assert links.SiteMap(PAGES).told(source, written) == told


def test_with_a_repository_files_are_links_into_it() -> None:
    """Once there is one, `repo_url` in mkdocs.yml is enough."""
    site_map = links.SiteMap(PAGES, repository_url="https://example.org/us/rmq_txn/")
    told = site_map.told("docs/costs.md", "[`pool.py`](../rmq_txn/database/pool.py)")
    assert told == "[`pool.py`](https://example.org/us/rmq_txn/blob/HEAD/rmq_txn/database/pool.py)"


DIAGRAM = """
sequenceDiagram
    participant P as producer <1>
    participant B as 经纪人
    P->>B: half message, and a text so long that it has to be broken into lines
    B-->>P: stored
    P->>P: COMMIT
    Note over P,B: a note
    alt one
        P->>B: commit
    else two
        P->>B: rollback
    end
"""


def test_a_diagram_is_drawn_with_all_of_its_words() -> None:
    """Well-formed, on its canvas, with every label."""
    drawn = ElementTree.fromstring(sequence.svg(DIAGRAM))
    _, _, width, height = map(float, drawn.attrib["viewBox"].split())
    words = " ".join(text.text or "" for text in drawn.iter("text"))
    for word in ("producer <1>", "经纪人", "broken into", "COMMIT", "a note", "alt", "[one]", "[two]"):
        assert word in words
    for text in drawn.iter("text"):
        assert 0 < float(text.attrib["x"]) < width
        assert 0 < float(text.attrib["y"]) < height


@pytest.mark.parametrize(
    "source",
    [
        "flowchart LR\n a --> b",
        "sequenceDiagram\n P->>B: a\n activate B",
        "sequenceDiagram\n alt a\n P->>B: a",
        "sequenceDiagram\n P->>B: a\n end",
        "sequenceDiagram\n P->>B: a\n else b",
    ],
)
def test_what_can_not_be_drawn_ends_the_build(source: str) -> None:
    """Better than a page that shows something else than GitHub does."""
    with pytest.raises(SuperFencesException):
        sequence.fence(source, "mermaid", "", {}, None)
