"""A build of the library that reads bodies wrongly is refused before a message is read with it."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from rmq_txn.errors import NativeLibraryError
from rmq_txn.transport import binding


class Function:
    """FAKE. A function of the library; ctypes lets its types be set."""

    argtypes: Any = None
    restype: Any = None

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        """Call it."""
        return self._call(*arguments)


class Library:
    """FAKE. Knows messages, and how this build gives their bodies back."""

    def __init__(self, read: Any) -> None:
        self.alive = 0
        self._read = read
        self._kept = b""
        setattr(self, binding._GET_BODY, Function(self._get_body))

    def CreateMessage(self, _topic: bytes) -> int:  # noqa: N802 - the vendor names it so
        """Make one."""
        self.alive += 1
        return 1

    def SetByteMessageBody(self, _handle: int, body: bytes, size: int) -> None:  # noqa: N802
        """Keep its body."""
        self._kept = body[:size]

    def DestroyMessage(self, _handle: int) -> None:  # noqa: N802
        """Destroy it."""
        self.alive -= 1

    def _get_body(self, _handle: int) -> Any:
        self._given = ctypes.create_string_buffer(read := self._read(self._kept), len(read) or 1)
        text = binding._CxxString(ctypes.cast(self._given, ctypes.c_void_p).value, len(read))
        return ctypes.pointer(text)


def test_a_build_that_reads_exactly_passes() -> None:
    """And leaves no message behind."""
    library = Library(lambda body: body)
    binding._self_check(library)
    assert library.alive == 0


@pytest.mark.parametrize(
    "read",
    [
        lambda body: body.split(b"\x00")[0],
        lambda _body: b"",
        lambda body: body + b"\x00",
        lambda body: body[::-1],
    ],
    ids=["cut-at-NUL", "empty", "longer", "other-bytes"],
)
def test_a_build_that_reads_otherwise_is_refused(read: Any) -> None:
    """With what to do; a body that arrives cut would be handled, and acknowledged."""
    library = Library(read)
    with pytest.raises(NativeLibraryError, match=r"returns wrong bodies .* run: rmq-txn native install"):
        binding._self_check(library)
    assert library.alive == 0


def test_a_build_without_the_exact_accessor_is_refused() -> None:
    """The function of the C header stops at the first NUL."""
    library = Library(lambda body: body)
    delattr(library, binding._GET_BODY)
    with pytest.raises(NativeLibraryError, match=r"no exact body accessor.* run: rmq-txn native install"):
        binding._self_check(library)
