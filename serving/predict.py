"""Answers the rows of a file: continues where an earlier run stopped, and reports the progress."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from json import JSONEncoder
from typing import Protocol

from serving.answer_file import ANSWER, TRUNCATED, AnswerFile, opened_line
from serving.async_client import AsyncTritonPipeline
from serving.errors import DataError
from serving.input_rows import InputFile, InputRow, check_row, pipeline_input
from serving.runtime.tasks.base import ServedTask
from serving.truncated_rows import TruncatedRows
from serving.writing import writing


class Progress(Protocol):
    """Shows how many rows are answered."""

    def start(self, done: int, total: int | None) -> None:
        """Begin with the rows that the output has already; ``total`` is None if the number of all rows is not known."""
        ...

    def advance(self) -> None:
        """Count one more row."""
        ...


@dataclass(frozen=True, kw_only=True)
class PredictFile:
    """What ``tritonize predict --input`` does.

    Attributes:
        input: The file with the rows.
        output: The file for the answers.
        options: Options of the requests, by name.
    """

    input: InputFile
    output: AnswerFile
    options: Mapping[str, object] = field(default_factory=dict)


async def predict_file(pipe: AsyncTritonPipeline, files: PredictFile, progress: Progress) -> tuple[int, TruncatedRows]:
    """Append one JSON line per row to the output: the row, its ``answer`` and, if it was, that it was ``truncated``.

    If the output exists, the run continues: the complete lines are checked against the input and kept, if the same ensemble
    wrote them with the same options. All rows are checked, except those of a pipe, before the first one is sent.

    Args:
        pipe: The client of the ensemble.
        files: The files and options.
        progress: Shows the progress.

    Returns:
        Number of rows that the output already had, and the rows answered now.

    Raises:
        DataError: A file is unreadable, a row is not valid, the output belongs to another input or ensemble, or another run writes
            it.
        KeyboardInterrupt: The user interrupted the run. The message says how many rows are answered and how to continue.
        RequestError: The server refused a row or is not there. Earlier answers stay in the output.
    """
    task = await pipe.connect()
    with files.output.locked():
        done, total = _check_files(files, task)
        files.output.prepare(resumes=done > 0)
        progress.start(done, total)
        return done, await _answer_rest(pipe, files, task, progress, done=done)


def _check_files(files: PredictFile, task: ServedTask) -> tuple[int, int | None]:
    """Check that the output answers the first rows of the input in order, and all rows unless they come from a pipe.

    Returns:
        Number of answered rows, and of all rows; None if they can be read only once.
    """
    lines = files.output.complete_lines()
    if not files.input.is_readable_again:
        if lines:
            raise DataError(f"{files.input.path} is a pipe, so {files.output.path} cannot be continued")
        return 0, None
    total = 0
    for number, (row, line) in enumerate(zip_longest(files.input.rows(), lines), 1):
        if line is not None and (row is None or not line.startswith(opened_line(row.fields).encode())):
            raise DataError(
                f"{files.output.path}, line {number} does not answer row {number} of {files.input.path}",
                hint="it belongs to another input: move it, or choose another --output",
            )
        assert row is not None
        _check(files, task, row)
        total += 1
    return len(lines), total


def _check(files: PredictFile, task: ServedTask, row: InputRow) -> None:
    for name in (ANSWER, TRUNCATED):
        if name in row.fields:
            raise DataError(f"{files.input.path} has a column {name!r}, which the output needs", hint="rename the column")
    check_row(task, row.inputs)


async def _answer_rest(
    pipe: AsyncTritonPipeline, files: PredictFile, task: ServedTask, progress: Progress, *, done: int
) -> TruncatedRows:
    """Answer the rows that the output does not have yet, and return them."""
    waiting: deque[str] = deque()
    checked = files.input.is_readable_again
    encode = JSONEncoder(ensure_ascii=False).encode
    answered = TruncatedRows(before=done)

    async def rows() -> AsyncGenerator[object, None]:
        for row in islice(files.input.rows(), done, None):
            if not checked:
                _check(files, task, row)
            waiting.append(opened_line(row.fields))
            yield pipeline_input(row.inputs)

    with writing(files.output.path), files.output.path.open("a", encoding="utf-8") as output:
        async with aclosing(pipe.stream_marked(rows(), **files.options)) as answers:
            async for answer, truncated in answers:
                mark = f', "{TRUNCATED}": true' if truncated else ""
                output.write(f"{waiting.popleft()}{encode(answer)}{mark}}}\n")
                answered.add(truncated=truncated)
                progress.advance()
    return answered
