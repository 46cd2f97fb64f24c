"""Rows for a running server, from arguments, standard input or a file; those of a file into a file, resumed where it stopped."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from serving.async_client import EnsembleIdentity
from serving.client import TritonPipeline
from serving.errors import DataError
from serving.records import checked_text, read_file, shown

Columns = dict[str, str | tuple[str, ...]]
Row = dict[str, str | list[str]]


@dataclass(frozen=True, kw_only=True)
class PredictFile:
    """Files of ``tritonize predict --input``.

    Args:
        columns: file column by pipeline key: ``{"text": "sentence"}``; several where each holds one of a list of texts.
    """

    input: Path
    output: Path
    columns: Columns

    @property
    def source(self) -> Path:
        """Beside the output: which ensemble answers."""
        return self.output.with_name(f"{self.output.name}.source.json")


def predict_file(
    pipe: TritonPipeline, options: PredictFile, *, progress: Callable[[Iterable[Any], int], Iterable[Any]]
) -> tuple[int, int]:
    """Append one JSON line per row to ``options.output``: the row, and ``answer``.

    An output that is there already is taken for the first part of the same work: its complete lines are checked against the
    input and kept, provided that the ensemble is the one that gave them.

    Args:
        progress: wraps the answers; gets the number of rows that were there already.

    Returns:
        Rows that were there already, rows answered now.

    Raises:
        DataError: an unreadable file, a missing column, or an output that belongs to another input or another ensemble.
        RequestError: the server refused a row or is not there; what was answered before stays.
    """
    done = _resume(options, pipe.identity)
    queue: deque[Row] = deque()

    def remembered() -> Iterator[Any]:
        for row in islice(read_rows(options.input, options.columns), done, None):
            queue.append(row)
            require_taken(pipe, row)
            yield next(iter(row.values())) if len(row) == 1 else row

    answered = 0
    with options.output.open("a", encoding="utf-8") as output:
        for answer in progress(pipe.stream(remembered()), done):
            output.write(json.dumps(queue.popleft() | {"answer": answer}, ensure_ascii=False) + "\n")
            answered += 1
    return done, answered


def read_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows of a csv, tsv, jsonl or parquet file as ``{pipeline key: text}`` (or a list of texts), read as they are needed.

    Raises:
        DataError: another kind of file, an unreadable one, or a row without one of the columns; the message names row and column.
    """
    for where, row in read_file(path):
        for column in chain.from_iterable((names,) if isinstance(names, str) else names for names in columns.values()):
            if column not in row:
                raise DataError(
                    f"{path} has no column {column!r}; {where} has {', '.join(map(str, row))}: {shown(dict(row))}",
                    hint="name the columns with --text-column, --text-pair-column and --choice-column",
                )
        place = f"{path}, {where}"
        yield {
            key: _checked(row[names], names, place, row)
            if isinstance(names, str)
            else [checked_text(row[name], name, place, row) for name in names]
            for key, names in columns.items()
        }


def _checked(value: Any, name: str, place: str, row: Any) -> str | list[str]:
    """A text, or a list of texts."""
    if isinstance(value, list):
        return [checked_text(one, name, place, row) for one in value]
    return checked_text(value, name, place, row)


