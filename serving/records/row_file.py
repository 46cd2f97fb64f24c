"""A file with rows: how it is opened and decompressed, and where its text cannot be decoded."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from serving.errors import DataError
from serving.file_layout import FileLayout

COMPRESSIONS: dict[str, Callable[[Path], IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # type: ignore[dict-item]
"""How compressed files are opened, by suffix."""
BYTE_ORDER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, kw_only=True)
class RowFile:
    """A file with rows.

    Attributes:
        path: The file.
        layout: What the user says about its content.
    """

    path: Path
    layout: FileLayout = field(default_factory=FileLayout)

    @property
    def plain_name(self) -> Path:
        """The path without the suffix of a compression."""
        return self.path.with_suffix("") if self.path.suffix in COMPRESSIONS else self.path

    def open_bytes(self) -> IO[bytes]:
        """Open the file, decompressed."""
        return COMPRESSIONS.get(self.path.suffix, _open_plain)(self.path)

    def open_text(self, *, newline: str) -> io.TextIOWrapper:
        """Open the file as text without a byte order mark.

        Args:
            newline: As for :func:`open`.
        """
        encoding = "utf-8-sig" if self.layout.encoding == "utf-8" else self.layout.encoding
        return io.TextIOWrapper(self.open_bytes(), encoding=encoding, newline=newline)

    def decoding_error(self) -> DataError:
        """Describe the first byte that is not text in the encoding, after reading has failed."""
        content = b""
        if self.path.is_file():  # a pipe can be read only once
            with self.open_bytes() as file:
                content = file.read()
        encoding, place = self.layout.encoding, ""
        try:
            content.decode(encoding)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            place = f", line {line}: byte 0x{content[error.start]:02x} at position {error.start}"
        likely = "utf-16" if content.startswith(BYTE_ORDER_MARKS) else "latin-1"
        return DataError(
            f"{self.path}{place} is not {encoding.upper()}",
            hint=f"give the file's encoding, for example --encoding {likely}, or save it as UTF-8",
        )


def _open_plain(path: Path) -> IO[bytes]:
    return path.open("rb")
