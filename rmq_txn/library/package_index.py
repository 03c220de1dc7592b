"""
Download one pinned source archive from the package index the user has configured for pip or uv.

Only looked up and downloaded, never built or installed: no code of the archive runs. The archive's
SHA-256 is pinned by the caller, so it does not matter which mirror served it. Credentials in index
URLs are used and never shown.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmq_txn.errors import NativeLibraryError
from rmq_txn.library.index_settings import OTHER_WAY, IndexSettings, default_indexes, read_settings
from rmq_txn.logs import redact

if TYPE_CHECKING:
    from unearth import Link
    from unearth.fetchers import PyPIClient

_CHUNK_BYTES = 1 << 16


def fetch_sdist(name: str, version: str, sha256: str, limit_bytes: int) -> bytes:
    """
    Return the source archive, verified.

    Kept in memory: it is small, bounded, and a full or missing temporary folder can't be in the way.

    Args:
        name: distribution name.
        version: the exact version.
        sha256: hex digest the archive must have.
        limit_bytes: the download is abandoned when it grows larger than this.

    Raises:
        NativeLibraryError: unearth is missing, no index answered, none has the archive, or what
            came has another hash.
    """
    if importlib.util.find_spec("unearth") is None:
        raise NativeLibraryError(
            "downloading needs the package unearth, which is not installed: run "
            f"`pip install 'rmq-txn[native-install]'`, {OTHER_WAY}"
        )
    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers import PyPIClient

    settings = read_settings()
    index_urls = () if settings.no_index else settings.index_urls or default_indexes()
    connection: dict[str, Any] = {"proxy": settings.proxy} if settings.proxy else {}
    with PyPIClient(
        trusted_hosts=settings.trusted_hosts,
        verify=_tls(settings),
        timeout=settings.timeout_seconds,
        follow_redirects=True,
        **connection,
    ) as session:
        # Not prompting: this runs in image builds, where a prompt would hang. Keyring still works.
        session.auth = MultiDomainBasicAuth(prompting=False, index_urls=index_urls)
        link = _find(session, settings.find_links, index_urls, name, version)
        content = _download(session, link, limit_bytes)
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise NativeLibraryError(
            f"{_shown(link.normalized)} has SHA-256 {actual}, expected {sha256}: it is not the "
            f"archive this package was tested with and was thrown away; check the index, {OTHER_WAY}"
        )
    return content


def _find(
    session: Any,  # a PyPIClient, which by its own types is not the Fetcher that unearth asks for
    find_links: tuple[str, ...],
    index_urls: tuple[str, ...],
    name: str,
    version: str,
) -> Link:
    """Return the link of the archive from the first place that has it."""
    from unearth import PackageFinder

    failures: list[str] = []
    unreachable = False
    for place, is_index in [(p, False) for p in find_links] + [(p, True) for p in index_urls]:
        if "://" not in place and not Path(place).exists():
            failures.append(f"find-links {place}: no such file or folder")
            continue
        with _collected_warnings() as warnings:
            try:
                # One finder a place: one dead extra index must not hide the archive in another.
                finder = PackageFinder(
                    session,
                    index_urls=[place] if is_index else (),
                    find_links=() if is_index else [place],
                    ignore_compatibility=True,
                    no_binary=[name],
                )
                for package in finder.find_matches(f"{name}=={version}"):
                    if package.link.filename.endswith(".tar.gz") and not package.link.is_vcs:
                        return package.link
            except _network_errors() as exc:
                unreachable = True
                failures.append(f"{_shown(place)}: {_reason(exc)}")
            except ValueError as exc:
                # Not JSON, not UTF-8, or a link that is no URL: whatever answers is no index.
                failures.append(f"{_shown(place)}: not a package index ({type(exc).__name__})")
            else:
                if not warnings:
                    failures.append(f"{_shown(place)}: answered, without this version")
        failures += warnings
    reached = "package index can't be reached" if unreachable else "not found"
    where = "; ".join(failures) or "pip is configured with no-index and without find-links"
    raise NativeLibraryError(
        f"{name} {version}: {reached} ({where}); check `pip config list` and the network, {OTHER_WAY}"
    )


def _download(session: PyPIClient, link: Link, limit_bytes: int) -> bytes:
    content = bytearray()
    for chunk in _chunks(session, link):
        content += chunk
        if len(content) > limit_bytes:
            raise NativeLibraryError(
                f"{_shown(link.normalized)} is larger than the limit of {limit_bytes} bytes: "
                f"it is not the expected archive; {OTHER_WAY}"
            )
    return bytes(content)


def _chunks(session: PyPIClient, link: Link) -> Iterator[bytes]:
    try:
        if link.is_file:
            with link.file_path.open("rb") as local:
                yield from iter(lambda: local.read(_CHUNK_BYTES), b"")
            return
        # identity: a server that declares the .gz itself as an encoding would make us hash the tar
        with session.get_stream(link.normalized, headers={"Accept-Encoding": "identity"}) as answer:
            if answer.status_code != 200:
                raise NativeLibraryError(
                    f"{_shown(link.normalized)} answered HTTP {answer.status_code}, 200 is "
                    f"expected; {OTHER_WAY}"
                )
            yield from answer.iter_bytes(_CHUNK_BYTES)
    except _network_errors() as exc:
        raise NativeLibraryError(
            f"reading {_shown(link.normalized)} failed: {_reason(exc)}; run it again, {OTHER_WAY}"
        ) from exc


def _tls(settings: IndexSettings) -> ssl.SSLContext | bool:
    bundle = settings.ca_bundle
    if bundle is None and settings.client_certificate is None:
        return True
    try:
        folder = bundle is not None and Path(bundle).is_dir()
        context = ssl.create_default_context(
            cafile=None if folder else bundle, capath=bundle if folder else None
        )
        if settings.client_certificate is not None:
            context.load_cert_chain(settings.client_certificate)
    except OSError as exc:  # ssl.SSLError is one
        raise NativeLibraryError(
            f"certificates configured for pip can't be loaded (cert {bundle!r}, client-cert "
            f"{settings.client_certificate!r}): {exc}"
        ) from exc
    return context


def _network_errors() -> tuple[type[Exception], ...]:
    """
    Return what the HTTP client under unearth raises.

    unearth moved from httpx to httpx2 in 0.19 and re-exports the errors of neither.
    """
    errors: list[type[Exception]] = [OSError]
    for library in ("httpx", "httpx2"):
        if importlib.util.find_spec(library) is not None:
            module = importlib.import_module(library)
            errors += [module.HTTPError, module.InvalidURL, module.StreamError]
    return tuple(errors)


def _reason(error: Exception) -> str:
    return redact(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def _shown(place: str) -> str:
    """Return a URL without credentials, query and fragment; a path unchanged."""
    return re.split(r"[?#]", redact(place), maxsplit=1)[0] if "://" in place else place


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect what unearth only logs, such as `401` and untrusted hosts, for our one error line."""
    collected: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                collected.append(redact(record.getMessage()))

    logger = logging.getLogger("unearth")
    handler = Collector()
    logger.addHandler(handler)
    try:
        yield collected
    finally:
        logger.removeHandler(handler)
