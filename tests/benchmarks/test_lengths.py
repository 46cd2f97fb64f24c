"""Real rows brought to one length: exact enough to compare with other people's tables, and still what the task takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.row_lengths import mean_tokens, rows_of_length
from export.data import read_evaluation
from export.graph import input_names
from export.tasks import bundle_task
from serving.bundle import Bundle, load_bundle


def _rows(bundle: Bundle) -> list[list[str]]:
    task = bundle_task(bundle)
    labelled = read_evaluation(bundle.folder, task)
    return [list(row) for row in zip(*task.requests(labelled.texts), strict=True)]


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> Bundle:
    return load_bundle(bundle)


@pytest.mark.parametrize("length", [4, 9, 16, 96])
def test_rows_have_the_length_asked_for(loaded: Bundle, length: int) -> None:
    names = input_names(loaded.variant("fp32").path)
    made = rows_of_length(loaded, names, _rows(loaded), length, count=12)
    assert len(made) == 12
    assert length - 1 <= mean_tokens(loaded, names, made) <= length
    assert all(row[0] for row in made)
    assert max(len(row[0]) for row in made) < 16 * length, "at the length where rows are cut too, there is no text beyond it"


def test_short_rows_are_continued_and_long_ones_cut(loaded: Bundle) -> None:
    names = input_names(loaded.variant("fp32").path)
    rows = [["good"], ["a fine film that goes on and on and on, until nobody knows any more how it began"]]
    made = rows_of_length(loaded, names, rows, 6)
    assert made[0][0].startswith("good a") and rows[1][0].startswith(made[1][0])
