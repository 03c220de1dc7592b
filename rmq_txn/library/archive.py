"""
Find `librocketmq.so` inside what a user may hold: the file itself, a source archive, a .deb.

Nothing is unpacked to disk and nothing is executed; one regular file is read into memory, bounded.
"""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from pathlib import PurePosixPath
from typing import IO

from rmq_txn.errors import NativeLibraryError

MEMBER_NAME = "librocketmq.so"

_ELF_MAGIC = b"\x7fELF"
_GZIP_MAGIC = b"\x1f\x8b"
_AR_MAGIC = b"!<arch>\n"
_AR_HEADER_BYTES = 60

# The ELF fields that tell a library this package can load: 64 bit, little endian, a shared object
# (e_type 3) for x86-64 (e_machine 62).
_ELF_CLASS_AND_DATA = b"\x02\x01"
_ELF_TYPE_AND_MACHINE = b"\x03\x00\x3e\x00"

# What reading a damaged archive raises: gzip and tar report through OSError and EOFError as well.
_ARCHIVE_ERRORS = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError)


def read_library(file: IO[bytes], origin: str, limit_bytes: int) -> bytes:
    """
    Return the bytes of `librocketmq.so` out of an open file, whatever of the three kinds it is.

    Args:
        file: seekable, at position 0.
        origin: what the file is called in error messages.
        limit_bytes: upper bound of the library and of the inner archive of a .deb, each.

    Raises:
        NativeLibraryError: none of the three kinds, damaged, without exactly one such library, too
            large, or a library for another machine.
    """
    magic = file.read(len(_AR_MAGIC))
    file.seek(0)
    try:
        if magic.startswith(_ELF_MAGIC):
            library = _read_bounded(file, origin, limit_bytes)
        elif magic.startswith(_GZIP_MAGIC):
            library = _read_from_tar(file, origin, limit_bytes)
        elif magic == _AR_MAGIC:
            library = _read_from_deb(file, origin, limit_bytes)
        else:
            raise NativeLibraryError(
                f"{origin} is none of the kinds that can be read: a {MEMBER_NAME}, "
                "a source archive (.tar.gz) or a .deb"
            )
    except _ARCHIVE_ERRORS as exc:
        raise NativeLibraryError(
            f"{origin} can't be read ({type(exc).__name__}: {exc}): it is damaged, or compressed in "
            f"a way this Python can't read; extract {MEMBER_NAME} from it and pass that with --from"
        ) from exc
    _require_x86_64(library, origin)
    return library


def _require_x86_64(library: bytes, origin: str) -> None:
    if (
        library[:4] != _ELF_MAGIC
        or library[4:6] != _ELF_CLASS_AND_DATA
        or library[16:20] != _ELF_TYPE_AND_MACHINE
    ):
        raise NativeLibraryError(
            f"the library in {origin} is not an x86-64 ELF shared object, the only kind allowed"
        )


def _read_from_tar(file: IO[bytes], origin: str, limit_bytes: int) -> bytes:
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        # Links are no candidates: what is read must be the bytes of this archive.
        found = [
            member for member in archive if member.isreg() and PurePosixPath(member.name).name == MEMBER_NAME
        ]
        if len(found) != 1:
            raise NativeLibraryError(
                f"{origin} has {len(found)} regular files named {MEMBER_NAME}, 1 is expected"
            )
        content = archive.extractfile(found[0])
        if content is None:  # only for members that are not regular files, filtered above
            raise NativeLibraryError(f"{found[0].name!r} in {origin} has no content")
        with content:
            return _read_bounded(content, origin, limit_bytes)


def _read_from_deb(file: IO[bytes], origin: str, limit_bytes: int) -> bytes:
    """A .deb is an `ar` archive; the files to install are in its member `data.tar.<compression>`."""
    file.seek(len(_AR_MAGIC))
    while header := file.read(_AR_HEADER_BYTES):
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size_field = header[48:58].strip()
        if len(header) != _AR_HEADER_BYTES or header[58:] != b"`\n" or not size_field.isdigit():
            raise NativeLibraryError(f"{origin} is a damaged .deb: bad member header")
        size = int(size_field)
        if not name.startswith("data.tar"):
            file.seek(size + size % 2, io.SEEK_CUR)  # members start at even offsets
            continue
        if size > limit_bytes:
            raise NativeLibraryError(f"{name} in {origin} is {size} bytes, limit is {limit_bytes}")
        inner = io.BytesIO(file.read(size))
        return _read_from_tar(inner, f"{name} of {origin}", limit_bytes)
    raise NativeLibraryError(f"{origin} has no member data.tar.*: not a .deb package")


def _read_bounded(file: IO[bytes], origin: str, limit_bytes: int) -> bytes:
    content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise NativeLibraryError(f"the library in {origin} is larger than the limit of {limit_bytes} bytes")
    return content
