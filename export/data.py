"""Labelled rows: read and checked one by one with the standard library, so bad data is told before torch is imported."""

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
from export.tasks.base import Task
from export.tasks.exported import ExportedTask
from export.tasks.trained import TrainedTask
from serving.errors import DataError
from serving.records import Record, checked_text, read_file, shown
from serving.runtime.tokenization import TextEncoder
from serving.runtime.types import Features

EVALUATION = "evaluation.parquet"
"""Held-out rows that travel with a checkpoint and a bundle: columns ``text`` [, ``text_pair``] (string) as requests carry them,
and ``label`` as ``Task.reference`` gives it."""

Texts = tuple[tuple[str, ...], ...]
"""One sequence of strings per text column (one, or two for pairs), all of the same length."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows as found.

    Args:
        location: where they come from, for messages.
        labels: as the task's ``read_row`` gave them, all of one kind.
        names: label names in order where the source itself fixes them; empty otherwise.
    """

    location: str
    texts: Texts
    labels: tuple[Any, ...]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int]) -> Rows:
        """The rows at ``indices``."""
        return replace(
            self,
            texts=tuple(tuple(column[i] for i in indices) for column in self.texts),
            labels=tuple(self.labels[i] for i in indices),
        )

    def digest(self) -> str:
        """SHA-256 of the rows' content, independent of the file they came in."""
        return _digest([self.texts, self.labels, self.names])


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Rows whose labels are what a bound task holds predictions against (see ``Task.reference``)."""

    texts: Texts
    labels: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """SHA-256 of the rows' content."""
        return _digest([self.texts, self.labels])

    def take(self, indices: Sequence[int]) -> LabelledRows:
        """The rows at ``indices``."""
        return replace(
            self,
            texts=tuple(tuple(column[i] for i in indices) for column in self.texts),
            labels=tuple(self.labels[i] for i in indices),
        )


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def checked_rows(location: str, records: Iterable[Record], columns: ResolvedColumns, task: type[Task]) -> Rows:
    """Take the columns out of ``records`` and check every row. Labels written as digits (or numbers) throughout become numbers.

    Raises:
        DataError: a column is missing, a cell holds what it must not, labels are of unlike kinds, or there are no rows; the
            message shows the row.
    """
    texts: tuple[list[str], ...] = tuple([] for _ in columns.names)
    labels: list[Any] = []
    for where, row in records:
        place = f"{location}, {where}"
        cells = columns.cells(partial(_value, location, where, row))
        try:
            found, label = task.read_row(cells, columns.label_of(partial(_value, location, where, row)))
        except ValueError as error:
            read = f"it is read from the columns {', '.join(columns.names)} and {', '.join(columns.labels) or columns.label}"
            raise DataError(f"{place}: {error}: {shown(dict(row))}", hint=read) from None
        for column, text, name in zip(texts, found, columns.names, strict=True):
            column.append(checked_text(text, name, place, row))
        if labels and _kind(label) != _kind(labels[0]):
            kinds = f"{_kind(label)} and those before it are {_kind(labels[0])}"
            raise DataError(f"{place}: label {label!r} is {kinds}: {shown(dict(row))}")
        labels.append(label)
    if not labels:
        raise DataError(f"{location} holds no rows")
    read_labels = _numbers(labels) if task.reads_digits else tuple(labels)
    return Rows(location=location, texts=tuple(map(tuple, texts)), labels=read_labels, names=columns.labels)


