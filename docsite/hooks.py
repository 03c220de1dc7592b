"""
The events of mkdocs in which documents of the checkout become pages of the site.

Pages are the files of `docs/` and those of `ELSEWHERE`; `docs/decisions` gets a list of its records, and
`docs/cli.md` the reference that `commands.py` makes. What becomes of links stands in `links.py`.
"""

from __future__ import annotations

import logging
import re
from pathlib import PurePosixPath

import jieba
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docsite import commands
from docsite.links import CHECKOUT, SiteMap

ELSEWHERE = {
    "README.md": "index.md",
    "README.zh-CN.md": "index.zh-CN.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "demo_account_service/README.md": "demo-account-service.md",
    "demo_points_service/README.md": "demo-points-service.md",
}
DECISIONS = "decisions/index.md"
COMMANDS = "cli.md"
CHINESE = ".zh-CN.md"

_NAV_OF_DECISIONS = "decisions"
_state: dict[str, SiteMap] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every decision record into the navigation, in the place of the word `decisions`."""
    _teach_words()
    folder = CHECKOUT / "docs" / "decisions"
    records = [f"decisions/{path.name}" for path in sorted(folder.glob("*.md"))]

    def expanded(nav: object) -> object:
        if isinstance(nav, list):
            return [expanded(entry) for entry in nav]
        if isinstance(nav, dict):
            return {title: expanded(entry) for title, entry in nav.items()}
        return [DECISIONS, *records] if nav == _NAV_OF_DECISIONS else nav

    config.nav = expanded(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that have no file of their own in `docs/`."""
    pages = {f"docs/{file.src_uri}": file.src_uri for file in files}
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(CHECKOUT / source).read_text("utf-8")))
    files.append(File.generated(config, DECISIONS, content=_list_of_decisions()))
    pages |= ELSEWHERE | {"docs/decisions": DECISIONS}
    _state["map"] = SiteMap(pages, config.repo_url)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Tell the links of a page from where it stands on the site."""
    uri = page.file.src_uri
    if uri == DECISIONS:
        return markdown
    sources = {page: source for source, page in ELSEWHERE.items()}
    text = _state["map"].told(sources.get(uri, f"docs/{uri}"), markdown)
    return f"{text}\n{commands.reference()}" if uri == COMMANDS else text


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:  # noqa: ARG001
    """Say which language a page is in: for fonts, hyphens and screen readers."""
    if page.file.src_uri.endswith(CHINESE):
        return re.sub(r'<html lang="en"', '<html lang="zh-CN"', output, count=1)
    return output


def _teach_words() -> None:
    """Tell jieba, which cuts Chinese text for the search, the words of our glossary."""
    cache = CHECKOUT / ".devstack"  # not the temporary folder, where another user's file would be read
    cache.mkdir(exist_ok=True)
    jieba.dt.tmp_dir = str(cache)
    jieba.setLogLevel(logging.WARNING)
    glossary = (CHECKOUT / "docs" / "glossary.md").read_text("utf-8")
    for cell in re.findall(r"^\| [^|]+ \| ([^|]+) \|", glossary, re.MULTILINE):
        for word in re.findall(r"[\u4e00-\u9fff]{2,}", cell):
            jieba.add_word(word)


def _list_of_decisions() -> str:
    lines = [
        "# Decisions\n",
        "Choices that a reader would ask about: context, decision, consequences.\n",
    ]
    for path in sorted((CHECKOUT / "docs" / "decisions").glob("*.md")):
        title = path.read_text("utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"* [{title}]({PurePosixPath(path.name)})")
    return "\n".join([*lines, ""])
