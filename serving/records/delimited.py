"""Reads csv and tsv files, with or without a header.

csv files are quoted as usual. tsv files come in two kinds that no suffix tells apart: those that a csv writer wrote with tabs, and
raw ones, in which a quotation mark is a character like any other. See :func:`is_quoted`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence

from serving.errors import DataError
from serving.records.record import LocatedRow, first_repeated, shown
from serving.records.row_file import RowFile

MAX_FIELD = 2**31 - 1
"""Maximum characters of a field. The default of 128 KiB is less than a long document."""
_FIELD = r'(?:"[^"]*(?:""[^"]*)*"|[^"\t]*)'
_QUOTED_FIELD = re.compile(r'"([^"]*(?:""[^"]*)*)"')
_QUOTED_RECORD = re.compile(rf"{_FIELD}(?:\t{_FIELD})*")
_NEEDS_QUOTES = re.compile(r'["\t\r\n]')


def read_csv(file: RowFile) -> Iterator[LocatedRow]:
    """Read a csv file, whose fields may be quoted.

    Raises:
        DataError: A line has another number of fields than the header, or its quotation marks do not match.
    """
    yield from _read_quoted(file, file.layout.separator or ",")


def read_tsv(file: RowFile) -> Iterator[LocatedRow]:
    """Read a file whose fields stand between tabs, or between the separator that the user names.

    With such a separator, which may be a space, the last column takes the rest of the line. So does the only column that the user
    names: the lines of a plain text.

    Raises:
        DataError: A line has another number of fields than the header.
    """
    if file.layout.separator is None and is_quoted(file):
        yield from _read_quoted(file, "\t")
        return
    separator = file.layout.separator or "\t"
    greedy = file.layout.separator is not None or len(file.layout.names) == 1
    with file.open_text(newline="\n") as lines:
        header: Sequence[str] | None = file.layout.names or None
        for number, line in enumerate(lines, start=1):
            if header is None:
                header = _checked_header(file, line.rstrip("\r\n").split(separator))
            elif stripped := line.rstrip("\r\n"):
                values = stripped.split(separator, len(header) - 1 if greedy else -1)
                yield _record(file, header, values, number)


def is_quoted(file: RowFile) -> bool:
    r"""Return whether a csv writer wrote this tsv file, so that its quotation marks are not part of its fields.

    It did if every field that has a quotation mark begins and ends with one and doubles those within it, and if it had a reason for
    at least one of these fields: a quotation mark, a tab or a line end in it, or a quoted header. In a raw file some field breaks
    these rules: ``"Fine," she said`` or ``a 12" record``.
    """
    if not file.path.is_file():  # a pipe can be read only once
        return False
    reason, columns, first = False, 0, not file.layout.names
    with file.open_text(newline="\n") as lines:
        for record in _whole_records(lines):
            fields = _quoted_fields(record)
            if fields is None:
                return False
            count = len(_separated(record))
            if count != (columns := columns or count):
                return False
            reason = reason or any(map(_NEEDS_QUOTES.search, fields)) or (first and bool(fields))
            first = False
    return reason


def _whole_records(lines: Iterable[str]) -> Iterator[str]:
    """Join lines until their quotation marks match. Blank lines are left out."""
    parts: list[str] = []
    quotes = 0
    for line in lines:
        parts.append(line)
        quotes += line.count('"')
        if quotes % 2 == 0:
            if record := "".join(parts).rstrip("\r\n"):
                yield record
            parts, quotes = [], 0
    if parts:
        yield "".join(parts)


def _separated(record: str) -> list[str]:
    """Return the parts of a record between the tabs that are not quoted."""
    return _QUOTED_FIELD.sub("", record).split("\t")


def _quoted_fields(record: str) -> list[str] | None:
    """Return the contents of a record's quoted fields; None if its quotation marks are not those of a csv writer."""
    if '"' not in record:
        return []
    if not _QUOTED_RECORD.fullmatch(record):
        return None
    return _QUOTED_FIELD.findall(record)


def _read_quoted(file: RowFile, delimiter: str) -> Iterator[LocatedRow]:
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise DataError(f"{file.path}: {delimiter!r} cannot separate the fields of a csv file", hint="give one character")
    csv.field_size_limit(MAX_FIELD)
    with file.open_text(newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header: Sequence[str] | None = file.layout.names or None
        try:
            for values in reader:
                if header is None:
                    header = _checked_header(file, values)
                elif values:
                    yield _record(file, header, values, reader.line_num)
        except csv.Error as error:
            raise DataError(
                f"{file.path}, line {reader.line_num}: {error}",
                hint='a field with a quotation mark must be quoted, and the mark doubled: "a 12"" record"',
            ) from error


def _checked_header(file: RowFile, names: list[str]) -> list[str]:
    """Return the names of the columns. Several columns may have no name, as spreadsheets write them at the end.

    Raises:
        DataError: Two columns have the same name, of which a row could hold only one.
    """
    if (twice := first_repeated(name for name in names if name)) is not None:
        raise DataError(
            f"{file.path}, line 1: column {twice!r} is there twice",
            hint="rename or remove one of the columns; if the file has no header, name its columns with --columns",
        )
    return names


def _record(file: RowFile, header: Sequence[str], values: list[str], number: int) -> LocatedRow:
    named = file.layout.names
    if len(values) != len(header):
        wanted = "--columns names" if named else "the header has"
        raise DataError(f"{file.path}, line {number}: {len(values)} fields where {wanted} {len(header)}: {shown(values)}")
    if not named:
        return f"line {number}", dict(zip(header, values, strict=True))
    if number == 1 and [*named] == values:
        raise DataError(f"{file.path}, line 1: the file has a header with the names of --columns", hint="leave out --columns")
    return f"line {number}", {name: value for name, value in zip(header, values, strict=True) if name}
