"""
Read which package index the user has configured for pip or uv. The values may hold credentials.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rmq_txn.errors import NativeLibraryError

_DEFAULT_TIMEOUT_SECONDS = 15.0  # pip's default
_PIP_CONFIG_TIMEOUT_SECONDS = 60.0
OTHER_WAY = "or get the file elsewhere and run `rmq-txn native install --from FILE`"


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """Where to look and how to connect. Holds credentials: `repr` leaves the URLs out."""

    index_urls: tuple[str, ...]
    """Simple-index URLs, preferred first; empty stands for the default index."""
    find_links: tuple[str, ...]
    """Folders or pages with links, looked at first."""
    no_index: bool
    trusted_hosts: tuple[str, ...]
    ca_bundle: str | None
    client_certificate: str | None
    proxy: str | None
    timeout_seconds: float

    def __repr__(self) -> str:
        return f"<IndexSettings: {len(self.index_urls)} indexes, {len(self.find_links)} find-links>"


def read_settings(environ: Mapping[str, str] = os.environ) -> IndexSettings:
    """
    Read what the user configured for pip (files and `PIP_*`), then for uv (`UV_*`, no files).

    pip's files are read by asking pip itself, so a Python without pip knows only the environment.

    Raises:
        NativeLibraryError: pip is there but can't read its configuration, or a value is malformed.
    """
    pip = _ask_pip()
    for variable, value in environ.items():
        # As in pip, the environment beats the files, and an empty variable is none.
        if variable.startswith("PIP_") and value:
            pip[variable.removeprefix("PIP_").lower().replace("_", "-")] = value

    index_urls = pip.get("index-url", "").split()
    if not index_urls:
        for variable in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"):
            if environ.get(variable):
                # uv allows a name before the URL: `internal=https://...`
                index_urls = [re.sub(r"^[\w.-]+=", "", environ[variable])]
                break
    extra_urls = pip.get("extra-index-url", "").split()
    if not extra_urls:
        extra_urls = environ.get("UV_EXTRA_INDEX_URL", "").split()
    for url in [*index_urls, *extra_urls]:
        _require_url(url)

    timeout = pip.get("timeout") or pip.get("default-timeout")
    try:
        timeout_seconds = float(timeout) if timeout else _DEFAULT_TIMEOUT_SECONDS
    except ValueError as exc:
        raise NativeLibraryError(f"pip's timeout is {timeout!r}, a number is expected") from exc
    return IndexSettings(
        # An extra index alone is *added* to the default one, as in pip.
        index_urls=(*(index_urls or default_indexes() if extra_urls else index_urls), *extra_urls),
        find_links=tuple(
            str(Path(place).expanduser()) if place.startswith("~") else place
            for place in pip.get("find-links", "").split()
        ),
        no_index=pip.get("no-index", "").lower() in {"1", "true", "yes", "on", "y", "t"},
        trusted_hosts=tuple(pip.get("trusted-host", "").split()),
        ca_bundle=pip.get("cert")
        or environ.get("REQUESTS_CA_BUNDLE")
        or environ.get("CURL_CA_BUNDLE")
        or None,
        client_certificate=pip.get("client-cert"),
        proxy=pip.get("proxy"),
        timeout_seconds=timeout_seconds,
    )


def _ask_pip() -> dict[str, str]:
    """Return pip's settings for `pip install` without the dashes, or nothing if pip is not there."""
    if importlib.util.find_spec("pip") is None:
        return {}
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            cwd=sys.prefix,  # `-m` imports from the working folder first; a stray pip.py is not pip
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PIP_CONFIG_TIMEOUT_SECONDS,
            check=True,
        )
        settings: dict[str, str] = {}
        scoped = [line.partition("=")[::2] for line in answer.stdout.splitlines()]
        for scope in ("global", "install"):
            for key, value in scoped:
                if key.rpartition(".")[0] == scope:
                    settings[key.rpartition(".")[2]] = str(ast.literal_eval(value))
    except (subprocess.SubprocessError, ValueError, SyntaxError) as exc:
        # Going on would ask an index the user did not choose. What pip said may hold a password.
        raise NativeLibraryError(
            f"`{sys.executable} -m pip config list` failed ({type(exc).__name__}), so the package "
            f"index to use is not known: run it to see why, {OTHER_WAY}"
        ) from None
    return settings


def default_indexes() -> tuple[str, ...]:
    """Return the index that unearth uses when it is given none."""
    from unearth import PackageFinder

    return tuple(source["url"] for source in PackageFinder().sources if source["type"] == "index")


def _require_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme == "file" or (parts.hostname is not None and parts.port != 0)
    except ValueError:
        valid = False
    if not valid:
        raise NativeLibraryError(
            "a configured package index is not a valid URL (not shown, it may hold a password); a "
            "special character in a user name or password is written percent-encoded, see "
            "`pip config list`"
        )
