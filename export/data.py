"""Read, check and split labelled rows. This module does not import torch, so that bad data is reported immediately."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from export.columns import ResolvedColumns
from export.spelling import check_spelling
from export.tasks.base import Task
from export.tasks.exported import ExportedTask
from export.tasks.trained import TrainedTask
from serving.errors import DataError
from serving.records import LocatedRow, checked_text, read_file, shown
from serving.reporting import plural
from serving.runtime.tokenization import TextEncoder
from serving.runtime.types import Features, NoTokensError

EVALUATION = "evaluation.parquet"
"""File with the evaluation rows of a checkpoint or bundle.

Its columns are ``text`` and, for pairs, ``text_pair`` (strings, as in a request), and ``label`` as ``Task.reference`` returns it.
"""

Texts = tuple[tuple[str, ...], ...]
"""One sequence of strings per text column (one, or two for pairs), all of the same length."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows as read from a source, before the labels are encoded.

    Attributes:
        location: The source, for messages.
        texts: The texts, one sequence per text column.
        labels: Labels as the task's ``read_row`` returns them, all of one type.
        names: Label names in order, if the source defines them; otherwise empty.
    """

    location: str
    texts: Texts
    labels: tuple[Any, ...]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int]) -> Rows:
        """Select the rows at ``indices``."""
        return replace(
            self,
            texts=tuple(tuple(column[i] for i in indices) for column in self.texts),
            labels=tuple(self.labels[i] for i in indices),
        )

    def digest(self) -> str:
        """Compute the SHA-256 of the rows' content, which does not depend on the file format."""
        return _digest([self.texts, self.labels, self.names])


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Rows with encoded labels.

    Attributes:
        texts: The texts, one sequence per text column.
        labels: The reference answers that predictions are compared with (see ``Task.reference``).
    """

    texts: Texts
    labels: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """Compute the SHA-256 of the rows' content."""
        return _digest([self.texts, self.labels])

    def take(self, indices: Sequence[int]) -> LabelledRows:
        """Select the rows at ``indices``."""
        return replace(
            self,
            texts=tuple(tuple(column[i] for i in indices) for column in self.texts),
            labels=tuple(self.labels[i] for i in indices),
        )


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def checked_rows(location: str, records: Iterable[LocatedRow], columns: ResolvedColumns, task: type[Task]) -> Rows:
    """Select the columns of ``records`` and check every row.

    Labels become numbers if all of them are written as numbers.

    Args:
        location: The source, for messages.
        records: The place of each record in the source, and its cells by column.
        columns: The columns to select.
        task: The task, which reads the cells.

    Returns:
        The rows.

    Raises:
        DataError: A column is missing, a cell has a wrong value, labels are of different types, or there are no rows. The message
            shows the row.
    """
    texts: tuple[list[str], ...] = tuple([] for _ in columns.names)
    labels: list[Any] = []
    for where, row in records:
        place = f"{location}, {where}"
        cells = columns.cells(partial(_cell, location, columns.hint, where, row))
        try:
            row_texts, label = task.read_row(cells, columns.label_of(partial(_cell, location, columns.hint, where, row)))
        except ValueError as error:
            read = [*columns.names, *(columns.labels or [str(columns.label)])]
            raise DataError(f"{place}: {error}: {shown(dict(row))}", hint=f"columns read: {', '.join(read)}") from None
        for column, text, name in zip(texts, row_texts, columns.names, strict=True):
            column.append(checked_text(text, name, place, row))
        if labels and _label_type(label) != _label_type(labels[0]):
            types = f"{_label_type(label)}, but the first label is {_label_type(labels[0])}"
            raise DataError(f"{place}: label {label!r} is {types}: {shown(dict(row))}")
        labels.append(label)
    if not labels:
        raise DataError(f"{location} holds no rows")
    parsed = _parse_numbers(labels) if task.reads_digits else tuple(labels)
    return Rows(location=location, texts=tuple(map(tuple, texts)), labels=parsed, names=columns.labels)


