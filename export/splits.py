"""Labelled rows of every split, read, checked and kept apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from export.columns import Columns
from export.data import LabelledRows, Rows, bind, encode_labels, hold_out, sample
from export.leaks import Leaks, find_leaks
from export.sources import load_rows
from export.tasks.trained import TrainedTask
from serving.errors import DataError
from serving.reporting import logger

HELD_OUT = 0.1
"""Share of the training rows held out for validation where no validation rows are given."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Labelled rows by split.

    Args:
        task: bound to their labels.
        rows: ``train``, ``validation`` and perhaps ``test``.
        leaks: what the splits had in common when they were read.
        inputs: what tells the rows as they were read from others, JSON-ready.
    """

    task: TrainedTask
    rows: dict[str, LabelledRows]
    leaks: Leaks
    inputs: dict[str, Any]

    def label_shares(self) -> dict[str, float]:
        """Share of the training rows that have each label; empty where rows have none to count."""
        names = self.task.labels
        labels = [label if isinstance(label, list) else [label] for label in self.rows["train"].labels]
        if len(names) < 2 or not all(isinstance(one, int) for label in labels for one in label):
            return {}
        counts = Counter(one for label in labels for one in set(label))
        return {name: counts[at] / len(labels) for at, name in enumerate(names)}


def load_splits(
    locations: Mapping[str, str | None],
    columns: Columns,
    task_type: type[TrainedTask],
    *,
    cache: Path,
    most: int | None,
    seed: int,
    keep_leaks: bool,
) -> Splits:
    """Read the rows of every split that has a location, and bind the task to them.

    Args:
        locations: of ``train`` and perhaps ``validation`` and ``test``, in this order. Without ``validation`` a tenth of the
            training rows is held out.
        cache: folder for what the quickstart fetches.
        most: draw that many of the training rows; None: all.
        keep_leaks: keep training rows that are rows of another split too.

    Raises:
        DataError: rows, columns or labels are not as they must be.
        SetupError: the quickstart could not be fetched.
    """
    found: dict[str, Rows] = {}
    for split, location in locations.items():
        if location is not None:
            wanted = most if split == "train" else None
            found[split] = load_rows(location, columns, task_type, split=split, cache=cache, most=wanted, seed=seed)
            _require_same_kind(found["train"], found[split])
    task = bind(task_type, found["train"], pair=len(found["train"].texts) == 2)
    if "validation" not in found:
        found["train"], found["validation"] = hold_out(found["train"], HELD_OUT, seed, key=task_type.group_key)
        logger.info(f"no --validation: {len(found['validation'])} of the training rows are held out for it")
    found["train"] = found["train"].take(sample(len(found["train"]), most, seed))
    splits = {split: encode_labels(rows, task) for split, rows in found.items()}
    leaks = find_leaks(splits)
    if not keep_leaks:
        splits["train"] = _without(splits["train"], leaks)
    _tell(leaks, kept=keep_leaks)
    return Splits(
        task=task,
        rows=splits,
        leaks=leaks,
        inputs={split: {"rows": len(rows), "sha256": rows.digest()} for split, rows in found.items()},
    )


def _without(rows: LabelledRows, leaks: Leaks) -> LabelledRows:
    leaked = set(leaks.training)
    if len(leaked) == len(rows):
        raise DataError("every training row is a validation or test row too", hint="give other rows, or --keep-leaks")
    return rows.take([at for at in range(len(rows)) if at not in leaked]) if leaked else rows


def _tell(leaks: Leaks, *, kept: bool) -> None:
    for split, rows in leaks.shared.items():
        if rows:
            logger.info(f"{split} rows that are training rows too, but for case, spaces and punctuation: {rows}")
    if leaks.training:
        told = "learnt from nevertheless" if kept else "not learnt from (--keep-leaks would)"
        logger.info(f"training rows that those are, {told}: {len(leaks.training)}")
    if leaks.contradicting:
        logger.info(f"texts that stand among the training rows with more than one label: {leaks.contradicting}")


def _require_same_kind(train: Rows, other: Rows) -> None:
    """Refuse rows whose labels would only seem to be those of the training rows: positions where those have names."""
    ours, theirs = _kind(train), _kind(other)
    if theirs not in (ours, "lists of nothing") and (ours, theirs) != ("numbers", "whole numbers"):  # none of these has a fraction
        raise DataError(
            f"{train.location} has labels such as {train.labels[0]!r}, {other.location} such as {other.labels[0]!r}: "
            f"one has {ours}, the other {theirs}"
        )


def _kind(rows: Rows) -> str:
    kinds = {str: "names", int: "whole numbers", float: "numbers", NoneType: "nothing"}
    found = type(rows.labels[0])
    if found is not list:
        return kinds.get(found, found.__name__)
    first = type(next((one for label in rows.labels for one in label), None))
    return f"lists of {kinds.get(first, first.__name__)}"
