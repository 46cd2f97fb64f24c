"""Rows from arguments, standard input or a file, and their answers in an output file that an interrupted run resumes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from serving.async_client import EnsembleIdentity, MarkedAnswer
from serving.client import TritonPipeline
from serving.errors import DataError
from serving.records import checked_text, parse_json, read_file, shown
from serving.truncated_rows import TruncatedRows
from serving.writing import writing

ColumnNames = dict[str, str | tuple[str, ...]]
"""File column by pipeline key, as in ``{"text": "sentence"}``; several columns if each holds one of a list of texts."""
PipelineRow = dict[str, str | list[str]]
"""A row by pipeline key: a text, or a list of texts."""


@dataclass(frozen=True, kw_only=True)
class PredictFile:
    """The files of ``tritonize predict --input``.

    Attributes:
        input: The file with the rows.
        output: The file for the answers, one JSON line per row.
        columns: The file's columns by pipeline key.
    """

    input: Path
    output: Path
    columns: ColumnNames

    @property
    def source(self) -> Path:
        """The file beside the output that records which ensemble answers."""
        return self.output.with_name(f"{self.output.name}.source.json")


def predict_file(
    pipe: TritonPipeline, options: PredictFile, *, progress: Callable[[Iterable[MarkedAnswer], int], Iterable[MarkedAnswer]]
) -> tuple[int, TruncatedRows]:
    """Append one JSON line per row to ``options.output``, with the row, its ``answer`` and, if it was, that it was ``truncated``.

    If the output exists, the run resumes: the complete lines are checked against the input and kept, if the same ensemble
    wrote them.

    Args:
        pipe: The client of the ensemble.
        options: The files and columns.
        progress: Wraps the answers to show progress. Its second argument is the number of rows that the output already has.

    Returns:
        Number of rows that the output already had, and the rows answered now.

    Raises:
        DataError: A file is unreadable, a column is missing, the output belongs to another input or ensemble, or another run
            writes it.
        RequestError: The server refused a row or is not there. Earlier answers stay in the output.
    """
    with _locked(options.output):
        return _answer_rest(pipe, options, progress)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other runs from writing ``path``, which is created if it does not exist and removed if an error leaves it empty.

    Raises:
        DataError: Another run writes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    created = not path.exists()
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            locked = False
        else:  # the file may have been removed since it was opened
            locked = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        if not locked:
            raise DataError(f"another predict writes {path}", hint="wait until it ends, or choose another --output")
        try:
            yield
        except BaseException:
            if created and os.fstat(file.fileno()).st_size == 0:
                path.unlink(missing_ok=True)
            raise


def _answer_rest(
    pipe: TritonPipeline, options: PredictFile, progress: Callable[[Iterable[MarkedAnswer], int], Iterable[MarkedAnswer]]
) -> tuple[int, TruncatedRows]:
    """Answer the rows that the output does not have yet; see :func:`predict_file`."""
    done = _resume(options, pipe.identity)
    unanswered: deque[PipelineRow] = deque()

    def rows() -> Iterator[str | list[str] | PipelineRow]:
        for row in islice(read_rows(options.input, options.columns), done, None):
            unanswered.append(row)
            check_row(pipe, row)
            yield next(iter(row.values())) if len(row) == 1 else row

    answered = TruncatedRows(before=done)
    with writing(options.output), options.output.open("a", encoding="utf-8") as output:
        for answer, truncated in progress(pipe.stream_marked(rows()), done):
            line = unanswered.popleft() | {"answer": answer} | ({"truncated": True} if truncated else {})
            output.write(json.dumps(line, ensure_ascii=False) + "\n")
            answered.add(truncated=truncated)
    return done, answered


def read_rows(path: Path, columns: ColumnNames) -> Iterator[PipelineRow]:
    """Read the rows of a csv, tsv, jsonl or parquet file lazily.

    Args:
        path: The file.
        columns: The file's columns by pipeline key.

    Raises:
        DataError: The file has another format or is unreadable, or a row lacks one of the columns. The message names both.
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
            key: _checked_texts(row[names], names, place, row)
            if isinstance(names, str)
            else [checked_text(row[name], name, place, row) for name in names]
            for key, names in columns.items()
        }