def argument_lines(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Texts of a command line, each with where it stands.

    Raises:
        DataError: one that does not hold UTF-8.
    """
    for number, text in enumerate(texts, 1):
        try:
            text.encode()  # bytes that are no UTF-8 come as halves of surrogate pairs
        except UnicodeEncodeError as error:
            raise DataError(f"text {number} is not UTF-8: {text!r:.80}", hint="convert it, for example with iconv") from error
        yield f"text {number}", text


def input_lines() -> Iterator[tuple[str, str]]:
    """Lines of standard input without their ends, each with where it stands.

    Not through ``sys.stdin``: where a thread still waits for a line of that, Python aborts when it exits.

    Raises:
        DataError: one that is not UTF-8.
    """
    with open(0, "rb", closefd=False) as file:
        for number, line in enumerate(file, 1):
            where = f"line {number} of standard input"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                message = f"{where} is not UTF-8: {error.reason} at byte {error.start}"
                raise DataError(message, hint="convert it, for example with iconv") from error
            yield where, text.rstrip("\r\n")


def line_rows(lines: Iterable[tuple[str, str]], *, keys: Sequence[str]) -> Iterator[Any]:
    """What a pipeline takes for each line: the text as it is, or a row of several keys as JSON, where blank lines are passed over.

    Args:
        keys: what the texts of a row are called, one or two.

    Raises:
        DataError: a line that holds no pair.
    """
    for where, line in lines:
        if len(keys) == 1:
            yield line
        elif line.strip():
            yield _pair(where, line, keys)


def _pair(where: str, line: str, keys: Sequence[str]) -> Row:
    wanted = f"give {json.dumps(dict.fromkeys(keys, '…'), ensure_ascii=False)}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error}: {shown(line)}", hint=wanted) from error
    if not isinstance(row, dict) or set(row) != set(keys):
        raise DataError(f"{where} is no pair of texts: {shown(row)}", hint=wanted)
    return {key: _checked(value, key, where, row) for key, value in row.items()}


def require_taken(pipe: TritonPipeline, row: Any) -> None:
    """Check that the pipeline takes ``row``.

    Raises:
        DataError: it does not.
    """
    try:
        pipe.served_task.request_rows([row if not isinstance(row, dict) or len(row) > 1 else next(iter(row.values()))])
    except (TypeError, ValueError) as error:
        raise DataError(f"{error}: {shown(row)}") from None


def named_columns(pipe: TritonPipeline, text: str | None, text_pair: str | None, choices: tuple[str, ...] = ()) -> Columns:
    """File column by pipeline key, as the task has it where its user names none.

    Args:
        choices: several columns where each holds one.

    Raises:
        DataError: columns that are not what the ensemble takes.
    """
    task = pipe.served_task
    own = task.columns.get("choices")
    if choices and own is None:
        raise DataError(f"{pipe.name} takes no choices", hint="leave out --choice-column")
    several = choices[0] if len(choices) == 1 else choices
    names = (text or task.columns["text"], several or text_pair or task.columns["text_pair"] or own)
    if len(task.row_keys) == 1 and text_pair is not None:
        raise DataError(f"{pipe.name} takes single texts, not pairs", hint="leave out --text-pair-column")
    columns = {key: name for key, name in zip(task.row_keys, names, strict=False) if name is not None}
    if len(columns) < len(task.row_keys):
        raise DataError(f"{pipe.name} takes pairs of texts", hint="name the column of the second text with --text-pair-column")
    return columns


def _resume(options: PredictFile, identity: EnsembleIdentity) -> int:
    """Make the output ready to be appended to, and count the lines that answer this input's rows."""
    data = options.output.read_bytes() if options.output.exists() else b""
    complete = data[: data.rfind(b"\n") + 1]
    done = _check_lines(options, complete.splitlines())
    if done:
        _check_source(options, identity)
    else:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.source.write_text(json.dumps(identity, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if len(complete) < len(data):
        with options.output.open("r+b") as file:
            file.truncate(len(complete))
    return done


def _check_lines(options: PredictFile, lines: list[bytes]) -> int:
    """Refuse lines that do not answer the input's rows one by one; return how many there are."""
    rows = read_rows(options.input, options.columns)
    for number, line in enumerate(lines, 1):
        try:
            written = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError):
            written = None
        row = next(rows, None)
        if row is None or not isinstance(written, dict) or {key: written.get(key) for key in row} != row:
            raise DataError(
                f"{options.output}, line {number} does not answer row {number} of {options.input}",
                hint="it was made from another input: move it away or choose another --output",
            )
    return len(lines)


def _check_source(options: PredictFile, identity: EnsembleIdentity) -> None:
    """Refuse to go on where others answered: nobody could tell afterwards whose answer is whose."""
    try:
        found = json.loads(options.source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        reason = f"{options.source.name}, which says who gave them, is not beside it"
    except ValueError as error:
        reason = f"{options.source.name}, which says who gave them, is not readable: {error}"
    else:
        if found == identity:
            return
        reason = f"{options.source.name} says that another ensemble gave them, or this one before it was packaged anew"
    raise DataError(
        f"{options.output} holds answers that {identity['ensemble']} as it is served now may not have given: {reason}",
        hint="move it away or choose another --output",
    )
