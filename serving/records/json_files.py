"""Reads jsonl and json files: one object per line, a list of objects, an object of columns, or SQuAD's nested articles."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from serving.errors import DataError
from serving.records.record import LocatedRow, first_repeated, parse_json, shown
from serving.records.row_file import RowFile
from serving.reporting import plural

KNOWN = "a list of objects, an object with a list for each column, such an object or list under 'data', or SQuAD's articles"


def read_jsonl(file: RowFile) -> Iterator[LocatedRow]:
    """Read a file with one JSON object in each line.

    Raises:
        DataError: A line is not a JSON object.
    """
    with file.open_text(newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise DataError(f"{file.path}, line {number} is not JSON: {error}: {shown(line)}") from error
            if not isinstance(row, dict):
                raise DataError(f"{file.path}, line {number} is not a JSON object: {shown(row)}")
            yield f"line {number}", row


def read_json(file: RowFile) -> Iterator[LocatedRow]:
    """Read a file that is one JSON value, or has one object in each line.

    Raises:
        DataError: It is not JSON, or has none of the known structures.
    """
    with file.open_text(newline="\n") as lines:
        text = lines.read()
    try:
        content = parse_json(text)
    except json.JSONDecodeError as error:
        if not _is_object(text.lstrip().partition("\n")[0]):
            raise DataError(f"{file.path} is not JSON: {error}") from error
        yield from read_jsonl(file)
        return
    except ValueError as error:
        raise DataError(f"{file.path} is not JSON: {error}") from error
    yield from _rows(file, content)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _rows(file: RowFile, content: Any) -> Iterator[LocatedRow]:
    match content:
        case {"data": list(rows), "columns": list(names)}:  # as pandas writes with orient="split"
            content = _split_rows(file, list(map(str, names)), rows)
        case {"data": list() | dict() as inner}:
            content = inner
    if isinstance(content, dict):
        yield from enumerate_rows(_transposed(file, content))
    elif not isinstance(content, list):
        raise DataError(f"{file.path} holds {shown(content)}, not {KNOWN}")
    elif any(isinstance(article, dict) and "paragraphs" in article for article in content):
        yield from enumerate_rows(_questions(file, content))
    else:
        for number, row in enumerate(content, start=1):
            if not isinstance(row, dict):
                raise DataError(f"{file.path}, row {number} is not a JSON object: {shown(row)}")
            yield f"row {number}", row


def _split_rows(file: RowFile, names: list[str], rows: list[Any]) -> list[Any]:
    """Return rows that are lists of values as objects; others stay as they are."""
    if (twice := first_repeated(names)) is not None:
        raise DataError(f"{file.path}: column {twice!r} is there twice", hint="rename or remove one of the columns")
    for number, row in enumerate(rows, start=1):
        if isinstance(row, list) and len(row) != len(names):
            values = f"{len(row)} {plural(len(row), 'value')}"
            columns = f"{len(names)} {plural(len(names), 'column')}"
            raise DataError(f"{file.path}, row {number}: {values} for {columns}: {shown(row)}")
    return [dict(zip(names, row, strict=True)) if isinstance(row, list) else row for row in rows]


def enumerate_rows(rows: Iterator[Mapping[str, Any]]) -> Iterator[LocatedRow]:
    """Give each row its place, ``row 1`` and so on."""
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


def _transposed(file: RowFile, columns: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of columns: lists, or objects by row as pandas writes them."""
    values: dict[str, list[Any]] = {}
    for name, column in columns.items():
        if not isinstance(column, list | dict):
            raise DataError(f"{file.path}: {name!r} holds {shown(column)}, not a list of values", hint=f"known are {KNOWN}")
        values[name] = column if isinstance(column, list) else list(column.values())
        first = next(iter(columns))
        if isinstance(column, dict) and isinstance(columns[first], dict) and list(column) != list(columns[first]):
            raise DataError(f"{file.path}: the columns {first!r} and {name!r} have different rows")
        if len(values[name]) != len(values[first]):
            raise DataError(
                f"{file.path}: column {first!r} has {len(values[first])} values, but column {name!r} has {len(values[name])}"
            )
    for row in zip(*values.values(), strict=True):
        yield dict(zip(values, row, strict=True))


def _questions(file: RowFile, articles: list[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield one row per question of SQuAD 1.1 or 2.0. A question with ``is_impossible`` has no answers."""
    identifiers: list[str] = []
    for a, article in enumerate(articles, start=1):
        for p, paragraph in enumerate(_member(file, article, "paragraphs", list, f"article {a}"), start=1):
            place = f"article {a}, paragraph {p}"
            context = _member(file, paragraph, "context", str, place)
            for q, entry in enumerate(_member(file, paragraph, "qas", list, place), start=1):
                question = _member(file, entry, "question", str, f"{place}, question {q}")
                impossible = entry.get("is_impossible", False)
                answers = [] if impossible is True else _member(file, entry, "answers", list, f"{place}, question {q}")
                identifiers += [str(entry["id"])] if "id" in entry else []
                titled = {"title": article["title"]} if "title" in article else {}
                own = {key: value for key, value in entry.items() if key not in {"question", "answers", "plausible_answers"}}
                yield {**own, **titled, "context": context, "question": question, "answers": answers}
    if (twice := first_repeated(identifiers)) is not None:
        raise DataError(f"{file.path}: two questions have the id {twice!r}", hint="remove one of them")


def _member(file: RowFile, owner: Any, key: str, kind: type, place: str) -> Any:
    value = owner.get(key) if isinstance(owner, dict) else None
    if not isinstance(value, kind):
        wanted = "a list" if kind is list else "a text"
        raise DataError(f"{file.path}, {place}: {key!r} must be {wanted}, as in SQuAD, not {shown(value)}")
    return value
