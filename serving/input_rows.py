"""Rows of ``tritonize predict``: from a file, from arguments, or from standard input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from serving.errors import DataError
from serving.file_layout import FileLayout
from serving.records import checked_text, parse_json, read_rows, shown
from serving.runtime.tasks.base import ServedTask

ColumnNames = dict[str, str | tuple[str, ...]]
"""File column by pipeline key, as in ``{"text": "sentence"}``; several columns if each holds one of a list of texts."""
PipelineRow = dict[str, str | list[str]]
"""A row by pipeline key: a text, or a list of texts."""
Chat = list[dict[str, object]]
"""A row that is a list of messages."""


class InputRow(NamedTuple):
    """A row of a file.

    Attributes:
        fields: The whole row, by column.
        inputs: Its texts, by pipeline key.
    """

    fields: Mapping[str, object]
    inputs: PipelineRow


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file, a pattern of files or a folder with rows to predict.

    Attributes:
        path: The file, pattern or folder. Of a folder with files or folders for each split, the test rows are read.
        columns: Its columns by pipeline key.
        layout: What the user says about its content.
        words: Whether the task labels words: a list of words is then a text.
    """

    path: Path
    columns: ColumnNames
    layout: FileLayout = field(default_factory=FileLayout)
    words: bool = False

    @property
    def is_readable_again(self) -> bool:
        """Whether the rows can be read twice: not from a pipe."""
        return not self.path.exists() or self.path.is_file() or self.path.is_dir()

    def rows(self) -> Iterator[InputRow]:
        """Read the rows lazily.

        Raises:
            DataError: The file has another format or is unreadable, or a row lacks one of the columns. The message names both.
        """
        names = list(chain.from_iterable((names,) if isinstance(names, str) else names for names in self.columns.values()))
        for where, row in read_rows(str(self.path), "test", self.layout, words=self.words, labelled=False):
            for column in names:
                if column not in row:
                    raise DataError(
                        f"{self.path} has no column {column!r}; {where} has {', '.join(map(str, row))}: {shown(dict(row))}",
                        hint="name the columns with --text-column, --text-pair-column and --choice-column; "
                        "if the file has no header, name all its columns with --columns",
                    )
            place = f"{self.path}, {where}"
            yield InputRow(row, {key: self._texts(row, names, place) for key, names in self.columns.items()})

    def _texts(self, row: Mapping[str, object], names: str | tuple[str, ...], place: str) -> str | list[str]:
        if not isinstance(names, str):
            return [checked_text(row[name], name, place, row) for name in names]
        texts = _checked_texts(row[names], names, place, row)
        return " ".join(texts) if self.words and isinstance(texts, list) else texts


def _checked_texts(value: object, name: str, place: str, row: Mapping[str, object]) -> str | list[str]:
    """Return ``value`` if it is a text or a list of texts."""
    if isinstance(value, list):
        return [checked_text(one, name, place, row) for one in value]
    return checked_text(value, name, place, row)


def named_columns(
    ensemble: str, task: ServedTask, text: str | None, text_pair: str | None, choices: tuple[str, ...] = ()
) -> ColumnNames:
    """Return the file's columns by pipeline key. The task supplies the names that the user does not give.

    Args:
        ensemble: The name of the ensemble, for messages.
        task: Its task.
        text: Column of the text.
        text_pair: Column of the second text.
        choices: One column with lists of choices, or several columns with one choice each.

    Raises:
        DataError: The ensemble takes other columns.
    """
    own = task.columns.get("choices")
    if choices and own is None:
        raise DataError(f"{ensemble} takes no choices", hint="leave out --choice-column")
    several = choices[0] if len(choices) == 1 else choices
    names = (text or task.columns["text"], several or text_pair or task.columns["text_pair"] or own)
    if len(task.row_keys) == 1 and text_pair is not None:
        raise DataError(f"{ensemble} takes single texts, not pairs", hint="leave out --text-pair-column")
    columns = {key: name for key, name in zip(task.row_keys, names, strict=False) if name is not None}
    if len(columns) < len(task.row_keys):
        raise DataError(f"{ensemble} takes pairs of texts", hint="name the column of the second text with --text-pair-column")
    return columns


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


def pipeline_input(row: str | PipelineRow | Chat) -> str | list[str] | PipelineRow | Chat:
    """Return a row in the form that the pipeline takes: the text itself if there is only one."""
    return row if not isinstance(row, dict) or len(row) > 1 else next(iter(row.values()))


def check_row(task: ServedTask, row: str | PipelineRow | Chat) -> None:
    """Check that the pipeline takes ``row``.

    Raises:
        DataError: The pipeline does not take it.
    """
    try:
        task.parse_inputs([pipeline_input(row)])
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise DataError(f"{error.args[0]}: {shown(row)}") from None
