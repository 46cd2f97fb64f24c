"""Labelled rows: read and checked one by one with the standard library, so bad data is told before torch is imported."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serving.errors import DataError
from serving.records import Record, checked_text, read_file, shown

EVALUATION = "evaluation.parquet"
"""Held-out rows that travel with a checkpoint and a bundle: columns ``text`` [, ``text_pair``] (string) and ``label`` (int64)."""

Texts = tuple[tuple[str, ...], ...]
"""One sequence of strings per text column (one, or two for pairs), all of the same length."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns hold what.

    Args:
        text: the text, or the first of a pair.
        text_pair: the second text; None where rows are single texts.
        label: a name or a whole number.
    """

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"

    @property
    def texts(self) -> tuple[str, ...]:
        """The text columns in order."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows as found: labels are all names (str) or all whole numbers (int).

    Args:
        location: where they come from, for messages.
        names: label names in order where the source itself fixes them; empty otherwise.
    """

    location: str
    texts: Texts
    labels: tuple[str | int, ...]
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
    """Rows whose labels are positions among a model's label names."""

    texts: Texts
    labels: tuple[int, ...]

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


def checked_rows(location: str, records: Iterable[Record], columns: Columns) -> Rows:
    """Take the columns out of ``records`` and check every row. Labels written as digits throughout become whole numbers.

    Raises:
        DataError: a column is missing, a text is no text, a label is missing or of another kind than the rest, or there are
            no rows; the message shows the row.
    """
    texts: tuple[list[str], ...] = tuple([] for _ in columns.texts)
    labels: list[str | int] = []
    for where, row in records:
        for column, name in zip(texts, columns.texts, strict=True):
            column.append(checked_text(_value(location, where, row, name), name, f"{location}, {where}", row))
        label = _checked_label(_value(location, where, row, columns.label), columns.label, f"{location}, {where}", row)
        if labels and type(label) is not type(labels[0]):
            kinds = f"{_kind(label)} and those before it are {_kind(labels[0])}"
            raise DataError(f"{location}, {where}: label {label!r} is {kinds}: {shown(dict(row))}")
        labels.append(label)
    if not labels:
        raise DataError(f"{location} holds no rows")
    if all(isinstance(label, str) and re.fullmatch(r"-?[0-9]+", label) for label in labels):
        labels = [int(label) for label in labels]
    return Rows(location=location, texts=tuple(map(tuple, texts)), labels=tuple(labels))


def _kind(label: str | int) -> str:
    return "text" if isinstance(label, str) else "a whole number"


def _value(location: str, where: str, row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise DataError(
            f"{location} has no column {column!r}; {where} has {', '.join(map(str, row))}: {shown(dict(row))}",
            hint="name the columns with --text-column, --text-pair-column and --label-column",
        )
    return row[column]


def _checked_label(value: Any, column: str, place: str, row: Mapping[str, Any]) -> str | int:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int) or (isinstance(value, str) and value):
        return value
    found = "is empty" if value in (None, "") else f"holds {type(value).__name__}, not a name or a whole number"
    raise DataError(f"{place}: column {column!r} {found}: {shown(dict(row))}")


def label_names(rows: Rows) -> tuple[str, ...]:
    """Label names in the order of the logits: the source's own, else names sorted as text, numbers by value.

    Raises:
        DataError: fewer than two labels.
    """
    names = rows.names or tuple(map(str, sorted(set(rows.labels))))  # all of one type: checked_rows saw to it
    if len(set(rows.labels)) < 2:
        raise DataError(f"{rows.location} has one label only, {rows.labels[0]!r}: there is nothing to tell apart")
    return names


def encode_labels(rows: Rows, names: Sequence[str], *, positions: bool = False) -> LabelledRows:
    """Labels as positions among ``names``.

    Args:
        positions: whole numbers that are not themselves names count as positions. For a checkpoint's own label names, where
            data sets commonly hold the numbers only.

    Raises:
        DataError: a label is not among ``names``; the message shows the row.
    """
    known: dict[str | int, int] = {}
    if positions:
        known |= {index: index for index in range(len(names))}
    for index, name in enumerate(names):
        known[name] = index
    if all(re.fullmatch(r"-?[0-9]+", name) for name in names):
        known |= {int(name): index for index, name in enumerate(names)}
    for number, label in enumerate(rows.labels, start=1):
        if label not in known:
            text = shown(tuple(column[number - 1] for column in rows.texts))
            hint = "a negative label means that the labels are withheld: use another split" if label in (-1, "-1") else ""
            known_names = ", ".join(names)
            raise DataError(f"{rows.location}, row {number}: unknown label {label!r}, known are {known_names}: {text}", hint=hint)
    return LabelledRows(texts=rows.texts, labels=tuple(known[label] for label in rows.labels))


def sample(count: int, wanted: int | None, seed: int) -> list[int]:
    """``wanted`` of ``count`` positions drawn at random, in order; all where there are no more than that, or None is wanted."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), wanted))  # noqa: S311 - nothing secret


def hold_out(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split ``rows`` into those kept and about ``fraction`` held out. Equal texts stay on one side.

    Raises:
        DataError: there are too few different texts to hold any out.
    """
    keys = list(zip(*rows.texts, strict=True))
    distinct = sorted(set(keys))
    wanted = round(len(distinct) * fraction)
    if wanted == 0:
        raise DataError(f"{rows.location} has {len(distinct)} different texts, too few to hold some out", hint="give --validation")
    chosen = set(random.Random(seed).sample(distinct, wanted))  # noqa: S311 - nothing secret
    kept = [i for i, key in enumerate(keys) if key not in chosen]
    held = [i for i, key in enumerate(keys) if key in chosen]
    return rows.take(kept), replace(rows.take(held), location=f"{rows.location} (held out)")


def write_evaluation(rows: LabelledRows, folder: Path) -> None:
    """Write ``rows`` as :data:`EVALUATION` into ``folder``."""
    import pyarrow as pa
    from pyarrow import parquet

    names = ("text", "text_pair")[: len(rows.texts)]
    columns: dict[str, Any] = {name: pa.array(column, pa.string()) for name, column in zip(names, rows.texts, strict=True)}
    parquet.write_table(pa.table(columns | {"label": pa.array(rows.labels, pa.int64())}), folder / EVALUATION)


def read_evaluation(folder: Path) -> LabelledRows:
    """Read :data:`EVALUATION` of a checkpoint or bundle folder.

    Raises:
        DataError: it is absent or damaged.
    """
    path = folder / EVALUATION
    records = list(read_file(path))
    pair = "text_pair" if records and "text_pair" in records[0][1] else None
    rows = checked_rows(str(path), records, Columns(text_pair=pair))
    if not all(isinstance(label, int) for label in rows.labels):
        raise DataError(f"{path}: labels must be whole numbers")
    return LabelledRows(texts=rows.texts, labels=tuple(int(label) for label in rows.labels))