def _numbers(labels: list[Any]) -> tuple[Any, ...]:
    """Text files know no numbers: what all reads as one becomes one, but a code like 007 is none. With a fraction anywhere all are
    such."""
    if any(isinstance(label, str) and re.fullmatch(r"-?0[0-9]+", label) for label in labels):
        return tuple(labels)
    for number, pattern in ((int, r"-?[0-9]+"), (float, r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")):
        if all(isinstance(label, str) and re.fullmatch(pattern, label) for label in labels):
            return tuple(number(label) for label in labels)
    return tuple(map(float, labels)) if any(isinstance(label, float) for label in labels) else tuple(labels)


def _kind(label: Any) -> str:
    kinds = {str: "text", int: "a number", float: "a number", list: "a list"}
    return kinds.get(type(label), type(label).__name__)


def _value(location: str, where: str, row: Mapping[str, Any], column: str) -> Any:
    """What a column holds; of one that holds objects, ``column.key`` is what those hold."""
    value: Any = row
    for key in [column] if column in row else column.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise DataError(
                f"{location} has no column {column!r}; {where} has {', '.join(map(str, row))}: {shown(dict(row))}",
                hint="name the columns with --text-column, --text-pair-column, --choice-column and --label-column",
            )
        value = value[key]
    return value


def bind(task: type[TrainedTask], rows: Rows, *, pair: bool) -> TrainedTask:
    """The task for a model to be trained on ``rows``.

    Raises:
        DataError: nothing can be learnt from them.
    """
    try:
        return task.from_labels(rows.labels, names=rows.names, pair=pair)
    except ValueError as error:
        raise DataError(f"{rows.location}: {error}") from None


def judged_by(task: ExportedTask, rows: Rows) -> ExportedTask:
    """The task of a checkpoint, ready to be held against ``rows``.

    Raises:
        DataError: it cannot be.
    """
    try:
        return task.with_evaluation_labels(rows.labels, names=rows.names)
    except ValueError as error:
        raise DataError(f"{rows.location}: {error}") from None


def encode_labels(rows: Rows, task: Task) -> LabelledRows:
    """Labels as the bound ``task`` knows them.

    Raises:
        DataError: it does not know one; the message shows the row.
    """
    references = []
    for number, label in enumerate(rows.labels, start=1):
        try:
            references.append(task.reference(label))
        except (ValueError, TypeError) as error:
            text = shown(tuple(column[number - 1] for column in rows.texts))
            raise DataError(f"{rows.location}, row {number}: {error}: {text}") from None
    return LabelledRows(texts=rows.texts, labels=tuple(references))


def model_rows(rows: LabelledRows, task: Task, encoder: TextEncoder, *, training: bool = False) -> Features:
    """The rows as a request makes them that asks for what the task is judged by.

    Args:
        training: as the model is shown them while it is trained.

    Raises:
        DataError: a row that the served model would refuse.
    """
    try:
        if training and isinstance(task, TrainedTask):
            return task.training_features(rows.texts, encoder)
        return task.features(rows.texts, encoder)
    except ValueError as error:
        raise DataError(f"the model cannot take the rows: {error}", hint="a larger --max-length may help") from None


def prepare(rows: LabelledRows, task: Task, encoder: TextEncoder, *, location: str, training: bool) -> LabelledRows:
    """Rows as the task makes them with its checkpoint's tokenizer (see ``Task.prepare_rows``).

    Raises:
        DataError: a row cannot be used, or none is left.
    """
    try:
        texts, labels = task.prepare_rows(rows.texts, rows.labels, encoder, training=training)
    except ValueError as error:
        raise DataError(f"{location}: {error}") from None
    if not labels:
        raise DataError(f"{location} holds no row that {task.name} can use")
    return LabelledRows(texts=tuple(map(tuple, texts)), labels=tuple(labels))


def sample(count: int, wanted: int | None, seed: int) -> list[int]:
    """``wanted`` of ``count`` positions drawn at random, in order; all where there are no more than that, or None is wanted."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), wanted))  # noqa: S311 - nothing secret


def hold_out(
    rows: Rows, fraction: float, seed: int, *, key: Callable[[tuple[str, ...]], Any] = lambda texts: texts
) -> tuple[Rows, Rows]:
    """Split ``rows`` into those kept and about ``fraction`` held out. Texts of equal ``key`` stay on one side.

    Where labels are names or whole numbers, each has about its share on both sides.

    Raises:
        DataError: there are too few different texts to hold any out.
    """
    keys = [key(texts) for texts in zip(*rows.texts, strict=True)]
    strata = _strata(keys, rows.labels)
    distinct = sum(map(len, strata))
    if round(distinct * fraction) == 0:
        raise DataError(f"{rows.location} has {distinct} different texts, too few to hold some out", hint="give --validation")
    generator = random.Random(seed)  # noqa: S311 - nothing secret
    chosen: set[Any] = set()
    seen = 0
    for stratum in strata:
        seen += len(stratum)
        chosen.update(generator.sample(stratum, min(round(seen * fraction) - len(chosen), len(stratum))))
    kept = [i for i, found in enumerate(keys) if found not in chosen]
    held = [i for i, found in enumerate(keys) if found in chosen]
    return rows.take(kept), replace(rows.take(held), location=f"{rows.location} (held out)")


def _strata(keys: Sequence[Any], labels: Sequence[Any]) -> list[list[Any]]:
    """The different keys, in order, by the label of their first row."""
    first = dict(zip(reversed(keys), reversed(labels), strict=True))
    by_label: dict[Any, list[Any]] = {}
    for key in sorted(first):
        label = first[key]
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
    """Read :data:`EVALUATION` of a checkpoint or bundle folder.

    Raises:
        DataError: it is absent, damaged, or of another task.
    """
    path = folder / EVALUATION
    names = ("text", "text_pair")[: task.text_columns]
    rows = [row for _, row in read_file(path)]
    if not rows or set(rows[0]) != {*names, "label"}:
        found = f"it has {', '.join(rows[0])}" if rows else "it has none"
        raise DataError(f"{path} does not hold the rows wanted, with the columns {', '.join(names)} and label: {found}")
    for number, row in enumerate(rows, start=1):
        for name in names:
            checked_text(row[name], name, f"{path}, row {number}", row)
        if not task.is_reference(row["label"]):
            raise DataError(f"{path}, row {number}: label {row['label']!r} is none of this checkpoint's: {shown(dict(row))}")
    return LabelledRows(texts=tuple(tuple(row[name] for row in rows) for name in names), labels=tuple(row["label"] for row in rows))
