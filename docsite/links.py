"""
Where on the site the files of the checkout are, and links told accordingly.

Documents are written for GitHub and editors: links are relative to the file and may lead anywhere in the
checkout. On the site a link to a page stays a link, one to any other file becomes its path.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

_FENCE = re.compile(r"^```.*?^```$\n?", re.MULTILINE | re.DOTALL)
_CODE_OR_LINK = re.compile(
    r"(?P<code>(?P<ticks>`+).+?(?P=ticks))"
    r"|(?P<image>!?)\[(?P<label>(?:!\[[^\]]*\]\([^)]*\)|`[^`\n]*`|[^\[\]`])+)\]\((?P<target>[^)#\s]*)(?:#(?P<anchor>[^)\s]*))?\)",
    re.DOTALL,
)


def resolve(source: str, target: str) -> str:
    """Return what a link in the file `source` leads to, as a path inside the checkout."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target)) if target else source


@dataclass(frozen=True)
class SiteMap:
    """
    Which file of the checkout is which page.

    Args:
        pages: path in the checkout to page or picture, such as `docs/costs.md` to `costs.md`.
        repository_url: where files that are no pages can be seen; None makes them plain paths.
    """

    pages: Mapping[str, str]
    repository_url: str | None = None

    def told(self, source: str, text: str) -> str:
        """Rewrite the links of `source` for its page; code is left alone."""
        page = self.pages[source]

        def rewrite(found: re.Match[str]) -> str:
            if found["code"] or re.match(r"[a-z]+:", found["target"]):
                return found[0]
            path, anchor = resolve(source, found["target"]), found["anchor"] or ""
            label = _CODE_OR_LINK.sub(rewrite, found["label"]) if "![" in found["label"] else found["label"]
            place = self.pages.get(path)
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
