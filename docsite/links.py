"""
Where on the site the files of the checkout are, and links and quotations told accordingly.

Documents are written for GitHub and editors: links are relative to the file and may lead anywhere in the
checkout. On the site a link to a page stays a link, one to any other file becomes its path. A line that
is nothing but a link to a README, or to a section of one, is replaced by that text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pymdownx.slugs import slugify

CHECKOUT = Path(__file__).resolve().parents[1]
QUOTED = ("README.md", "README.zh-CN.md")
"""Files whose sections are spread over pages of the site; each section stands on one page."""

_FENCE = re.compile(r"^```.*?^```$\n?", re.MULTILINE | re.DOTALL)
_CODE_OR_LINK = re.compile(
    r"(?P<code>(?P<ticks>`+).+?(?P=ticks))"
    r"|(?P<image>!?)\[(?P<label>(?:!\[[^\]]*\]\([^)]*\)|`[^`\n]*`|[^\[\]`])+)\]\((?P<target>[^)#\s]*)(?:#(?P<anchor>[^)\s]*))?\)",
    re.DOTALL,
)
_LINK_ALONE = re.compile(r"^\[[^\]\n]+\]\((?P<target>[^)#\s]+)(?:#(?P<anchor>[^)\s]*))?\)$", re.MULTILINE)
_slug: Callable[[str, str], str] = slugify(case="lower")


class LinkError(Exception):
    """A document can't be put on the site; the text says which one and why."""


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and the site (`toc` in mkdocs.yml) make it."""
    return _slug(heading.replace("`", ""), "-")


def sections(text: str) -> dict[str, str]:
    """
    Return the parts of a document by their anchors, each with its heading of level 2.

    "" is the lead: what stands between the title and the first of them, without links to translations.
    """
    fences: list[str] = []

    def hide(found: re.Match[str]) -> str:
        fences.append(found[0])
        return f"\0{len(fences) - 1}\0"

    def show(part: str) -> str:
        return re.sub(r"\0(\d+)\0", lambda found: fences[int(found[1])], part)

    lead, *rest = re.split(r"^(?=## )", _FENCE.sub(hide, text), flags=re.MULTILINE)
    lead = re.sub(r"\A# .*\n", "", lead)
    parts = {"": show(_LINK_ALONE.sub("", lead)).strip() + "\n"}
    for part in rest:
        heading = part.partition("\n")[0].removeprefix("## ")
        parts[slug(heading)] = show(part)
    return parts


def resolve(source: str, target: str) -> str:
    """Return what a link in the file `source` leads to, as a path inside the checkout."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target)) if target else source


@dataclass(frozen=True)
class SiteMap:
    """
    Which file of the checkout is which page, and which page quotes which section.

    Args:
        pages: path in the checkout to page or picture, such as `docs/costs.md` to `costs.md`.
        repository_url: where files that are no pages can be seen; None makes them plain paths.
    """

    pages: Mapping[str, str]
    repository_url: str | None = None
    quotes: dict[tuple[str, str], str] = field(default_factory=dict)
    _texts: dict[str, dict[str, str]] = field(default_factory=dict)

    def read_quotations(self) -> None:
        """
        Find out on which page each section of the quoted files stands.

        Raises:
            LinkError: a section stands on no page or on two, or is asked for and not there.
        """
        self._texts.update({name: sections((CHECKOUT / name).read_text("utf-8")) for name in QUOTED})
        for source, page in self.pages.items():
            path = CHECKOUT / source
            if path.suffix != ".md" or source in QUOTED:
                continue
            for _, name, anchor in self._quotations(source, path.read_text("utf-8")):
                if anchor not in self._texts[name]:
                    raise LinkError(f"{source} quotes section #{anchor} of {name}, which is not there")
                if (name, anchor) in self.quotes:
                    raise LinkError(
                        f"section #{anchor} of {name} is on {self.quotes[name, anchor]} and on {page}"
                    )
                self.quotes[name, anchor] = page
        for name, parts in self._texts.items():
            for anchor in parts:
                if (name, anchor) not in self.quotes:
                    raise LinkError(
                        f"section #{anchor} of {name} is on no page of the site; put a line "
                        f"[...](../{name}#{anchor}) into one of docs/"
                    )

    def _quotations(self, source: str, text: str) -> Iterator[tuple[re.Match[str], str, str]]:
        for found in _LINK_ALONE.finditer(text):
            name = resolve(source, found["target"])
            if name in QUOTED:
                yield found, name, found["anchor"] or ""

    def page_text(self, source: str, text: str) -> str:
        """Return a document as the site shows it: quotations filled in, links told from its page."""
        page = self.pages[source]
        parts, end = [], 0
        for found, name, anchor in self._quotations(source, text):
            parts += [self.told(source, page, text[end : found.start()])]
            parts += [self.told(name, page, self._texts[name][anchor])]
            end = found.end()
        return "".join([*parts, self.told(source, page, text[end:])])

    def told(self, source: str, page: str, text: str) -> str:
        """Rewrite the links of a piece of `source` for `page`; code is left alone."""

        def rewrite(found: re.Match[str]) -> str:
            if found["code"] or re.match(r"[a-z]+:", found["target"]):
                return found[0]
            path, anchor = resolve(source, found["target"]), found["anchor"] or ""
            label = _CODE_OR_LINK.sub(rewrite, found["label"]) if "![" in found["label"] else found["label"]
            place = self.quotes.get((path, anchor)) or self.pages.get(path)
            if place is not None:
                link = posixpath.relpath(place, posixpath.dirname(page) or ".")
                return f"{found['image']}[{label}]({link}{f'#{anchor}' if anchor else ''})"
            if found["image"] or not (CHECKOUT / path).exists():
                return found[0]  # mkdocs says so
            if self.repository_url is not None:
                return f"[{label}]({self.repository_url.rstrip('/')}/blob/HEAD/{path})"
            return f"`{path}`" if path.endswith(label.strip("`")) else f"{label} (`{path}`)"

        parts, end = [], 0
        for fence in _FENCE.finditer(text):
            parts += [_CODE_OR_LINK.sub(rewrite, text[end : fence.start()]), fence[0]]
            end = fence.end()
        return "".join([*parts, _CODE_OR_LINK.sub(rewrite, text[end:])])