def _parse_numbers(labels: list[Any]) -> tuple[Any, ...]:
    """Convert labels to numbers if all of them are written as numbers, because text files have no number type.

    Codes with leading zeros, such as 007, stay text. If any number has a fraction, all become floats.
    """
    if any(isinstance(label, str) and re.fullmatch(r"-?0[0-9]+", label) for label in labels):
        return tuple(labels)
    for number, pattern in ((int, r"-?[0-9]+"), (float, r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")):
        if all(isinstance(label, str) and re.fullmatch(pattern, label) for label in labels):
            return tuple(number(label) for label in labels)
    return tuple(map(float, labels)) if any(isinstance(label, float) for label in labels) else tuple(labels)


def _label_type(label: Any) -> str:
    names = {str: "text", int: "a number", float: "a number", list: "a list"}
    return names.get(type(label), type(label).__name__)


def _cell(location: str, hint: str, where: str, row: Mapping[str, Any], column: str) -> Any:
    """Return the cell of a column. ``column.key`` selects a key of a column that holds objects."""
    value: Any = row
    for key in [column] if column in row else column.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise DataError(
                f"{location} has no column {column!r}; {where} has {', '.join(map(str, row))}: {shown(dict(row))}",
                hint=hint,
            )
        value = value[key]
    return value


def bind_training_labels(task: type[TrainedTask], rows: Rows, *, pair: bool) -> TrainedTask:
    """Create the task for a model that is to be trained on ``rows``.

    Args:
        task: The class of the task.
        rows: The training rows.
        pair: Whether each row has two texts.

    Returns:
        The task, bound to the labels of the rows.

    Raises:
        DataError: The labels cannot be used for training.
    """
    try:
        bound = task.from_labels(rows.labels, names=rows.names, pair=pair)
    except ValueError as error:
        raise DataError(f"{rows.location}: {error}") from None
    check_spelling(bound.labels, rows.location)
    return bound


def bind_evaluation_labels(task: ExportedTask, rows: Rows) -> ExportedTask:
    """Bind the task of a checkpoint to the labels of the rows that it is evaluated on.

    Args:
        task: The task.
        rows: The evaluation rows.

    Returns:
        The task, which can encode the labels of the rows.

    Raises:
        DataError: The labels do not fit the checkpoint.
    """
    try:
        bound = task.with_evaluation_labels(rows.labels, names=rows.names)
    except ValueError as error:
        raise DataError(f"{rows.location}: {error}") from None
    if bound.labels != task.labels:  # labels of the rows, not of the checkpoint
        check_spelling(bound.labels, rows.location)
    return bound


def encode_labels(rows: Rows, task: Task) -> LabelledRows:
    """Encode the labels as references of the bound ``task``.

    Args:
        rows: The rows.
        task: The task.

    Returns:
        The rows with encoded labels.

    Raises:
        DataError: The task does not know a label. The message shows the row.
    """
    references = []
    for number, label in enumerate(rows.labels, start=1):
        try:
            references.append(task.reference(label))
        except (ValueError, TypeError) as error:
            text = shown(tuple(column[number - 1] for column in rows.texts))
            raise DataError(f"{rows.location}, row {number}: {error}: {text}") from None
    return LabelledRows(texts=rows.texts, labels=tuple(references))


def tokenize_rows(rows: LabelledRows, task: Task, encoder: TextEncoder, *, training: bool = False) -> Features:
    """Tokenize rows as the server tokenizes a request with the options that the evaluation needs.

    Args:
        rows: The rows.
        task: The task.
        encoder: The tokenizer as it runs inside Triton.
        training: Tokenize as the training does instead.

    Returns:
        The rows of the model, and the request row that each belongs to.

    Raises:
        DataError: The served model would refuse a row.
    """
    try:
        if training and isinstance(task, TrainedTask):
            return task.training_features(rows.texts, encoder)
        return task.features(rows.texts, encoder)
    except NoTokensError:
        raise DataError("a row has no tokens: its text is empty", hint="leave out rows with empty texts for this model") from None
    except ValueError as error:
        raise DataError(f"the model cannot take the rows: {error}", hint="a larger --max-length may help") from None


def prepare_rows(rows: LabelledRows, task: Task, encoder: TextEncoder, *, location: str, training: bool) -> LabelledRows:
    """Prepare rows with the checkpoint's tokenizer (see ``Task.prepare_rows``).

    Args:
        rows: The rows.
        task: The task.
        encoder: The checkpoint's tokenizer.
        location: The source of the rows, for messages.
        training: Whether the rows are for training.

    Returns:
        The prepared rows.

    Raises:
        DataError: A row cannot be used, or no row is left.
    """
    try:
        texts, labels = task.prepare_rows(rows.texts, rows.labels, encoder, training=training)
    except ValueError as error:
        raise DataError(f"{location}: {error}") from None
    if not labels:
        raise DataError(f"{location} holds no row that {task.name} can use")
    return LabelledRows(texts=tuple(map(tuple, texts)), labels=tuple(labels))


def sample_indices(count: int, size: int | None, seed: int) -> list[int]:
    """Draw a random sample of indices.

    Args:
        count: Number of rows to draw from.
        size: Number of rows to draw; None: all.
        seed: Seed of the draw.

    Returns:
        Indices below ``count`` in ascending order, at most ``count`` of them.
    """
    if size is None or size >= count:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), size))  # noqa: S311 - nothing secret


