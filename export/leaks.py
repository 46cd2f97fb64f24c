"""Train-test leakage: training rows whose texts also occur in another split."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from export.data import LabelledRows

_SEPARATORS = re.compile(r"[\W_]+")


def normalize_text(text: str) -> str:
    """Normalize a text for the search for duplicates: Unicode NFKC, casefolded, without punctuation and repeated spaces.

    Args:
        text: The text.

    Returns:
        The normalized text, or ``text`` itself if nothing would be left of it.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _SEPARATORS.sub(" ", folded).strip() or text


@dataclass(frozen=True, kw_only=True)
class LabelConflict:
    """A training text that occurs with more than one label.

    Attributes:
        text: The text, or the texts of the row.
        labels: Its different labels, in the order of the rows.
    """

    text: str | tuple[str, ...]
    labels: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """Duplicates between splits, and conflicting labels.

    Attributes:
        shared: By split, the number of its rows that duplicate training rows.
        training: Indices of the training rows that occur in another split.
        conflicting_texts: Number of training texts that occur with more than one label.
        conflict: One of them; None if there is none.
    """

    shared: Mapping[str, int]
    training: tuple[int, ...]
    conflicting_texts: int
    conflict: LabelConflict | None = None


def find_leaks(splits: Mapping[str, LabelledRows], *, several_answers: bool = False) -> Leaks:
    """Compare the normalized texts of ``train`` with those of all other splits.

    Args:
        splits: Rows by split.
        several_answers: Whether rows of equal texts may have different labels, so that these are no conflict.

    Returns:
        The duplicates.
    """
    keys = {split: _keys(rows) for split, rows in splits.items()}
    train = keys.pop("train")
    train_keys = set(train)
    other_keys = {key for split_keys in keys.values() for key in split_keys}
    labels: dict[tuple[str, ...], dict[str, Any]] = {}
    for key, label in zip(train, splits["train"].labels, strict=True):
        labels.setdefault(key, {}).setdefault(repr(label), label)
    conflicts = [key for key, found in labels.items() if len(found) > 1 and not several_answers]
    return Leaks(
        shared={split: sum(key in train_keys for key in split_keys) for split, split_keys in keys.items()},
        training=tuple(index for index, key in enumerate(train) if key in other_keys),
        conflicting_texts=len(conflicts),
        conflict=_conflict(splits["train"], train.index(conflicts[0]), labels[conflicts[0]]) if conflicts else None,
    )


def _conflict(rows: LabelledRows, index: int, labels: Mapping[str, Any]) -> LabelConflict:
    texts = tuple(column[index] for column in rows.texts)
    return LabelConflict(text=texts[0] if len(texts) == 1 else texts, labels=tuple(labels.values()))


def _keys(rows: LabelledRows) -> list[tuple[str, ...]]:
    return list(zip(*([normalize_text(text) for text in column] for column in rows.texts), strict=True))
