"""
The native library `librocketmq.so`: where it belongs, whether it is there, how it gets there.

`rocketmq-client-python` is a ctypes table without the library, and importing it without the library
raises. Its `rocketmq/ffi.py` looks beside itself first; that is where the file is put. This module
never imports `rocketmq` and never loads the library into this process.
"""

from __future__ import annotations

import ctypes.util
import hashlib
import importlib.util
import io
import os
import platform
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rmq_txn.errors import NativeLibraryError
from rmq_txn.library import archive, package_index

FILE_NAME = archive.MEMBER_NAME

# The only public x86-64 Linux build on the package index that works on today's distributions. The
# distribution itself is never installed: its Python part lacks transactions and would overwrite
# rocketmq-client-python.
SDIST_NAME = "rocketmq-python-cvs"
SDIST_VERSION = "2.1.0.3"
SDIST_SHA256 = "99e4ce8008554a74193a3ad94b60f939a4666c48ffabbf4c4417a109daf1419d"
LIBRARY_SHA256 = "ed3fce39f2b926637637a2b8b9122799f207b0cdf98dbd9110505bf43170fa30"
KNOWN_BUILDS = {LIBRARY_SHA256: f"2.1.0_cvs of 2023-09-07 ({SDIST_NAME} {SDIST_VERSION})"}
UNKNOWN_BUILD = "unknown build"

# Bounds against a wrong or hostile file; the real ones are below 5 MB.
SDIST_LIMIT_BYTES = 64 * 1024 * 1024
LIBRARY_LIMIT_BYTES = 64 * 1024 * 1024

# A library without transactions (the 1.x line) loads just as well and is of no use here.
REQUIRED_SYMBOL = "CreateTransactionProducer"
_LOAD_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class LibraryStatus:
    """What is known about the library without loading it."""

    path: Path | None
    """Where it belongs; None if `rocketmq-client-python` is not installed."""
    present: bool
    """It is at `path`, or the system's loader knows one (`system_library`)."""
    sha256: str | None
    """Of the file at `path`; None if there is none."""
    version: str | None
    """The recognised build, `unknown build`, or None when it is not present."""
    platform_problem: str | None
    """Why no library can work here; None on a supported platform."""
    system_library: str | None
    """The loader's name of one installed outside, used by `rocketmq` only if `path` is missing."""


def status() -> LibraryStatus:
    """Look at the file, without loading it and without the network."""
    folder = _package_folder()
    path = folder / FILE_NAME if folder else None
    sha256 = _sha256_of(path) if path else None
    system = ctypes.util.find_library("rocketmq") if sha256 is None else None
    version = KNOWN_BUILDS.get(sha256 or "", UNKNOWN_BUILD) if sha256 or system else None
    return LibraryStatus(
        path=path,
        present=bool(sha256 or system),
        sha256=sha256,
        version=version,
        platform_problem=platform_problem(),
        system_library=system,
    )


