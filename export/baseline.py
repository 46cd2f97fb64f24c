"""Figures of a baseline, which predicts without looking at the texts, beside those of the model."""

from __future__ import annotations

from collections.abc import Mapping

from export.data import LabelledRows
from export.metric import compute, finite_or_none, shown
from export.tasks.trained import TrainedTask
from serving.manifests import BaselineFigures, TrainingFigures
from serving.reporting import logger
from serving.text_table import aligned


def measure_baseline(task: TrainedTask, rows: Mapping[str, LabelledRows]) -> BaselineFigures | None:
    """Measure the task's baseline on the validation and test rows.

    Args:
        task: The task.
        rows: The rows of ``train``, ``validation`` and, if given, ``test``.

    Returns:
        Its figures; None if the task has no baseline.
    """
    figures: dict[str, dict[str, float | None]] = {}
    description = ""
    for split in ("validation", "test"):
        if split not in rows:
            continue
        references = list(rows[split].labels)
        found = task.baseline(rows["train"].labels, references)
        if found is None:
            return None
        description = found.description
        figures[split] = finite_or_none(compute(task.metric, found.predictions, references))
    return BaselineFigures(description=description, **figures)


def figure_lines(figures: TrainingFigures, note: str) -> list[str]:
    """Write a table of the figures: one line per figure, one column per split, with the baseline in brackets.

    Args:
        figures: The figures.
        note: What the figures count or average, if anything is to be said.

    Returns:
        The lines of the table, in front of it what the baseline is, and below it the note.
    """
    baseline = figures.baseline
    beside = {} if baseline is None else baseline.splits
    names = dict.fromkeys(name for measured in figures.splits.values() for name in measured)
    rows = [(name, *(_cell(name, measured, beside.get(split, {})) for split, measured in figures.splits.items())) for name in names]
    table = aligned([("", *figures.splits), *rows], left=range(1 + len(figures.splits)))
    heading = [] if baseline is None else [f"baseline, in brackets: {baseline.description}"]
    return [*heading, *table, *([note] if note else [])]


def _cell(name: str, measured: Mapping[str, float | None], beside: Mapping[str, float | None]) -> str:
    if name not in measured:
        return ""
    return shown(measured[name], ".4f") + (f" ({shown(beside[name], '.4f')})" if name in beside else "")


def warn_if_not_better(figures: TrainingFigures, metric: str) -> None:
    """Warn if the model is not better than the baseline on the test rows, or without them on the validation rows."""
    if figures.baseline is None:
        return
    split = list(figures.splits)[-1]
    ours, theirs = figures.splits[split].get(metric), figures.baseline.splits[split].get(metric)
    if ours is not None and theirs is not None and ours <= theirs:
        logger.warning(
            f"the model is not better than the baseline: {metric} {ours:.4f} on the {split} rows, {theirs:.4f} for "
            f"{figures.baseline.description}. Check the labels, or train on more rows, for more --epochs, with another "
            "--learning-rate or with --class-weights"
        )
