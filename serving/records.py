"""Strict readers for the rows of csv, tsv, jsonl and parquet files. Errors name the line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from serving.errors import DataError

LocatedRow = tuple[str, Mapping[str, Any]]
"""The place of a row, such as ``line 12``, and its values by column."""


def read_file(path: Path) -> Iterator[LocatedRow]:
    """Read the rows of a csv (quoted as usual), tsv (split at tabs, no quoting), jsonl or parquet file.

    Raises:
        DataError: The file does not exist, has another format, is damaged or is not UTF-8.
    """
    if path.suffix not in FORMATS:
        raise DataError(f"{path}: rows must be in a {', '.join(FORMATS)} file")
    try:
        yield from FORMATS[path.suffix](path)
    except FileNotFoundError:
        raise DataError(f"no file {path}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}", hint="save it as UTF-8") from error
    except (OSError, csv.Error, ValueError) as error:
        raise DataError(f"cannot read {path}: {str(error) or type(error).__name__}") from error


def _read_csv(path: Path) -> Iterator[LocatedRow]:
    csv.field_size_limit(2**31 - 1)  # a long document exceeds the default of 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = _checked_header(path, next(reader, []))
        for values in reader:
            if values:
                yield _record(path, header, values, f"line {reader.line_num}")


def _read_tsv(path: Path) -> Iterator[LocatedRow]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        header = _checked_header(path, file.readline().rstrip("\r\n").split("\t"))
        for number, line in enumerate(file, start=2):
            if stripped := line.rstrip("\r\n"):
                yield _record(path, header, stripped.split("\t"), f"line {number}")


def _checked_header(path: Path, names: list[str]) -> list[str]:
    """Return the names of the columns. Several columns may have no name, as spreadsheets write them at the end.

    Raises:
        DataError: Two columns have the same name, of which a row could hold only one.
    """
    if (twice := _first_repeated(name for name in names if name)) is not None:
        raise DataError(f"{path}, line 1: column {twice!r} is there twice", hint="rename or remove one of the columns")
    return names


def _first_repeated(names: Iterable[str]) -> str | None:
    """Return the first name that another one before it equals; None if all are different."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _record(path: Path, header: list[str], values: list[str], where: str) -> LocatedRow:
    if len(values) != len(header):
        raise DataError(f"{path}, {where}: {len(values)} fields where the header has {len(header)}: {shown(values)}")
    return where, dict(zip(header, values, strict=True))


def _read_jsonl(path: Path) -> Iterator[LocatedRow]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number} is not JSON: {error}: {shown(line)}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number} is not a JSON object: {shown(row)}")
            yield f"line {number}", row


def _read_parquet(path: Path) -> Iterator[LocatedRow]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        if (twice := _first_repeated(file.schema_arrow.names)) is not None:
            raise DataError(f"{path}: column {twice!r} is there twice", hint="rename or remove one of the columns")
        number = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


FORMATS = {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
"""The readers by file name suffix."""


def parse_json(text: str) -> Any:
    """Parse JSON in which no object has a key twice.

    Raises:
        ValueError: It is not JSON, is nested too deeply, or has a key twice, of which Python would keep the last.
    """
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {_first_repeated(key for key, _ in pairs)!r} is there twice")
    return found


def shown(value: object) -> str:
    """Return the ``repr`` of ``value`` for a message, cut after 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"


def checked_text(value: object, column: str, place: str, row: Mapping[str, object]) -> str:
    """Return ``value`` if it is text that UTF-8 can encode.

    Args:
        value: The value of a cell.
        column: The column of the cell, for the message.
        place: The file and line of the row, for the message.
        row: The whole row, for the message.

    Raises:
        DataError: The value is not a string, or holds half of a surrogate pair, as broken JSON escapes do.
    """
    if not isinstance(value, str):
        raise DataError(f"{place}: column {column!r} holds {type(value).__name__}, not text: {shown(dict(row))}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{place}: column {column!r} holds half of a surrogate pair, which UTF-8 cannot encode: {shown(dict(row))}")
    return value
