"""The lines of a text file, whatever compresses it and however its text is encoded."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from bandit.errors import InvalidTableError

PARQUET = b"PAR1"
_LONGEST_LINE = 16 * 2**20  # bytes: more is no log of lines, and would not fit into memory
_HEAD = 2**16
_COMPRESSED: dict[bytes, Callable[[Path, Literal["rb"]], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_FOREIGN = {
    b"PK\x03\x04": "a zip archive (or a spreadsheet): unpack it, or save it as CSV",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"\x04\x22\x4d\x18": "compressed with lz4: unpack it first",
    b"ARROW1": "an Arrow (Feather) file: save it as Parquet",
    b"ORC": "an ORC file: save it as Parquet",
    b"Obj\x01": "an Avro file: save it as Parquet",
    b"SQLite format 3": "an SQLite database: export the table as CSV or Parquet",
}
# UTF-32 before UTF-16: its mark begins with the other's.
_MARKS = [
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line without its end. `whole` is false for a last line that no line break ends: it may have been cut."""

    text: bytes
    whole: bool


class TextFile:
    """A file of lines that was opened: its first bytes as UTF-8, and its lines."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self.file = file
        self._stream = stream
        self.head = _whole_lines(self._peek())

    def _peek(self) -> bytes:
        buffered = io.BufferedReader(cast("io.RawIOBase", self._stream), _HEAD)
        head = buffered.peek(_HEAD)[:_HEAD]
        for magic, what in _FOREIGN.items():
            if head.startswith(magic):
                raise InvalidTableError(str(self.file), f"not a log that can be read: {what}")
        encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "")
        self._stream = cast("BinaryIO", buffered)
        if encoding in {"utf-16", "utf-32"}:
            text = io.TextIOWrapper(buffered, encoding, newline="\n")
            self._stream = cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", _Recoded(text)), _HEAD))
            head = cast("io.BufferedReader", self._stream).peek(_HEAD)[:_HEAD]
        elif encoding:
            buffered.read(len(codecs.BOM_UTF8))
            head = head[len(codecs.BOM_UTF8) :]
        if b"\0" in head:
            raise InvalidTableError(str(self.file), "not a log that can be read: neither text nor Parquet")
        return head

    def lines(self) -> Iterator[Line]:
        """Every line, in order.

        Raises: InvalidTableError for a line that does not end.
        """
        while text := self._stream.readline(_LONGEST_LINE):
            if len(text) == _LONGEST_LINE and not text.endswith(b"\n"):
                raise InvalidTableError(str(self.file), f"a line of more than {_LONGEST_LINE:,} bytes: not a log of lines")
            yield Line(text=text.rstrip(b"\r\n"), whole=text.endswith(b"\n"))


class _Recoded(io.RawIOBase):
    """Text of another encoding as UTF-8 bytes."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if not self._left:
            self._left = self._text.read(_HEAD // 4).encode("utf-8", "surrogatepass")
        part, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


@contextmanager
def open_text(file: Path) -> Iterator[TextFile]:
    """Open a text file, plain or compressed with gzip, bzip2 or xz, in UTF-8, UTF-16 or UTF-32.

    Raises: InvalidTableError for what is no text, and for bytes that turn out damaged while they are read.
    """
    try:
        with file.open("rb") as raw:
            magic = raw.read(8)
        opener = next((opener for start, opener in _COMPRESSED.items() if magic.startswith(start)), None)
        with closing(cast("BinaryIO", opener(file, "rb") if opener else file.open("rb", buffering=0))) as stream:
            yield TextFile(file, stream)
    except DAMAGED as error:
        raise InvalidTableError(str(file), f"cannot be read to its end, it may have been cut: {one_line(error)}") from error


def is_parquet(file: Path) -> bool:
    """Whether the file begins as Parquet does.

    Raises: InvalidTableError for a file that cannot be opened.
    """
    try:
        with file.open("rb") as raw:
            return raw.read(4) == PARQUET
    except OSError as error:
        raise InvalidTableError(str(file), f"cannot be opened: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """What an error says, in one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _whole_lines(head: bytes) -> list[bytes]:
    """The lines of the first bytes, without a last one that may be cut there, unless it is the only one."""
    lines = head.split(b"\n")
    return [line.rstrip(b"\r") for line in (lines[:-1] if len(lines) > 1 and len(head) >= _HEAD else lines)]