def platform_problem() -> str | None:
    """Return why the native client can't run on this machine and Python, or None if it can."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in {"x86_64", "AMD64"}:
        return f"this is {sys.platform} on {machine or 'an unknown machine'}, only linux on x86_64 works"
    if sys.maxsize < 2**32:
        return "this Python is a 32-bit program, a 64-bit one is needed"
    try:
        glibc = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        glibc = None
    if not glibc:
        return "the C library is not glibc (musl, as on Alpine?), use an image based on glibc"
    return None


def require() -> None:
    """
    Raise unless the library is where `rocketmq` will find it. Cheap: it is neither read nor loaded.

    Raises:
        NativeLibraryError: says what is wrong and what to run.
    """
    _require_platform()
    path = _require_folder() / FILE_NAME
    if not path.is_file() and ctypes.util.find_library("rocketmq") is None:
        raise NativeLibraryError(f"{path} is missing: run `rmq-txn native install`")


def install(source: Path | None = None, *, allow_unknown: bool = False) -> Path:
    """
    Put the library beside `rocketmq/ffi.py`, atomically. Running processes keep their old copy.

    Idempotent: with the pinned build in place and no `source`, nothing is asked of the network.
    After an error the file that was there before, if any, is still there.

    Args:
        source: a `librocketmq.so`, the source archive or a .deb; None downloads the pinned one.
        allow_unknown: accept a build from `source` whose hash is not known.

    Returns:
        The path of the library.

    Raises:
        NativeLibraryError: says what was got, what is allowed and what to run.
    """
    _require_platform()
    folder = _require_folder()
    path = folder / FILE_NAME
    if source is None:
        if _sha256_of(path) == LIBRARY_SHA256:
            return path
        if not os.access(folder, os.W_OK):  # before downloading; the write itself checks again
            raise _read_only(folder, "it is not writable")
        sdist = package_index.fetch_sdist(SDIST_NAME, SDIST_VERSION, SDIST_SHA256, SDIST_LIMIT_BYTES)
        library = archive.read_library(
            io.BytesIO(sdist), f"{SDIST_NAME} {SDIST_VERSION}", LIBRARY_LIMIT_BYTES
        )
        sha256 = hashlib.sha256(library).hexdigest()
        if sha256 != LIBRARY_SHA256:
            raise NativeLibraryError(
                f"{FILE_NAME} in {SDIST_NAME} {SDIST_VERSION} has SHA-256 {sha256}, "
                f"expected {LIBRARY_SHA256}; nothing was installed"
            )
    else:
        library = _read_source(source)
        sha256 = hashlib.sha256(library).hexdigest()
        if sha256 not in KNOWN_BUILDS and not allow_unknown:
            raise NativeLibraryError(
                f"{FILE_NAME} from {source} has SHA-256 {sha256}, known is "
                f"{', '.join(KNOWN_BUILDS)}; if you trust the file, add --allow-unknown"
            )
        if _sha256_of(path) == sha256:
            return path
    _place(library, folder)
    return path


def load_problem(library: str) -> str | None:
    """
    Load the library in a child process and return why that failed, or None if it worked.

    In a child, because loading runs the library's initialisers: a broken one may end the process.

    Args:
        library: path of the file, or the loader's name of a system library.
    """
    program = "import ctypes, sys; getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])"
    try:
        child = subprocess.run(  # noqa: S603  # our own interpreter, constant program
            [sys.executable, "-I", "-c", program, library, REQUIRED_SYMBOL],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LOAD_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"loading it did not end within {_LOAD_TIMEOUT_SECONDS:g} seconds"
    except OSError as exc:
        return f"no process could be started to try it: {exc}"
    if child.returncode < 0:
        return f"loading it was ended by signal {signal.Signals(-child.returncode).name}"
    if child.returncode > 0:
        return (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
    return None


def usable_problem(found: LibraryStatus) -> str | None:
    """Load the library that `status` found, in a child; return why it can't be used, or None if it can."""
    if found.platform_problem is not None:
        return found.platform_problem
    # The file beside `rocketmq` wins over one of the system, as in rocketmq/ffi.py.
    loaded = str(found.path) if found.sha256 else found.system_library
    if loaded is None or found.path is None:
        return "not present"
    return load_problem(loaded)


def _package_folder() -> Path | None:
    """
    Return the folder of `rocketmq/ffi.py` without importing `rocketmq`.

    `rocketmq-python-client` owns a package of the same name; installed in the same site-packages both
    share the folder, so `ffi.py` is what tells ours.
    """
    spec = importlib.util.find_spec("rocketmq")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "ffi.py").is_file():
            return Path(folder)
    return None


def _require_folder() -> Path:
    folder = _package_folder()
    if folder is None:
        raise NativeLibraryError(
            "the Python package rocketmq has no module ffi: rocketmq-client-python is not installed, "
            "or hidden by another package of that name; run `pip install rocketmq-client-python==2.0.0`"
        )
    return folder


def _require_platform() -> None:
    problem = platform_problem()
    if problem is not None:
        raise NativeLibraryError(f"the native RocketMQ client can't run here: {problem}")


def _sha256_of(path: Path) -> str | None:
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _read_source(source: Path) -> bytes:
    try:
        with source.open("rb") as file:
            return archive.read_library(file, str(source), LIBRARY_LIMIT_BYTES)
    except OSError as exc:
        raise NativeLibraryError(f"{source} can't be opened: {exc.strerror or exc}") from exc


def _place(library: bytes, folder: Path) -> None:
    """Write beside the target, flush to disk, rename: no process ever sees half a library."""
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{FILE_NAME}.", dir=folder)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(library)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        temporary.replace(folder / FILE_NAME)
        temporary = None
    except OSError as exc:
        raise _read_only(folder, exc.strerror or str(exc)) from exc
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _read_only(folder: Path, reason: str) -> NativeLibraryError:
    return NativeLibraryError(
        f"{folder} can't be written ({reason}): run this as the owner of the Python environment, or "
        "use a virtual environment of your own"
    )
