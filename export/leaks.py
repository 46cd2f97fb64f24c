"""Rows that stand in more than one split: what a model has seen, it need not have learnt."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from export.data import LabelledRows

_APART = re.compile(r"[\W_]+")


def normalised(text: str) -> str:
    """``text`` without what does not make it another one: case, punctuation, spaces, and ways to write the same character."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _APART.sub(" ", folded).strip() or text


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """What was found.

    Args:
        shared: by split, how many of its rows stand among the training rows too.
        training: positions of those training rows that stand in another split too.
        contradicting: texts that stand in the training rows with more than one label.
    """

    shared: Mapping[str, int]
    training: tuple[int, ...]
    contradicting: int


def find_leaks(splits: Mapping[str, LabelledRows]) -> Leaks:
    """Compare the rows of ``train`` with those of all other splits, by their normalised texts."""
    keys = {split: _keys(rows) for split, rows in splits.items()}
    train = keys.pop("train")
    seen = set(train)
    elsewhere = {key for found in keys.values() for key in found}
    labels: dict[tuple[str, ...], set[str]] = {}
    for key, label in zip(train, splits["train"].labels, strict=True):
        labels.setdefault(key, set()).add(repr(label))
    return Leaks(
        shared={split: sum(key in seen for key in found) for split, found in keys.items()},
        training=tuple(at for at, key in enumerate(train) if key in elsewhere),
        contradicting=sum(len(found) > 1 for found in labels.values()),
    )


def _keys(rows: LabelledRows) -> list[tuple[str, ...]]:
    return list(zip(*([normalised(text) for text in column] for column in rows.texts), strict=True))
