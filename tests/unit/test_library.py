"""The native library: looked for, downloaded from a package index, placed, refused."""

from __future__ import annotations

import _ctypes
import base64
import ctypes.util
import errno
import functools
import gzip
import hashlib
import importlib.util
import io
import lzma
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rmq_txn.cli import exit_codes, main
from rmq_txn.errors import NativeLibraryError
from rmq_txn.library import archive, index_settings, installer
from rmq_txn.logs import redact

ELF_HEADER = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00" + bytes(44)
LIBRARY = ELF_HEADER + b"the pinned build"
OTHER_LIBRARY = ELF_HEADER + b"another build"
USER, PASSWORD = "deploy", "s3cr3t"


def digest(content: bytes) -> str:
    """Return the SHA-256 as hex."""
    return hashlib.sha256(content).hexdigest()


def tar(members: dict[str, bytes], compress: Callable[[bytes], bytes] = gzip.compress) -> bytes:
    """Return a compressed tar archive of regular files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as writer:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            writer.addfile(info, io.BytesIO(content))
    return compress(packed.getvalue())


def sdist(content: bytes = LIBRARY) -> bytes:
    """Return a source archive as the pinned one is laid out."""
    top = f"{installer.SDIST_NAME}-{installer.SDIST_VERSION}"
    return tar({f"{top}/setup.py": b"raise SystemExit(1)", f"{top}/rocketmq/librocketmq.so": content})


def deb(data: bytes, data_name: str = "data.tar.xz") -> bytes:
    """Return an `ar` archive as dpkg writes it; the first members have odd and even sizes."""
    packed = b"!<arch>\n"
    for name, content in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),
        (data_name, data),
    ):
        packed += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        packed += content + b"\n" * (len(content) % 2)
    return packed


@dataclass
class Index:
    """A package index on the loopback interface, and what it was asked."""

    archive: bytes
    status: int = 200
    page_type: str = "text/html"
    password_needed: bool = False
    file_status: int = 200
    cut_after: int | None = None
    requests: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """The simple-index URL, with credentials if they are needed."""
        user = f"{USER}:{PASSWORD}@" if self.password_needed else ""
        return f"http://{user}127.0.0.1:{self.port}/simple"


class Handler(BaseHTTPRequestHandler):
    """Serve one project page and its one file."""

    def __init__(self, index: Index, *args: Any) -> None:
        self.index = index
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answer as the index was told to."""
        index = self.index
        index.requests.append(self.path)
        name = f"{installer.SDIST_NAME}-{installer.SDIST_VERSION}.tar.gz"
        token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if index.password_needed and self.headers["Authorization"] != f"Basic {token}":
            self._answer(401, "text/plain", b"who are you?")
        elif index.status != 200:
            self._answer(index.status, "text/plain", b"no")
        elif self.path == f"/simple/{installer.SDIST_NAME}/":
            page = f'<a href="/files/{name}">{name}</a>'.encode()
            self._answer(200, index.page_type, page)
        elif self.path == f"/files/{name}":
            self._answer(index.file_status, "application/gzip", index.archive, index.cut_after)
        else:
            self._answer(404, "text/plain", b"no")

    def _answer(self, status: int, content_type: str, body: bytes, cut_after: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut_after])

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test output clean."""


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """Start an index that serves the fabricated archive, pinned, as the only one configured."""
    served = Index(sdist())
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, served))
    server.daemon_threads = True
    served.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(installer, "SDIST_SHA256", digest(served.archive))
    monkeypatch.setenv("PIP_INDEX_URL", served.url)
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the index configuration of this machine and pin the fabricated library."""
    for name in os.environ:
        if name.startswith(("PIP_", "UV_")) or name.lower().endswith(("_proxy", "_ca_bundle")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(index_settings, "_ask_pip", dict)
    monkeypatch.setattr(installer, "LIBRARY_SHA256", digest(LIBRARY))
    monkeypatch.setattr(installer, "KNOWN_BUILDS", {digest(LIBRARY): "the test build"})
    # The tests place files and load none of them, so they run on any machine.
    monkeypatch.setattr(installer, "platform_problem", lambda: None)
    monkeypatch.setattr(installer, "load_problem", lambda _path: None)
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder that is found as the package `rocketmq` and fails when it is imported."""
    package = tmp_path / "site" / "rocketmq"
    package.mkdir(parents=True)
    for name in ("__init__.py", "ffi.py"):
        (package / name).write_text("raise ImportError('rocketmq dynamic library not found')\n")
    monkeypatch.delitem(sys.modules, "rocketmq", raising=False)
    monkeypatch.syspath_prepend(str(package.parent))
    return package


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command, expect the exit code for the native library, return the one line on stderr."""
    assert main(["native", *arguments]) == exit_codes.NOT_USABLE
    line = capsys.readouterr().err
    assert line.startswith("rmq-txn: ")
    assert line.count("\n") == 1
    return line


def test_install_downloads_from_the_configured_index(
    folder: Path, index: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file lies beside ffi.py, is readable by everybody, and nothing else was left there."""
    assert main(["native", "install"]) == exit_codes.OK

    placed = folder / "librocketmq.so"
    assert placed.read_bytes() == LIBRARY
    assert placed.stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in folder.iterdir()) == ["__init__.py", "ffi.py", placed.name]
    assert capsys.readouterr().out == f"installed: {placed}, build the test build\n"


def test_a_second_install_asks_nobody(folder: Path, index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    """Idempotent: the right file is there, so no request is made and the file is not touched."""
    installer.install()
    inode = (folder / "librocketmq.so").stat().st_ino
    index.requests.clear()

    assert main(["native", "install"]) == exit_codes.OK
    assert index.requests == []
    assert (folder / "librocketmq.so").stat().st_ino == inode
    assert capsys.readouterr().out.startswith("already there: ")


def test_install_replaces_another_build_and_keeps_the_old_mapping(folder: Path, index: Index) -> None:
    """The file is replaced by a rename, so that a process which mapped the old one goes on."""
    placed = folder / "librocketmq.so"
    placed.write_bytes(OTHER_LIBRARY)
    with placed.open("rb") as held:
        installer.install()
        assert held.read() == OTHER_LIBRARY
    assert placed.read_bytes() == LIBRARY


def test_credentials_of_the_index_are_used(
    folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """User and password of the index URL also serve the file, which lies outside /simple."""
    index.password_needed = True
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    installer.install()
    assert (folder / "librocketmq.so").read_bytes() == LIBRARY


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("password", "401"),
        ("status 403", "403"),
        ("status 404", "404"),
        ("status 500", "500"),
        ("page", "Content-Type unsupported"),
        ("json", "not a package index (JSONDecodeError)"),
        ("archive", "expected"),
    ],
)
def test_credentials_are_in_no_error(
    wrong: str,
    expected: str,
    folder: Path,
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever fails, the line names the index and shows neither user nor password."""
    caplog.set_level("DEBUG")
    index.password_needed = True
    url = index.url
    if wrong == "password":
        url = url.replace(PASSWORD, PASSWORD + "-old")
    elif wrong == "page":
        index.page_type = "image/png"
    elif wrong == "json":
        index.page_type = "application/vnd.pypi.simple.v1+json"
    elif wrong == "archive":
        index.archive += b"tampered"
    else:
        index.status = int(wrong.removeprefix("status "))
    monkeypatch.setenv("PIP_INDEX_URL", url)

    line = failure(capsys, "install")
    assert expected in line
    assert f"127.0.0.1:{index.port}" in line
    assert "--from" in line
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("rmq_txn")]
    assert not any(PASSWORD in text for text in [line, *ours])
    assert USER not in line


@pytest.mark.parametrize("url", ["http://deploy:s3/cr3t@[::1/simple", "https://deploy:s3/cr3t@host/x"])
def test_a_malformed_index_url_is_not_shown(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unencoded slash makes a part of the password look like a port: no part of it is shown."""
    monkeypatch.setenv("PIP_INDEX_URL", url)
    line = failure(capsys, "install")
    assert "is not a valid URL" in line
    assert "percent-encoded" in line
    assert "s3" not in line


def test_a_file_that_vanished_from_the_index_is_named(
    folder: Path, index: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page has a link whose target is gone, or the line is cut in the middle of the file."""
    index.file_status = 410
    assert ".tar.gz answered HTTP 410, 200 is expected" in failure(capsys, "install")
    index.file_status, index.cut_after = 200, 40
    assert ".tar.gz failed: RemoteProtocolError" in failure(capsys, "install")


def test_an_archive_with_another_hash_is_refused(
    folder: Path, index: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both hashes are shown, and the library that was there stays."""
    (folder / "librocketmq.so").write_bytes(OTHER_LIBRARY)
    index.archive = sdist(OTHER_LIBRARY)

    line = failure(capsys, "install")
    assert digest(index.archive) in line
    assert f"expected {installer.SDIST_SHA256}" in line
    assert (folder / "librocketmq.so").read_bytes() == OTHER_LIBRARY


def test_a_library_with_another_hash_is_refused(
    folder: Path,
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second pin: the archive is the expected one, the file in it is not."""
    monkeypatch.setattr(installer, "LIBRARY_SHA256", digest(OTHER_LIBRARY))
    line = failure(capsys, "install")
    assert f"{digest(LIBRARY)}, expected {digest(OTHER_LIBRARY)}; nothing was installed" in line
    assert not (folder / "librocketmq.so").exists()


def test_a_download_beyond_the_limit_is_abandoned(
    folder: Path,
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A server can't fill the disk: the size counts while it is read."""
    monkeypatch.setattr(installer, "SDIST_LIMIT_BYTES", 10)
    assert "is larger than the limit of 10 bytes" in failure(capsys, "install")


def test_an_index_without_the_version_is_named(
    folder: Path,
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The line says which version was looked for, and where."""
    monkeypatch.setattr(installer, "SDIST_VERSION", "2.1.0.4")
    monkeypatch.setattr(
        Handler, "do_GET", lambda handler: handler._answer(200, "text/html", b"<a href='x'>x</a>")
    )
    line = failure(capsys, "install")
    assert f"{installer.SDIST_NAME} 2.1.0.4: not found (http://127.0.0.1:" in line
    assert "answered, without this version" in line


def test_an_unreachable_index_is_named(
    folder: Path,
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A port that nobody listens on: the line says so and what else can be done."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_address[1]
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{USER}:{PASSWORD}@127.0.0.1:{port}/simple")
    line = failure(capsys, "install")
    assert f"package index can't be reached (http://***@127.0.0.1:{port}/simple: ConnectError" in line
    assert "--from FILE" in line
    assert PASSWORD not in line


def test_a_dead_index_does_not_hide_the_archive_in_another(
    folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each place is asked for itself, in order."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_address[1]
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", index.url)
    assert installer.install().read_bytes() == LIBRARY


def test_an_index_without_tls_must_be_trusted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As pip does, plain http is used only on the loopback interface or a trusted host."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple")
    assert "not being trusted" in failure(capsys, "install")


def test_a_folder_of_find_links_needs_no_index(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip's `no-index` with `find-links`, the way of machines without a network."""
    name = f"{installer.SDIST_NAME}-{installer.SDIST_VERSION}.tar.gz"
    (tmp_path / name).write_bytes(sdist())
    monkeypatch.setattr(installer, "SDIST_SHA256", digest((tmp_path / name).read_bytes()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path / 'missing'} {tmp_path}")
    assert installer.install().read_bytes() == LIBRARY


@pytest.mark.parametrize(
    ("links", "expected"),
    [("", "no-index and without find-links"), ("/no/such/folder", "no such file or folder")],
)
def test_no_index_and_no_archive_is_explained(
    links: str,
    expected: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The line says that the configuration leaves no place to look at."""
    monkeypatch.setenv("PIP_NO_INDEX", "true")
    monkeypatch.setenv("PIP_FIND_LINKS", links)
    assert expected in failure(capsys, "install")


def test_missing_unearth_is_named_with_its_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is an extra: only a download needs it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(installer, "_package_folder", lambda: folder)
    line = failure(capsys, "install")
    assert "pip install 'rmq-txn[native-install]'" in line
    assert "--from FILE" in line


def test_a_missing_client_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another distribution owns a package of the same name: ffi.py is what tells ours."""
    (tmp_path / "rocketmq").mkdir()
    (tmp_path / "rocketmq" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "rocketmq", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    for action in ("install", "status"):
        assert "pip install rocketmq-client-python==2.0.0" in failure(capsys, action)
    with pytest.raises(NativeLibraryError, match="has no module ffi"):
        installer.require()


def test_a_read_only_environment_is_named(
    folder: Path,
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is downloaded for a folder that can't be written."""
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    line = failure(capsys, "install")
    assert f"{folder} can't be written" in line
    assert "owner of the Python environment" in line
    assert index.requests == []


@pytest.mark.parametrize(("module", "call"), [(os, "fsync"), (tempfile, "mkstemp"), (Path, "replace")])
def test_a_failing_write_leaves_the_old_library(
    module: Any,
    call: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A full disk at any step: the old file is whole and no temporary file stays."""
    (tmp_path / "new.so").write_bytes(LIBRARY)
    (folder / "librocketmq.so").write_bytes(OTHER_LIBRARY)

    def fail(*_args: Any, **_keywords: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, call, fail)
    line = failure(capsys, "install", "--from", str(tmp_path / "new.so"))
    monkeypatch.undo()
    assert f"{folder} can't be written (No space left on device)" in line
    assert (folder / "librocketmq.so").read_bytes() == OTHER_LIBRARY
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("librocketmq.so", LIBRARY),
        ("client.tar.gz", sdist()),
        ("client.deb", deb(tar({"./usr/local/lib/librocketmq.so": LIBRARY}, lzma.compress))),
        ("gzip.deb", deb(tar({"./usr/lib/librocketmq.so": LIBRARY}), "data.tar.gz")),
        ("plain.deb", deb(tar({"./usr/lib/librocketmq.so": LIBRARY}, bytes), "data.tar/")),
    ],
)
def test_install_from_a_file_asks_no_index(
    name: str, content: bytes, folder: Path, tmp_path: Path, index: Index
) -> None:
    """The kind is told by the content; the library's hash is what counts."""
    (tmp_path / name).write_bytes(content)
    assert installer.install(tmp_path / name).read_bytes() == LIBRARY
    assert index.requests == []


def test_an_unknown_build_needs_consent(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its hash is shown; with --allow-unknown it is taken and called what it is."""
    (tmp_path / "official.deb").write_bytes(
        deb(tar({"./usr/local/lib/librocketmq.so": OTHER_LIBRARY}, lzma.compress))
    )
    line = failure(capsys, "install", "--from", str(tmp_path / "official.deb"))
    assert digest(OTHER_LIBRARY) in line
    assert "--allow-unknown" in line
    assert not (folder / "librocketmq.so").exists()

    arguments = ["native", "install", "--from", str(tmp_path / "official.deb"), "--allow-unknown"]
    assert main(arguments) == exit_codes.OK
    assert "unknown build" in capsys.readouterr().out
    assert installer.status().version == "unknown build"


def linked_archive() -> bytes:
    """Return an archive in which the library is a symbolic link to a file of the machine."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as writer:
        info = tarfile.TarInfo("top/rocketmq/librocketmq.so")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        writer.addfile(info)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "none of the kinds"),
        (b"<html>", "none of the kinds"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xb7\x00", "not an x86-64 ELF"),
        (b"\x7fELF", "not an x86-64 ELF"),
        (sdist(b"text"), "not an x86-64 ELF"),
        (sdist()[:80], "is damaged"),
        (gzip.compress(b"no tar"), "is damaged"),
        (linked_archive(), "has 0 regular files named librocketmq.so"),
        (tar({"a/librocketmq.so": LIBRARY, "b/librocketmq.so": LIBRARY}), "has 2 regular files"),
        (deb(b"\x28\xb5\x2f\xfdzstd", "data.tar.zst"), "compressed in a way this Python can't read"),
        (deb(b"", "other"), "has no member data.tar"),
        (b"!<arch>\ngarbage", "bad member header"),
    ],
    # Not the bytes: a gzip header holds the second it was made, and two workers must name tests alike.
    ids=(
        *("empty", "html", "another processor", "cut ELF", "text", "cut sdist", "gzip of no tar"),
        *("link", "two libraries", "zstd", "no data", "garbage"),
    ),
)
def test_an_unusable_file_is_refused(
    content: bytes,
    expected: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each kind of wrong file says what it is; consent to unknown builds changes nothing."""
    (tmp_path / "file").write_bytes(content)
    line = failure(capsys, "install", "--allow-unknown", "--from", str(tmp_path / "file"))
    assert expected in line
    assert str(tmp_path / "file") in line


def test_a_missing_file_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error in the path is no damaged archive."""
    line = failure(capsys, "install", "--from", str(tmp_path / "no.so"))
    assert f"{tmp_path / 'no.so'} can't be opened: No such file or directory" in line


@pytest.mark.parametrize("content", [LIBRARY, sdist(), deb(tar({"x/librocketmq.so": LIBRARY}))])
def test_a_library_beyond_the_limit_is_not_read(content: bytes) -> None:
    """A small archive can unpack to anything, so the unpacked size counts."""
    with pytest.raises(NativeLibraryError, match="limit"):
        archive.read_library(io.BytesIO(content), "file", len(LIBRARY) - 1)


def test_require_says_what_to_run(folder: Path) -> None:
    """The error that an application sees at start."""
    with pytest.raises(NativeLibraryError, match=r"librocketmq\.so is missing: run `rmq-txn native"):
        installer.require()
    (folder / "librocketmq.so").write_bytes(LIBRARY)
    installer.require()


def test_a_system_library_is_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rocketmq/ffi.py` asks the loader when there is no file beside it."""
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: "librocketmq.so")
    installer.require()
    found = installer.status()
    assert (found.present, found.sha256, found.version) == (True, None, "unknown build")


def test_nothing_of_rocketmq_is_imported(folder: Path, index: Index) -> None:
    """Importing it without the library raises, so it is only looked for."""
    installer.status()
    installer.install()
    installer.require()
    assert "rocketmq" not in sys.modules


@pytest.mark.parametrize(
    ("system", "machine", "libc", "expected"),
    [
        ("darwin", "arm64", "glibc 2.36", "darwin on arm64, only linux on x86_64"),
        ("linux", "aarch64", "glibc 2.36", "linux on aarch64, only linux on x86_64"),
        ("linux", "x86_64", None, "not glibc"),
    ],
)
def test_an_unsupported_platform_is_named(
    system: str,
    machine: str,
    libc: str | None,
    expected: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every door says the same: install, status and require."""
    monkeypatch.undo()  # the real platform check, without the folder
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(os, "confstr", lambda _name: libc)
    for action in ("install", "status"):
        assert expected in failure(capsys, action)
    with pytest.raises(NativeLibraryError, match="the native RocketMQ client can't run here"):
        installer.require()


def test_status_exits_0_only_if_the_library_loads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing, then present but broken, then loading."""
    assert "run `rmq-txn native install`" in failure(capsys, "status")

    (folder / "librocketmq.so").write_bytes(LIBRARY)
    monkeypatch.setattr(installer, "load_problem", lambda _path: "file too short")
    assert "can't be used: file too short" in failure(capsys, "status")

    monkeypatch.setattr(installer, "load_problem", lambda _path: None)
    assert main(["native", "status"]) == exit_codes.OK
    shown = capsys.readouterr().out
    assert "loads:    yes" in shown
    assert digest(LIBRARY) in shown


def real_load_problem(path: str, symbol: str) -> str | None:
    """Ask the real function in a process of its own, since the fixture replaces it."""
    program = (
        "import sys; from rmq_txn.library import installer; installer.REQUIRED_SYMBOL = sys.argv[2]; "
        "print(installer.load_problem(sys.argv[1]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, path, symbol],
        cwd=Path(installer.__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return None if answer == "None" else answer


def test_loading_is_tried_in_a_child(tmp_path: Path) -> None:
    """A file that is no library, a library without transactions, and one that has what is needed."""
    (tmp_path / "broken.so").write_bytes(LIBRARY)
    assert "broken.so" in (real_load_problem(str(tmp_path / "broken.so"), "any") or "")
    assert "undefined symbol: CreateTransactionProducer" in (
        real_load_problem(_ctypes.__file__, "CreateTransactionProducer") or ""
    )
    assert real_load_problem(_ctypes.__file__, "PyInit__ctypes") is None


def test_a_library_that_kills_the_process_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initialisers of a broken build end the child, not the command."""
    monkeypatch.undo()
    real = subprocess.run

    def crash(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        suicide = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
        return real([*command[:3], suicide, *command[4:]], **options)

    monkeypatch.setattr(subprocess, "run", crash)
    assert installer.load_problem("any.so") == "loading it was ended by signal SIGSEGV"


def test_the_configuration_files_of_pip_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section install beats global, the environment beats both, other commands do not count."""
    monkeypatch.undo()
    for name in os.environ:
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://global.invalid/simple\ntimeout = 7\n"
        "trusted-host =\n    a.invalid\n    b.invalid:8080\n"
        f"[install]\nindex-url = https://{USER}:{PASSWORD}@install.invalid/simple\n"
        "[freeze]\ntimeout = 1\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://extra.invalid/simple")

    found = index_settings.read_settings()
    assert found.index_urls == (
        f"https://{USER}:{PASSWORD}@install.invalid/simple",
        "https://extra.invalid/simple",
    )
    assert found.trusted_hosts == ("a.invalid", "b.invalid:8080")
    assert found.timeout_seconds == 7.0
    assert PASSWORD not in repr(found)


def test_a_broken_pip_configuration_stops_the_install(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Going on would ask an index that the user did not choose; what pip said is not repeated."""
    monkeypatch.setattr(index_settings, "_ask_pip", ASK_PIP)
    (tmp_path / "pip.conf").write_text(f"index-url = https://{USER}:{PASSWORD}@host.invalid/\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    line = failure(capsys, "install")
    assert "pip config list` failed" in line
    assert PASSWORD not in line


ASK_PIP = index_settings._ask_pip


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ()),
        ({"UV_INDEX_URL": "https://old.invalid/s"}, ("https://old.invalid/s",)),
        (
            {"UV_DEFAULT_INDEX": "corp=https://new.invalid/s", "UV_INDEX_URL": "https://old.invalid/"},
            ("https://new.invalid/s",),
        ),
        (
            {"PIP_INDEX_URL": "https://pip.invalid/s", "UV_DEFAULT_INDEX": "https://uv.invalid/s"},
            ("https://pip.invalid/s",),
        ),
        ({"PIP_INDEX_URL": ""}, ()),
    ],
)
def test_the_environment_of_pip_and_uv_is_read(environ: dict[str, str], expected: tuple[str, ...]) -> None:
    """pip first, then uv; an empty variable is none; nothing at all stands for the default index."""
    assert index_settings.read_settings(environ).index_urls == expected


def test_an_extra_index_alone_is_added_to_the_default() -> None:
    """As in pip, an extra index does not replace the default one."""
    found = index_settings.read_settings({"PIP_EXTRA_INDEX_URL": "https://extra.invalid/s"})
    assert found.index_urls == (*index_settings.default_indexes(), "https://extra.invalid/s")
    assert len(found.index_urls) == 2


def test_a_bad_timeout_and_a_bad_certificate_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings of pip that can't be used say which one it is."""
    monkeypatch.setenv("PIP_TIMEOUT", "soon")
    assert "pip's timeout is 'soon', a number is expected" in failure(capsys, "install")
    monkeypatch.delenv("PIP_TIMEOUT")
    monkeypatch.setenv("PIP_CERT", "/no/such/bundle.pem")
    line = failure(capsys, "install")
    assert "certificates configured for pip can't be loaded (cert '/no/such/bundle.pem'" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://u:p@host/x and mysql://u:a/b@c@host", "see https://***@host/x and mysql://***@host"),
        ("https://token@host/x", "https://***@host/x"),
        ("https://host/x, mail@host", "https://host/x, mail@host"),
        ("needed is mysql://user:password@host/x", "needed is mysql://user:password@host/x"),
    ],
)
def test_redact_hides_user_and_password(text: str, expected: str) -> None:
    """Also a password that holds a slash or an @, and a token without a password."""
    assert redact(text) == expected


def test_a_machine_without_room_for_a_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One failed fork is no traceback."""
    monkeypatch.undo()

    def no_fork(*_arguments: object, **_options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(installer.subprocess, "run", no_fork)
    said = installer.load_problem("librocketmq.so")
    assert said is not None
    assert said.startswith("no process could be started to try it: ")