def hold_out(
    rows: Rows, fraction: float, seed: int, *, key: Callable[[tuple[str, ...]], Any] = lambda texts: texts
) -> tuple[Rows, Rows]:
    """Split ``rows`` at random, stratified by label if labels are names or whole numbers.

    Args:
        rows: The rows.
        fraction: Approximate share of the different texts to hold out.
        seed: Seed of the split.
        key: Grouping key of a row's texts. Rows of one group stay on one side of the split.

    Returns:
        The remaining rows and the held-out rows.

    Raises:
        DataError: There are too few different texts to hold any out.
    """
    keys = [key(texts) for texts in zip(*rows.texts, strict=True)]
    strata = _strata(keys, rows.labels)
    distinct = sum(map(len, strata))
    if round(distinct * fraction) == 0:
        raise DataError(
            f"{rows.location} has {distinct} different {plural(distinct, 'text')}, too few to hold some out",
            hint="give --validation",
        )
    generator = random.Random(seed)  # noqa: S311 - nothing secret
    held_out_keys: set[Any] = set()
    visited = 0
    for stratum in strata:
        visited += len(stratum)
        held_out_keys.update(generator.sample(stratum, min(round(visited * fraction) - len(held_out_keys), len(stratum))))
    remaining = [index for index, row_key in enumerate(keys) if row_key not in held_out_keys]
    held_out = [index for index, row_key in enumerate(keys) if row_key in held_out_keys]
    return rows.take(remaining), replace(rows.take(held_out), location=f"{rows.location} (held out)")


def _strata(keys: Sequence[Any], labels: Sequence[Any]) -> list[list[Any]]:
    """Group the different keys by the label of their first row. Each group is sorted."""
    first_labels = dict(zip(reversed(keys), reversed(labels), strict=True))
    by_label: dict[Any, list[Any]] = {}
    for key in sorted(first_labels):
        label = first_labels[key]
        by_label.setdefault(label if isinstance(label, str | int) else None, []).append(key)
    return [by_label[label] for label in sorted(by_label, key=str)]


def write_evaluation(rows: LabelledRows, folder: Path) -> None:
    """Write ``rows`` as :data:`EVALUATION` into ``folder``."""
    import pyarrow as pa
    from pyarrow import parquet

    names = ("text", "text_pair")[: len(rows.texts)]
    columns: dict[str, Any] = {name: pa.array(column, pa.string()) for name, column in zip(names, rows.texts, strict=True)}
    parquet.write_table(pa.table(columns | {"label": pa.array(rows.labels)}), folder / EVALUATION)


def read_evaluation(folder: Path, task: Task) -> LabelledRows:
    """Read :data:`EVALUATION` from a checkpoint or bundle folder.

    Args:
        folder: The folder.
        task: The task of the checkpoint.

    Returns:
        The rows.

    Raises:
        DataError: The file is missing, damaged, or belongs to another task.
    """
    path = folder / EVALUATION
    names = ("text", "text_pair")[: task.text_columns]
    rows = [row for _, row in read_file(path)]
    if not rows or set(rows[0]) != {*names, "label"}:
        found = f"the columns {', '.join(rows[0])}" if rows else "no rows"
        raise DataError(f"{path} must have rows with the columns {', '.join(names)} and label, but has {found}")
    for number, row in enumerate(rows, start=1):
        for name in names:
            checked_text(row[name], name, f"{path}, row {number}", row)
        if not task.is_reference(row["label"]):
            raise DataError(f"{path}, row {number}: label {row['label']!r} is not a label of this checkpoint: {shown(dict(row))}")
    return LabelledRows(texts=tuple(tuple(row[name] for row in rows) for name in names), labels=tuple(row["label"] for row in rows))
