"""Load the labelled rows of every split and remove training rows that also occur in another split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from export.columns import Columns
from export.data import LabelledRows, Rows, bind_training_labels, encode_labels, hold_out, sample_indices
from export.leaks import Leaks, find_leaks
from export.sources import load_rows
from export.tasks.trained import TrainedTask
from serving.errors import DataError
from serving.manifests import UnknownTokens
from serving.records import shown
from serving.reporting import logger, plural

HELD_OUT = 0.1
"""Share of the training rows that is held out for validation if no validation rows are given."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Labelled rows by split.

    Attributes:
        task: The task, bound to the labels.
        rows: The rows of ``train``, ``validation`` and, if given, ``test``.
        leaks: Duplicates between the splits as they were read.
        inputs: Number and SHA-256 of the rows as they were read, by split, JSON-ready.
        unknown_tokens: What the checkpoint's vocabulary lacks, once its tokenizer is known.
    """

    task: TrainedTask
    rows: dict[str, LabelledRows]
    leaks: Leaks
    inputs: dict[str, Any]
    unknown_tokens: UnknownTokens | None = None

    def label_shares(self) -> dict[str, float]:
        """Compute the share of the training rows that have each label; empty if the rows have no class labels."""
        names = self.task.labels
        labels = [label if isinstance(label, list) else [label] for label in self.rows["train"].labels]
        if len(names) < 2 or not all(isinstance(one, int) for label in labels for one in label):
            return {}
        counts = Counter(one for label in labels for one in set(label))
        return {name: counts[index] / len(labels) for index, name in enumerate(names)}


def load_splits(
    locations: Mapping[str, str | None],
    columns: Mapping[str, Columns],
    task_type: type[TrainedTask],
    *,
    cache: Path,
    max_train_rows: int | None,
    seed: int,
    keep_leaks: bool,
) -> Splits:
    """Read the rows of every split that has a location, and bind the task to them.

    Args:
        locations: Data locations of ``train``, ``validation`` and ``test``, in this order (see
            :func:`export.sources.load_rows`). Without ``validation``, a tenth of the training rows is held out.
        columns: The columns that the user names, by split.
        task_type: The class of the task.
        cache: Folder for the downloads of the quickstart.
        max_train_rows: Number of training rows to sample; None: all.
        seed: Seed of the sample and of the held-out rows.
        keep_leaks: Keep training rows that also occur in another split.

    Returns:
        The rows, and the task bound to their labels.

    Raises:
        DataError: Rows, columns or labels are not valid.
        SetupError: The quickstart could not be downloaded.
    """
    found: dict[str, Rows] = {}
    for split, location in locations.items():
        if location is not None:
            max_rows = max_train_rows if split == "train" else None
            found[split] = load_rows(location, columns[split], task_type, split=split, cache=cache, max_rows=max_rows, seed=seed)
            _require_same_label_type(found["train"], found[split])
    task = bind_training_labels(task_type, found["train"], pair=len(found["train"].texts) == 2)
    if "validation" not in found:
        found["train"], found["validation"] = hold_out(found["train"], HELD_OUT, seed, key=task_type.group_key)
        count = len(found["validation"])
        logger.info(f"no --validation: {count} of the training rows {plural(count, 'is', 'are')} held out for validation")
    found["train"] = found["train"].take(sample_indices(len(found["train"]), max_train_rows, seed))
    splits = {split: encode_labels(rows, task) for split, rows in found.items()}
    leaks = find_leaks(splits, several_answers=task.several_answers)
    if not keep_leaks:
        splits["train"] = _without_leaks(splits["train"], leaks)
    _report_leaks(leaks, task, removed=not keep_leaks)
    return Splits(
        task=task,
        rows=splits,
        leaks=leaks,
        inputs={split: {"rows": len(rows), "sha256": rows.digest()} for split, rows in found.items()},
    )


def _without_leaks(rows: LabelledRows, leaks: Leaks) -> LabelledRows:
    leaked = set(leaks.training)
    if len(leaked) == len(rows):
        raise DataError("every training row also occurs in the validation or test rows", hint="give other rows, or --keep-leaks")
    return rows.take([index for index in range(len(rows)) if index not in leaked]) if leaked else rows


def _report_leaks(leaks: Leaks, task: TrainedTask, *, removed: bool) -> None:
    for split, rows in leaks.shared.items():
        if rows:
            duplicate = plural(rows, "row duplicates", "rows duplicate")
            logger.info(f"{rows} {split} {duplicate} training rows (ignoring case, spaces and punctuation)")
    if leaks.training:
        action = "removed from training (--keep-leaks keeps them)" if removed else "kept for training"
        count = len(leaks.training)
        logger.info(f"{count} training {plural(count, 'row also occurs', 'rows also occur')} in other splits: {action}")
    if (conflict := leaks.conflict) is not None:
        labels = " and ".join(_label_text(label, task) for label in conflict.labels)
        count = leaks.conflicting_texts
        logger.warning(
            f"{count} training {plural(count, 'text has', 'texts have')} conflicting labels (ignoring case, spaces and "
            f"punctuation), such as {shown(conflict.text)} with {labels}"
        )


def _label_text(label: Any, task: TrainedTask) -> str:
    """Return the name of a label or of several ones, as the data set has them."""
    if isinstance(label, list) and all(type(one) is int for one in label) and task.labels:
        return ", ".join(task.labels[one] for one in label) or "no label"
    if isinstance(label, dict) and "label" in label:  # of each word: their positions say nothing to a reader
        return shown(" ".join(label["label"]))
    return task.labels[label] if type(label) is int and label < len(task.labels) else shown(label)


def _require_same_label_type(train: Rows, other: Rows) -> None:
    """Refuse rows with labels of another type, such as indices if the training rows have label names."""
    ours, theirs = _label_type(train), _label_type(other)
    if theirs in (ours, "empty lists") or (ours, theirs) == ("numbers", "whole numbers"):
        return
    raise DataError(
        f"{train.location} has labels such as {train.labels[0]!r} ({ours}), "
        f"but {other.location} has labels such as {other.labels[0]!r} ({theirs})"
    )


def _label_type(rows: Rows) -> str:
    names = {str: "names", int: "whole numbers", float: "numbers", NoneType: "no labels"}
    label_type = type(rows.labels[0])
    if label_type is not list:
        return names.get(label_type, label_type.__name__)
    first = next((one for label in rows.labels for one in label), None)
    return "empty lists" if first is None else f"lists of {names.get(type(first), type(first).__name__)}"
