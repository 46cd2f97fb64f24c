"""Reads the rows of a file by the format of its name, or by the one that the user names."""

from __future__ import annotations

import csv
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from serving.errors import DataError
from serving.file_layout import FileLayout
from serving.records.conll import read_conll
from serving.records.delimited import read_csv, read_tsv
from serving.records.json_files import read_json, read_jsonl
from serving.records.record import LocatedRow, first_repeated
from serving.records.row_file import COMPRESSIONS, RowFile


def _read_parquet(file: RowFile) -> Iterator[LocatedRow]:
    from pyarrow import parquet

    with file.open_bytes() as opened, parquet.ParquetFile(opened) as table:
        if (twice := first_repeated(table.schema_arrow.names)) is not None:
            raise DataError(f"{file.path}: column {twice!r} is there twice", hint="rename or remove one of the columns")
        number = 0
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


_READERS: dict[str, Callable[[RowFile], Iterator[LocatedRow]]] = {
    "csv": read_csv,
    "tsv": read_tsv,
    "jsonl": read_jsonl,
    "json": read_json,
    "parquet": _read_parquet,
    "conll": read_conll,
}
FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "tsv",
    ".jsonl": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".conll": "conll",
    ".conllu": "conll",
}
"""Formats by file name suffix. A ``.txt`` file is CoNLL if the task labels words."""


def file_format(path: Path, layout: FileLayout, *, words: bool = False) -> str | None:
    """Return the format of a file: the one that the user names, else that of its name; None if it is unknown.

    Args:
        path: The file.
        layout: What the user says about its content.
        words: Whether the task labels words, so that a ``.txt`` file is CoNLL.
    """
    if layout.file_format != "auto":
        return layout.file_format
    suffix = RowFile(path=path).plain_name.suffix
    if suffix == ".txt" and words and layout.separator is None:
        return "conll"
    return FORMATS.get(suffix) or (None if layout.separator is None else "tsv")


def is_row_file(path: Path) -> bool:
    """Return whether the name of a file says that it has rows. ``.txt`` and ``.json`` do not: such a file may be anything."""
    return RowFile(path=path).plain_name.suffix in FORMATS.keys() - {".txt", ".json"}


def read_file(path: Path, layout: FileLayout | None = None, *, words: bool = False) -> Iterator[LocatedRow]:
    """Read the rows of a file lazily.

    Args:
        path: A csv, tsv, txt, jsonl, json, parquet or CoNLL file, which may be compressed by gzip, bzip2 or xz.
        layout: What the user says about its content.
        words: Whether the task labels words, so that a ``.txt`` file is CoNLL.

    Yields:
        The place of each row, and its values by column.

    Raises:
        DataError: The file does not exist, has another format, is damaged or has another encoding.
    """
    file = RowFile(path=path, layout=layout or FileLayout())
    found = file_format(path, file.layout, words=words)
    if found is None:
        raise DataError(
            f"{path}: rows must be in a {', '.join(FORMATS)} file, which may be compressed ({', '.join(COMPRESSIONS)})",
            hint="if it is one of these under another name, say which with --file-format; unpack an archive first",
        )
    try:
        yield from _READERS[found](file)
    except FileNotFoundError:
        raise DataError(f"no file {path}") from None
    except UnicodeError as error:
        raise file.decoding_error() from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, csv.Error, ValueError) as error:
        raise DataError(f"cannot read {path}: {str(error) or type(error).__name__}") from error


def read_text(path: Path, layout: FileLayout) -> str:
    """Read the whole file as one text.

    Raises:
        DataError: It has another encoding.
    """
    file = RowFile(path=path, layout=layout)
    try:
        with file.open_text(newline="") as text:
            return text.read()
    except UnicodeError as error:
        raise file.decoding_error() from error
