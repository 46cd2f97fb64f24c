"""Rows from a file through a running server into a file: many in flight, order kept, resumed where it stopped."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from serving.client import TritonPipeline
from serving.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What ``tritonize predict --input`` was asked for.

    Args:
        columns: file column by pipeline key: ``{"text": "sentence"}``.
    """

    input: Path
    output: Path
    columns: dict[str, str]


def predict_file(
    pipe: TritonPipeline, options: PredictOptions, *, progress: Callable[[Iterable[Any], int], Iterable[Any]]
) -> tuple[int, int]:
    """Append one JSON line per row to ``options.output``: the row, and ``answer``.

    An output that is there already is taken for the first part of the same work: its complete lines are checked against the
    input and kept.

    Args:
        progress: wraps the answers; gets the number of rows that were there already.

    Returns:
        Rows that were there already, rows answered now.

    Raises:
        DataError: an unreadable file, a missing column, or an output that belongs to another input.
        RequestError: the server refused a row or is not there; what was answered before stays.
    """
    done = _resume(options)
    rows = islice(read_rows(options.input, options.columns), done, None)
    queue: list[dict[str, str]] = []

    def remembered() -> Iterator[dict[str, str] | str]:
        for row in rows:
            queue.append(row)
            yield row["text"] if list(row) == ["text"] else row

    answered = 0
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("a", encoding="utf-8") as output:
        for answer in progress(pipe.stream(remembered()), done):
            output.write(json.dumps(queue.pop(0) | {"answer": answer}, ensure_ascii=False) + "\n")
            answered += 1
    return done, answered


def read_rows(path: Path, columns: dict[str, str]) -> Iterator[dict[str, str]]:
    """Rows of a csv, tsv, jsonl or parquet file as ``{pipeline key: text}``, read as they are needed.

    Raises:
        DataError: another kind of file, an unreadable one, or a row without one of the columns; the message names row and column.
    """
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise DataError(f"{path} is no .csv, .tsv, .jsonl or .parquet file")
    try:
        for index, row in enumerate(readers[path.suffix](path)):
            for column in columns.values():
                if not isinstance(row.get(column), str):
                    found = "is missing" if row.get(column) is None else f"is {row[column]!r:.40}, not text"
                    raise DataError(f"{path}, row {index}: column {column!r} {found}", hint=f"columns: {', '.join(map(str, row))}")
            yield {key: row[column] for key, column in columns.items()}
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not readable: {error}") from error


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, **dialect)


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: {line.strip()!r:.60} is no JSON object")
            yield row


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not readable: {error}") from error


def _resume(options: PredictOptions) -> int:
    """Cut a half-written last line off an earlier output, and count the lines that answer this input's rows."""
    if not options.output.exists():
        return 0
    data = options.output.read_bytes()
    complete = data[: data.rfind(b"\n") + 1]
    rows = read_rows(options.input, options.columns)
    lines = complete.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            written = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError):
            written = None
        row = next(rows, None)
        if row is None or not isinstance(written, dict) or {key: written.get(key) for key in row} != row:
            raise DataError(
                f"{options.output}, line {number} does not answer row {number - 1} of {options.input}",
                hint="it was made from another input: move it away or choose another --output",
            )
    if len(complete) < len(data):
        with options.output.open("r+b") as file:
            file.truncate(len(complete))
    return len(lines)