def _checked_texts(value: object, name: str, place: str, row: Mapping[str, object]) -> str | list[str]:
    """Return ``value`` if it is a text or a list of texts."""
    if isinstance(value, list):
        return [checked_text(one, name, place, row) for one in value]
    return checked_text(value, name, place, row)


def argument_lines(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the texts of a command line, each with its place for messages.

    Raises:
        DataError: A text is not UTF-8.
    """
    for number, text in enumerate(texts, 1):
        try:
            text.encode()  # Python turns bytes that are not UTF-8 into halves of surrogate pairs
        except UnicodeEncodeError as error:
            raise DataError(f"text {number} is not UTF-8: {text!r:.80}", hint="convert it, for example with iconv") from error
        yield f"text {number}", text


def input_lines() -> Iterator[tuple[str, str]]:
    """Yield the lines of standard input without line ends, each with its place for messages.

    It does not use ``sys.stdin``: if a thread still waits for a line of ``sys.stdin``, Python aborts at exit.

    Raises:
        DataError: A line is not UTF-8.
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


def line_rows(lines: Iterable[tuple[str, str]], *, keys: Sequence[str]) -> Iterator[str | PipelineRow]:
    """Turn lines into pipeline rows.

    With one key, a line is the text itself. With two, a line is a JSON object with both, and blank lines are skipped.

    Args:
        lines: The lines, each after its place for messages.
        keys: The pipeline's one or two keys of a row.

    Raises:
        DataError: A line is not a JSON object with both keys.
    """
    for where, line in lines:
        if len(keys) == 1:
            yield line
        elif line.strip():
            yield _pair(where, line, keys)


def _pair(where: str, line: str, keys: Sequence[str]) -> PipelineRow:
    hint = f"write {json.dumps(dict.fromkeys(keys, '…'), ensure_ascii=False)}"
    try:
        row = parse_json(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}: {shown(line)}", hint=hint) from error
    if not isinstance(row, dict) or set(row) != set(keys):
        raise DataError(f"{where} is not a pair of texts: {shown(row)}", hint=hint)
    return {key: _checked_texts(value, key, where, row) for key, value in row.items()}


def check_row(pipe: TritonPipeline, row: str | PipelineRow) -> None:
    """Check that the pipeline takes ``row``.

    Raises:
        DataError: The pipeline does not take it.
    """
    try:
        pipe.served_task.parse_inputs([row if not isinstance(row, dict) or len(row) > 1 else next(iter(row.values()))])
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"{error.args[0]}: {shown(row)}") from None


def named_columns(pipe: TritonPipeline, text: str | None, text_pair: str | None, choices: tuple[str, ...] = ()) -> ColumnNames:
    """Return the file's columns by pipeline key. The task supplies the names that the user does not give.

    Args:
        pipe: The client of the ensemble.
        text: Column of the text.
        text_pair: Column of the second text.
        choices: One column with lists of choices, or several columns with one choice each.

    Raises:
        DataError: The ensemble takes other columns.
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
    """Prepare the output for appending, and return how many of the input's rows it already answers."""
    data = options.output.read_bytes() if options.output.exists() else b""
    complete = data[: data.rfind(b"\n") + 1]
    done = _check_lines(options, complete.splitlines())
    if done:
        _check_source(options, identity)
    else:
        with writing(options.source):
            options.source.write_text(json.dumps(identity, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if len(complete) < len(data):
        with options.output.open("r+b") as file:
            file.truncate(len(complete))
    return done


def _check_lines(options: PredictFile, lines: list[bytes]) -> int:
    """Check that the lines answer the first rows of the input in order, and return their number."""
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
                hint="it belongs to another input: move it, or choose another --output",
            )
    return len(lines)


def _check_source(options: PredictFile, identity: EnsembleIdentity) -> None:
    """Check that this ensemble, as it is served now, wrote the existing answers."""
    try:
        found = json.loads(options.source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        reason = f"{options.source.name}, which records their ensemble, is missing"
    except ValueError as error:
        reason = f"{options.source.name}, which records their ensemble, is not readable: {error}"
    else:
        if found == identity:
            return
        reason = f"{options.source.name} records another ensemble, or an earlier package of this one"
    raise DataError(
        f"{options.output} may hold answers that do not come from {identity['ensemble']} as it is served now: {reason}",
        hint="move it, or choose another --output",
    )
